"""`tuneval tune` as its user meets it: a run folder, exact continuation after a kill, clear refusals."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, tiny_model
from safetensors.torch import load_file, save_file
from token_files import sample, write
from transformers import AutoModelForCausalLM

from tuneval import cli
from tuneval.checkpoints.load import load_model
from tuneval.commands.tune_flags import check, settings_without_effect
from tuneval.commands.tune_plan import make_plan
from tuneval.config.flags import parse
from tuneval.config.schema import PreprocessConfig, TuneConfig
from tuneval.data.preprocess import preprocess
from tuneval.errors import UserError

WORDS = "猫 狗 鸟 鱼 是 什 么 答 案 请 回 two four word the".split()
DETERMINISTIC = ("step", "loss", "grad_norm", "lr", "samples", "tokens", "trained_tokens")
STEPS = 30


@pytest.fixture
def model(tiny_folder):
    return tiny_folder(name="model")


@pytest.fixture
def data(tmp_path, model):
    """Prefix of 60 preprocessed records."""
    return make_data(tmp_path, model)


def make_data(folder, tokenizer, name="data", **settings):
    draw = random.Random(0)
    texts = [[" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(2)] for _ in range(60)]
    records = folder / f"{name}.json"
    records.write_text(json.dumps([{"instruction": a, "input": "", "output": b} for a, b in texts]), encoding="utf-8")
    options = {"input": records, "tokenizer_name_or_path": str(tokenizer), "output_prefix": folder / name}
    preprocess(PreprocessConfig(**{**options, **settings}))
    return folder / name


def arguments(model, data, run, *more):
    settings = f"--train-iters {STEPS} --global-batch-size 4 --save-interval 4 --eval-interval 10 --split 90,8,2"
    paths = ["--load", str(model), "--data-path", str(data), "--save", str(run)]
    return [*paths, *settings.split(), "--lr", "1e-3", "--micro-batch-tokens", "64", *more]


def rows(run, name="metrics.jsonl"):
    path = Path(run) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def deterministic(run):
    return [{key: row[key] for key in DETERMINISTIC} for row in rows(run)]


def succeed(*words):
    assert cli.run("tune", list(words)) == 0


def refuse(capsys, *words):
    """The error text of a command that must fail before it writes anything."""
    assert cli.run("tune", list(words)) == 2
    save = Path(words[words.index("--save") + 1])
    assert not save.exists()
    return capsys.readouterr().err


# --- a whole run ---


def test_full_run_leaves_its_folder(model, data, tmp_path, capsys):
    run = tmp_path / "run"
    succeed(*arguments(model, data, run, "--fp32", "--train-iters", "12", "--ckpt-format", "torch"))
    output = capsys.readouterr().out
    assert " iteration       12/      12 | consumed samples:           48 | " in output
    assert " validation loss at iteration 12 on validation set | lm loss value: " in output
    assert "iteration 12 on test set" in output and output == (run / "log.txt").read_text()
    metrics, validations = rows(run), rows(run, "validation.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 13))
    assert [row["step"] for row in validations] == [0, 10, 12]
    assert validations[-1]["loss"] < validations[0]["loss"]
    record = json.loads((run / "config.json").read_text())
    assert record["method"] == "full" and record["train_samples"] == 54 and record["config"]["seq_length"] == 512
    assert record["parameters"]["total"] == record["parameters"]["trainable"] == tiny_model().num_parameters()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["latest", "step_0000008", "step_0000012"]
    assert (run / "mcore" / "latest_checkpointed_iteration.txt").is_file()
    check_saved_model(run, model)


def check_saved_model(run, base):
    """transformers loads the result; its weights are the checkpoint's; the template went along."""
    tuned = AutoModelForCausalLM.from_pretrained(run / "model").state_dict()
    before = load_file(base / "model.safetensors")
    assert not torch.equal(tuned["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    facts = json.loads((run / "model" / "tuneval.json").read_text())
    assert facts["prompt_type"] == "auto"
    assert facts["template_fingerprint"] == json.loads((run / "config.json").read_text())["template_fingerprint"]


def test_lora_run_leaves_an_adapter_that_peft_loads(model, data, tmp_path):
    from peft import PeftModel

    run = tmp_path / "run"
    lora = ("--lora-r", "4", "--lora-alpha", "8", "--lora-target-modules", "linear_qkv", "linear_proj")
    succeed(*arguments(model, data, run, "--fp32", "--train-iters", "6", "--ckpt-format", "torch", *lora))
    record = json.loads((run / "config.json").read_text())
    assert record["method"] == "lora" and record["config"]["lora_target_modules"] == [
        "k_proj",
        "o_proj",
        "q_proj",
        "v_proj",
    ]
    assert record["parameters"]["trainable"] == 4 * 4 * ((48 + 48) + (48 + 16) + (48 + 16) + (48 + 48))
    assert json.loads((run / "adapter" / "tuneval.json").read_text())["base_model"] == str(model)
    assert (run / "mcore" / "latest_checkpointed_iteration.txt").is_file()
    ids = torch.arange(4, 20)[None]
    base = AutoModelForCausalLM.from_pretrained(model)
    before = base(ids).logits.detach().clone()
    theirs = PeftModel.from_pretrained(base, run / "adapter").eval()(ids).logits
    ours = load_model(run, "fp32").model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - before).abs().max() > 1e-3


def test_lora_on_an_adapter_is_refused(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "first", "--train-iters", "2", "--lora-r", "2")
    succeed(*words)
    capsys.readouterr()
    words = arguments(tmp_path / "first", data, tmp_path / "second", "--train-iters", "2")
    assert "with --lora-load; for a new one, merge it first" in refuse(capsys, *words, "--lora-r", "2")
    succeed(*words)


def test_bf16_is_the_default_and_the_written_type(model, data, tmp_path):
    run = tmp_path / "run"
    succeed(*arguments(model, data, run, "--train-iters", "2"))
    assert json.loads((run / "config.json").read_text())["config"]["bf16"] is True
    assert AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto").dtype == torch.bfloat16


def test_epochs_and_default_rates(model, data, tmp_path):
    paths = ["--load", str(model), "--data-path", str(data), "--save"]
    succeed(*paths, str(tmp_path / "a"), "--train-epochs", "2", "--global-batch-size", "16", "--split", "90,10,0")
    record = json.loads((tmp_path / "a" / "config.json").read_text())
    assert record["train_iters"] == 6 and record["config"]["lr"] == 1e-5  # 2 * 54 samples // 16


def test_tensorboard_events(model, data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    succeed(*arguments(model, data, run, "--train-iters", "3", "--tensorboard-dir", str(tmp_path / "events")))
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [e.step for e in events.Scalars("lm loss")] == [1, 2, 3]
    assert events.Scalars("lm loss")[2].value == pytest.approx(rows(run)[2]["loss"])


# --- exact continuation ---


def start(words):
    command = [sys.executable, "-m", "tuneval", "tune", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stop_at(words, run, step, number):
    """Start the command and send it a signal once `step` is recorded; returns its status and output."""
    process = start(words)
    deadline = time.monotonic() + 120
    while len(rows_so_far(run)) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def rows_so_far(run):
    path = Path(run) / "metrics.jsonl"
    return path.read_bytes().splitlines() if path.is_file() else []


METHODS = {
    "full": ("--bf16",),
    "lora": ("--fp32", "--lora-r", "4", "--lora-dropout", "0.2"),
}


def weights(run):
    (file,) = [*Path(run).glob("model/*.safetensors"), *Path(run).glob("adapter/*.safetensors")]
    return load_file(file)


def check_unbroken(whole, broken):
    assert deterministic(broken) == deterministic(whole) and len(deterministic(whole)) == STEPS
    assert rows(broken, "validation.jsonl") == rows(whole, "validation.jsonl")
    one, other = weights(whole), weights(broken)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_restarted_is_unbroken(model, data, tmp_path, method):
    words = {name: arguments(model, data, tmp_path / name, *METHODS[method]) for name in ("whole", "broken")}
    at = random.randint(1, STEPS - 5)
    status, output = stop_at(words["broken"], tmp_path / "broken", at, signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    assert at <= len(rows_so_far(tmp_path / "broken")) < STEPS
    succeed(*words["broken"])
    succeed(*words["whole"])
    check_unbroken(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_sigterm_saves_and_leaves(model, data, tmp_path):
    words = {name: arguments(model, data, tmp_path / name) for name in ("whole", "broken")}
    status, output = stop_at(words["broken"], tmp_path / "broken", 6, signal.SIGTERM)
    assert status == 143 and "SIGTERM: left after step" in output and "The same command continues" in output
    left = rows(tmp_path / "broken")[-1]["step"]
    assert left < STEPS
    assert (tmp_path / "broken" / "checkpoints" / "latest").read_text() == f"step_{left:07d}\n"
    succeed(*words["broken"])
    succeed(*words["whole"])
    check_unbroken(tmp_path / "whole", tmp_path / "broken")
    assert f" at iteration {left}\n" in (tmp_path / "broken" / "log.txt").read_text()


@pytest.mark.slow
def test_an_unbroken_comparison_sees_another_seed(model, data, tmp_path):
    succeed(*arguments(model, data, tmp_path / "a"))
    succeed(*arguments(model, data, tmp_path / "b", "--seed", "4"))
    with pytest.raises(AssertionError):
        check_unbroken(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_stays_as_it_is(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "run", "--train-iters", "4")
    succeed(*words)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    succeed(*words)
    assert "finished, the result is" in capsys.readouterr().out
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in (tmp_path / "run").rglob("*")}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    succeed(*words)
    assert "finished, the result is" in capsys.readouterr().out


def test_a_lost_result_is_written_again(model, data, tmp_path):
    """As after a kill between the last checkpoint and the result."""
    words = arguments(model, data, tmp_path / "run", "--train-iters", "4")
    succeed(*words)
    expected, validations = weights(tmp_path / "run"), rows(tmp_path / "run", "validation.jsonl")
    shutil.rmtree(tmp_path / "run" / "model")
    succeed(*words)
    assert all(torch.equal(w, expected[n]) for n, w in weights(tmp_path / "run").items())
    assert rows(tmp_path / "run", "validation.jsonl") == validations


@pytest.mark.parametrize("method", [(), ("--lora-r", "2")], ids=["full", "lora"])
def test_a_result_of_fewer_steps_is_written_anew(model, data, tmp_path, method):
    """As after a kill between the last checkpoint of a run that was given more steps and its result."""
    run, more = tmp_path / "run", ("--ckpt-format", "torch", "--lr-decay-iters", "9", *method)
    results = ("adapter" if method else "model", "mcore")
    succeed(*arguments(model, data, run, *more, "--train-iters", "2"))
    for name in results:
        shutil.copytree(run / name, tmp_path / "fewer" / name)
    words = arguments(model, data, run, *more, "--train-iters", "4")
    succeed(*words)
    expected = [written(run / name) for name in results]
    for name in results:
        shutil.rmtree(run / name)
        shutil.copytree(tmp_path / "fewer" / name, run / name)
        assert [written(run / n) for n in results] != expected
        succeed(*words)
        assert [written(run / n) for n in results] == expected


def test_a_file_of_the_users_beside_the_shards_is_told_before_training(model, data, tmp_path, capsys):
    more = ("--ckpt-format", "torch", "--lr-decay-iters", "9")
    succeed(*arguments(model, data, tmp_path / "run", *more, "--train-iters", "2"))
    notes = tmp_path / "run" / "mcore" / "notes.txt"
    notes.touch()
    words = arguments(model, data, tmp_path / "run", *more, "--train-iters", "4")
    assert cli.run("tune", words) == 2
    assert "mcore: is an earlier result and would be replaced, but holds" in capsys.readouterr().err
    assert len(rows(tmp_path / "run")) == 2
    notes.unlink()
    succeed(*words)
    assert len(rows(tmp_path / "run")) == 4


def written(folder):
    """Files of weights with their bytes; Megatron's hold the time, and their folder the iteration."""
    files = [p for kind in ("*.safetensors", "*.pt") for p in sorted(folder.rglob(kind))]
    return [(p.relative_to(folder), p.read_bytes() if p.suffix == ".safetensors" else None) for p in files]


def test_more_steps_continue_where_the_schedule_stays(model, data, tmp_path):
    constant = ("--lr-decay-style", "constant", "--lr-decay-iters", "99")
    succeed(*arguments(model, data, tmp_path / "long", *constant, "--train-iters", "8"))
    succeed(*arguments(model, data, tmp_path / "run", *constant, "--train-iters", "4"))
    succeed(*arguments(model, data, tmp_path / "run", *constant, "--train-iters", "8"))
    assert deterministic(tmp_path / "run") == deterministic(tmp_path / "long")


def test_other_settings_do_not_continue(model, data, tmp_path, capsys):
    succeed(*arguments(model, data, tmp_path / "run", "--train-iters", "4"))
    status = cli.run("tune", arguments(model, data, tmp_path / "run", "--train-iters", "8", "--lr", "0.5"))
    error = capsys.readouterr().err
    assert status == 2 and "--lr 0.5: the run in" in error and "started with 0.001" in error
    assert "--lr-decay-iters 8" in error and "--finetune" in error
    assert len(rows(tmp_path / "run")) == 4
    assert "At its end the rate is 0: to go on from its result, give that to --load with another --save" in error
    assert cli.run("tune", arguments(model, data, tmp_path / "run", "--train-iters", "8", "--min-lr", "1e-5")) == 2
    assert "Give --lr-decay-iters 4 to keep the schedule" in capsys.readouterr().err
    given = arguments(model, data, tmp_path / "run", "--train-iters", "8", "--lr-decay-iters", "8")
    assert cli.run("tune", given) == 2
    error = capsys.readouterr().err
    assert "--lr-decay-iters 8: the run in" in error and "Give the same as before" in error
    assert "comes from --train-iters" not in error
    succeed(*arguments(model, data, tmp_path / "run", "--train-iters", "6", "--lr-decay-iters", "4"))
    assert len(rows(tmp_path / "run")) == 6


@pytest.mark.parametrize("method", [(), ("--lora-r", "4")], ids=["full", "lora"])
def test_a_compiled_run_learns_the_same_and_goes_on_as_it_began(model, data, tmp_path, method):
    flags = ["--lr-decay-style", "constant", "--lr-decay-iters", "99", "--fp32", *method]
    eager, whole, parted = (arguments(model, data, tmp_path / name, *flags) for name in ("eager", "whole", "parted"))
    succeed(*eager, "--train-iters", "6")
    succeed(*whole, "--train-iters", "6", "--torch-compile", "on")
    succeed(*parted, "--train-iters", "2", "--torch-compile", "on")
    succeed(*parted, "--train-iters", "6", "--torch-compile", "on")
    assert deterministic(tmp_path / "parted") == deterministic(tmp_path / "whole")
    assert deterministic(tmp_path / "eager") != deterministic(tmp_path / "whole"), "was it compiled?"
    for one, other in zip(rows(tmp_path / "eager"), rows(tmp_path / "whole"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_finetune_starts_afresh_and_says_so(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "run", "--train-iters", "4")
    succeed(*words)
    first = deterministic(tmp_path / "run")
    succeed(*words, "--finetune")
    assert "starting afresh" in capsys.readouterr().err
    assert deterministic(tmp_path / "run") == first == deterministic(tmp_path / "run" / "previous-1")


def test_other_weights_do_not_continue(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "run", "--train-iters", "4")
    succeed(*words)
    shutil.rmtree(tmp_path / "run" / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert cli.run("tune", words) == 2
    assert "other weights" in capsys.readouterr().err


# --- a loss that is not a number ---


def test_a_broken_weight_stops_with_step_samples_and_a_saved_state(model, data, tmp_path, capsys):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert cli.run("tune", arguments(model, data, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "step 1: the loss is nan, in samples " in error and "model.layers.2.mlp.down_proj.weight" in error
    assert "The state after step 0 is saved in" in error
    assert (tmp_path / "run" / "checkpoints" / "step_0000000" / "state.json").is_file()
    assert rows(tmp_path / "run") == []


def test_a_run_that_diverges_keeps_its_last_good_state(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "run", "--lr", "1e38", "--fp32", "--clip-grad", "0", "--eval-iters", "0")
    assert cli.run("tune", words) == 2
    last = rows(tmp_path / "run")[-1]["step"]
    assert f"step {last + 1}: the " in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"step_{last:07d}\n"


# --- refusals before anything is loaded or written ---


LAB_SCRIPT = f"""
--use-mcore-models --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --sequence-parallel --lora-r 4
--lora-alpha 8 --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2 --lora-fusion --num-layers 4
--hidden-size 48 --ffn-hidden-size 40 --num-attention-heads 6 --group-query-attention --num-query-groups 2
--max-position-embeddings 512 --seq-length 256 --disable-bias-linear --add-qkv-bias --use-flash-attn --swiglu
--use-fused-swiglu --normalization RMSNorm --norm-epsilon 1e-6 --use-fused-rmsnorm --position-embedding-type rope
--rotary-base 10000 --use-fused-rotary-pos-emb --untie-embeddings-and-output-weights --micro-batch-size 1
--global-batch-size 8 --make-vocab-size-divisible-by 1 --padded-vocab-size {VOCAB} --tokenizer-type PretrainedFromHF
--tokenizer-not-use-fast --attention-dropout 0.0 --hidden-dropout 0.0 --train-iters 3 --lr 1.25e-6
--lr-decay-style cosine --min-lr 1.25e-7 --lr-warmup-fraction 0.01 --init-method-std 0.01 --weight-decay 0.0
--clip-grad 1.0 --adam-beta1 0.9 --adam-beta2 0.95 --initial-loss-scale 4096 --no-gradient-accumulation-fusion
--no-masked-softmax-fusion --attention-softmax-in-fp32 --no-load-optim --no-load-rng --no-save-optim --no-save-rng
--seed 1234 --bf16 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --split 100,0,0
--log-interval 1 --save-interval 2000 --eval-interval 2000 --eval-iters 0 --log-throughput --finetune --stage sft
--is-instruction-dataset --variable-seq-lengths --prompt-type auto --padded-samples --distributed-backend nccl
"""


def test_the_labs_flags_act_or_say_why_not(model, data, tmp_path, capsys):
    words = ["--load", str(model), "--tokenizer-name-or-path", str(model), "--data-path", str(data)]
    assert cli.run("tune", [*LAB_SCRIPT.split(), *words, "--save", str(tmp_path / "run")]) == 0
    output = capsys.readouterr()
    assert "--use-flash-attn: no effect, the fastest attention of the device is always used" in output.err
    assert "--initial-loss-scale 4096: no effect, only --fp16 scales the loss" in output.err
    assert "throughput per GPU (TFLOP/s/GPU): " in output.out and " validation loss" not in output.out


def test_flags_are_checked_together(model, data, tmp_path, capsys):
    error = refuse(
        capsys,
        *arguments(model, data, tmp_path / "run", "--bf16", "--fp16", "--train-epochs", "2", "--lora-alpha", "16"),
        *("--lr-warmup-fraction", "0.1", "--lr-warmup-iters", "5", "--clip-grad", "-1", "--adam-beta2", "1.5"),
    )
    for text in (
        "6 problems",
        "--bf16 --fp16: give one",
        "--train-iters and --train-epochs: give one",
        "--lr-warmup-fraction and --lr-warmup-iters: give one",
        "--lora-alpha 16: LoRA is off",
        "--clip-grad -1",
        "--adam-beta2 1.5",
    ):
        assert text in error


def config_of(*more):
    return parse(TuneConfig, [*"--load m --data-path d --save s".split(), *more], "tuneval tune").config


def test_flags_that_change_nothing_beside_the_others_are_named():
    words = "--lr 0 --lr-decay-style constant --min-lr 1e-6 --lr-wsd-decay-iters 3 --loss-scale 8 --hysteresis 3"
    others = "--transformer-impl transformer_engine --log-memory-to-tensorboard --tensorboard-log-interval 2"
    assert settings_without_effect(config_of(*words.split(), *others.split())) == [
        "--loss-scale 8, --hysteresis 3: no effect, only --fp16 scales the loss",
        "--lr-wsd-decay-iters 3: no effect, it is of --lr-decay-style WSD",
        "--min-lr 1e-06: no effect, the learning rate is constant",
        "--tensorboard-log-interval 2, --log-memory-to-tensorboard: no effect, there is no --tensorboard-dir",
        "--transformer-impl transformer_engine: no effect, only --ckpt-format torch writes Megatron's files",
        "--lr 0: no weight will change",
    ]
    assert settings_without_effect(config_of("--train-iters", "9", "--lr-decay-iters", "6")) == [
        "--lr-decay-iters 6: the steps after it change no weight, --min-lr is 0"
    ]
    used = "--fp16 --loss-scale 8 --tensorboard-dir t --log-memory-to-tensorboard --ckpt-format torch --lr-warmup-init 1e-6"
    assert settings_without_effect(config_of(*used.split(), "--transformer-impl", "transformer_engine")) == [
        "--lr-warmup-init 1e-06: no effect, there is no --lr-warmup-iters or --lr-warmup-fraction"
    ]


def test_a_file_in_the_way_is_told_before_the_model_is_read(model, data, tmp_path):
    (tmp_path / "file").touch()
    for words in (["--save", str(tmp_path / "file")], ["--tensorboard-dir", str(tmp_path / "file" / "events")]):
        config = config_of("--load", str(model), "--data-path", str(data), "--save", str(tmp_path / "run"), *words)
        with pytest.raises(UserError, match=f"^{tmp_path}/file: a file is in the way; choose another {words[0]}$"):
            check(config)


def test_a_file_as_model_is_told_before_torch_is_imported(model, data, tmp_path):
    words = ["--load", str(model / "model.safetensors"), "--data-path", str(data), "--save", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"model.safetensors: is a file. Give the folder that holds it.$"):
        check(config_of(*words))


def test_the_data_sets_beside_a_wrong_prefix_are_listed(model, data, tmp_path):
    words = ["--load", str(model), "--save", str(tmp_path / "run"), "--data-path"]
    for wrong in (f"{data}_packed_input_ids_document", f"{data}.json"):
        with pytest.raises(UserError, match=rf"--data-path {wrong}: no data set of this prefix; there is {data}$"):
            check(config_of(*words, wrong))
    Path(f"{data}_packed_input_ids_document.bin").unlink()
    with pytest.raises(UserError, match=r"input_ids_document.bin: no such file"):
        check(config_of(*words, str(data)))


def test_a_split_without_validation_is_told(model, data, tmp_path, capsys):
    succeed(*arguments(model, data, tmp_path / "run", "--train-iters", "1", "--split", "99.9,0.1,0"))
    assert "--split 99.9,0.1,0 of 60: no sample to validate with, so no validation loss" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--optimizer", "adam8bit"), ("--main-grads-dtype", "bf16")])
def test_what_saves_memory_beside_bf16_weights_is_refused_beside_others(flag, model, data, tmp_path, capsys):
    error = refuse(capsys, *arguments(model, data, tmp_path / "run", "--fp32", *flag))
    assert f"{' '.join(flag)} --fp32: saves memory beside bf16 weights only" in error


def test_what_torch_compile_cannot_do_is_refused(model, data, tmp_path, capsys, monkeypatch):
    words = [*arguments(model, data, tmp_path / "run", "--recompute-granularity", "selective"), "--torch-compile"]
    error = refuse(capsys, *words, "on")
    assert "--torch-compile on: chooses itself what to keep of a layer, as --recompute-granularity selective" in error
    monkeypatch.setenv("CXX", "no-such-compiler")
    error = refuse(capsys, *arguments(model, data, tmp_path / "run", "--torch-compile", "on"))
    assert "--torch-compile on: needs a C++ compiler (g++, or the one that CXX names)" in error
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = arguments(model, data, tmp_path / "run", "--torch-compile", "on", "--tensor-model-parallel-size", "2")
    with pytest.raises(UserError, match="--torch-compile on: needs layers that a process holds whole, and TP 2"):
        make_plan(parse(TuneConfig, words, "tuneval tune"))


def test_long_runs_compile_where_they_can(model, data, tmp_path, monkeypatch):
    def compiles(*flags):
        words = arguments(model, data, tmp_path / "run", *flags, "--train-iters", str(100_000_000))
        return make_plan(parse(TuneConfig, words, "tuneval tune")).compiles

    assert compiles() and not compiles("--torch-compile", "off")
    assert not compiles("--recompute-granularity", "selective")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiles()


def test_model_and_data_are_checked_together(model, data, tmp_path, capsys):
    error = refuse(
        capsys,
        *arguments(model, data, tmp_path / "run", "--global-batch-size", "64", "--seq-length", "1024"),
        *("--num-layers", "28"),
    )
    for text in (
        "3 problems",
        "--global-batch-size 64: the training split has 54 samples",
        "--seq-length 1024: the model's limit is 512",
        "--num-layers 28: the model's num_hidden_layers is 4",
    ):
        assert text in error


def test_flags_that_no_model_makes_right_are_told_together(model, data, tmp_path, capsys):
    error = refuse(
        capsys,
        *arguments(model, data, tmp_path / "run", "--lr-warmup-iters", str(STEPS), "--min-lr", "1", "--split", "a"),
        *("--prompt-type", "qwan", "--tensor-model-parallel-size", "0"),
    )
    for text in (
        "5 problems",
        "warmup of 30 steps: must be below the decay's 30",
        "--min-lr 1.0: must be at most --lr",
        "--split a: give up to three numbers",
        "--prompt-type qwan: unknown. Known are qwen,",
        "--tensor-model-parallel-size 0: must be at least 1",
    ):
        assert text in error


def test_one_slip_is_one_problem(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "run")
    error = refuse(capsys, *words, "--loss-reduction", "micro-batch", "--micro-batch-size", "0")
    assert "problems" not in error and "--micro-batch-size 0: must be at least 1" in error
    error = refuse(capsys, *words, "--split", "0,100,0")
    assert "problems" not in error and "Give --split another first weight, or more data" in error
    assert "the training split has 0 samples (--split 0,100,0 of" in error


def test_another_template_is_refused_with_the_differing_keys(model, data, tmp_path, capsys):
    error = refuse(capsys, *arguments(model, data, tmp_path / "run", "--prompt-type", "qwen"))
    assert "--prompt-type qwen: the data was made with --prompt-type auto" in error and "kind:" in error
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template.replace("kind", "rude"))
    error = refuse(capsys, *arguments(model, data, tmp_path / "run"))
    assert "the two templates differ" in error and "chat_template:" in error and "eos_token" not in error


def test_a_tuned_models_template_is_kept(model, data, tmp_path, capsys):
    succeed(*arguments(model, data, tmp_path / "first", "--train-iters", "2"))
    other = make_data(tmp_path, model, "other", prompt_type="qwen")
    words = arguments(tmp_path / "first", other, tmp_path / "second", "--train-iters", "2")
    error = refuse(capsys, *words)
    assert "was tuned with --prompt-type auto, the data was made with qwen" in error and "kind:" in error
    succeed(*words, "--prompt-type", "qwen")
    assert json.loads((tmp_path / "second" / "model" / "tuneval.json").read_text())["prompt_type"] == "qwen"


def test_another_vocabulary_is_refused(model, tmp_path, capsys):
    write(tmp_path / "big", [sample(i, 9) for i in range(8)] + [([5, 6, 400], [5, 6, 400])])
    words = arguments(model, tmp_path / "big", tmp_path / "run", "--prompt-type", "qwen", "--global-batch-size", "2")
    assert "token ids from 4 to 400, the model's vocabulary ends at 351" in refuse(capsys, *words)


def test_another_tokenizer_is_refused(model, data, tmp_path, capsys):
    raw = json.loads((model / "tokenizer.json").read_text())
    vocabulary = raw["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(raw))
    assert "vocabulary is not that of this model's tokenizer" in refuse(
        capsys, *arguments(model, data, tmp_path / "run")
    )


def test_data_without_a_trainable_token_are_refused(model, tmp_path, capsys):
    masked = [(ids, labels * 0 - 100) for ids, labels in (sample(i, 9) for i in range(8))]
    write(tmp_path / "masked", masked)
    words = arguments(model, tmp_path / "masked", tmp_path / "run", "--prompt-type", "qwen")
    assert "none of the 7 training samples has a trainable token" in refuse(capsys, *words)


def test_missing_model_and_data_are_told_at_once(tmp_path, capsys):
    error = refuse(capsys, *arguments(tmp_path / "no-model", tmp_path / "no-data", tmp_path / "run"))
    assert "2 problems" in error and "no-model: no such folder" in error and "no-data" in error


def test_unknown_lora_targets_are_refused(model, data, tmp_path, capsys):
    words = arguments(model, data, tmp_path / "run", "--lora-target-modules", "q_proj", "k_porj")
    assert "k_porj: the blocks have no such linear layer; did you mean k_proj? Known: " in refuse(capsys, *words)


def test_a_model_inside_the_run_folder_is_refused(model, data, tmp_path, capsys):
    inside = tmp_path / "run" / "base"
    shutil.copytree(model, inside)
    assert cli.run("tune", arguments(inside, data, tmp_path / "run")) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_a_models_own_config_is_not_replaced(model, data, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    before = (other / "config.json").read_bytes()
    for more in ((), ("--finetune",)):
        assert cli.run("tune", arguments(model, data, other, *more)) == 2
        assert f"--save {other}: its config.json is no run's" in capsys.readouterr().err
    assert (other / "config.json").read_bytes() == before and not (other / "previous-1").exists()


def test_finetune_leaves_files_of_no_run_where_they_are(model, data, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    succeed(*arguments(model, data, folder, "--finetune", "--train-iters", "1"))
    assert (folder / "notes.txt").is_file() and not (folder / "previous-1").exists()
    assert "starting afresh" not in capsys.readouterr().err

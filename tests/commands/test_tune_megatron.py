"""`posttrain_gpt.py`: what a MindSpeed-LLM user sees, to the letter, and what the run leaves for Megatron."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from megatron_forward import IDS, megatron_logits
from safetensors.torch import load_file
from token_files import sample, write

from tuneval import cli
from tuneval.checkpoints.load import load_model
from tuneval.training.log_line import argument_lines

LINE = re.compile(
    r" \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] iteration +(\d+)/ +4 \| consumed samples: +(\d+) \| "
    r"elapsed time per iteration \(ms\): \d+\.\d \| throughput per GPU \(TFLOP/s/GPU\): \d+\.\d \| "
    r"learning rate: (\d\.\d{6}E-\d\d) \| global batch size:     8 \| lm loss: (\d\.\d{6}E[+-]\d\d) \| loss scale: 1\.0 \| "
    r"grad norm: \d+\.\d{3} \| number of skipped iterations:   0 \| number of nan iterations:   0 \|"
)
LORA = "--lora-r 3 --lora-alpha 6 --lora-target-modules linear_qkv linear_proj linear_fc1 linear_fc2".split()


@pytest.fixture
def words(tiny_folder, tmp_path):
    """A command line on the tiny model, with MindSpeed-LLM's kind of data: no manifest."""
    model = tiny_folder(name="model")
    write(tmp_path / "data", [sample(i, 5 + i % 9) for i in range(20)])
    settings = (
        "--prompt-type qwen --train-iters 4 --global-batch-size 8 --micro-batch-size 1 --lr 1e-3 --min-lr 1e-4 --fp32 "
    )
    settings += (
        "--lr-decay-style cosine --split 100,0,0 --save-interval 2 --log-interval 1 --log-throughput --eval-iters 0"
    )
    paths = ["--load", str(model), "--data-path", str(tmp_path / "data"), "--save", str(tmp_path / "run")]
    return [*settings.split(), *paths]


def run(words, capsys):
    status = cli.run_entry("/anywhere/posttrain_gpt.py", words)
    output = capsys.readouterr()
    assert status == 0, output.err
    return output.out, output.err


def test_the_log_is_megatrons_to_the_letter(words, tmp_path, capsys):
    output, _ = run(words, capsys)
    lines = [line for line in output.splitlines() if " iteration " in line and "consumed" in line]
    matches = [LINE.fullmatch(line) for line in lines]
    assert len(lines) == 4 and all(matches), lines
    assert [(int(m[1]), int(m[2])) for m in matches] == [(k, 8 * k) for k in (1, 2, 3, 4)]
    assert matches[-1][3] == "1.000000E-04"  # the printed rate is the next step's
    metrics = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [m[4] for m in matches] == [f"{row['loss']:.6E}" for row in metrics] and metrics[0]["lr"] == 1e-3
    assert "tokens per second" not in output


def test_the_start_lists_every_argument(words, capsys):
    output, _ = run(words, capsys)
    listed = output.splitlines()
    assert listed[0] == "------------------------ MindSpeed-LLM Arguments ------------------------"
    end = listed.index("-------------------- end of MindSpeed-LLM Arguments ---------------------")
    names = [line.split()[0] for line in listed[1:end]]
    assert names == sorted(names, key=str.lower) and len(names) > 60
    assert "  global_batch_size ............................... 8" in listed
    assert "  micro_batch_size ................................ 1" in listed  # as config.json records it
    assert argument_lines({"b": 1, "A": "x"})[1:3] == [f"  A {'.' * 47} x", f"  b {'.' * 47} 1"]


def test_checkpoint_lines_and_what_is_in_the_folder(words, tmp_path, capsys):
    output, _ = run(words, capsys)
    for step, folder, kind in ((2, "checkpoints", "torch_dist"), (4, "model", "hf"), (4, "mcore", "torch")):
        where = tmp_path / "run" / folder
        assert f"saving checkpoint at iteration {step:7d} to {where} in {kind} format\n" in output
        assert f"  successfully saved checkpoint from iteration {step:7d} to {where}\n" in output
    assert (tmp_path / "run" / "mcore" / "latest_checkpointed_iteration.txt").read_text() == "4"
    args = torch.load(next((tmp_path / "run" / "mcore").rglob("*.pt")), weights_only=False)["args"]
    assert (args.iteration, args.consumed_train_samples) == (4, 32)


def test_a_megatron_checkpoint_is_loaded_with_its_lines_and_the_tokenizers_config(words, tmp_path, capsys):
    mcore = tmp_path / "mcore"
    model = words[words.index("--load") + 1]
    padded = ["--make-vocab-size-divisible-by", "100"]
    assert cli.run("convert", ["--load", model, "--save", str(mcore), "--to", "mcore", *padded]) == 0
    assert "the vocabulary of 352 is padded with copies of its last row: Megatron's --padded-vocab-size 400" in (
        capsys.readouterr().err
    )
    (mcore / "config.json").unlink()
    words[words.index("--load") + 1] = str(mcore)
    output, _ = run([*words, "--tokenizer-name-or-path", model, "--padded-vocab-size", "400"], capsys)
    assert f" loading checkpoint from {mcore} at iteration 1\n checkpoint version 3.0\n" in output
    assert f"  successfully loaded checkpoint from {mcore} [ t 0, p 0 ] at iteration 0\n" in output
    state = torch.load(next((tmp_path / "run" / "mcore").rglob("*.pt")), weights_only=False)
    assert state["args"].padded_vocab_size == len(state["model"]["output_layer.weight"]) == 400


def test_lora_is_written_as_mindspeed_writes_it(words, tmp_path, capsys):
    run([*words, *LORA], capsys)
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    a = [tensors[f"base_model.model.model.layers.1.self_attn.{m}_proj.lora_A.weight"] for m in "qkv"]
    assert torch.equal(a[0], a[1]) and torch.equal(a[0], a[2])
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["parameters"]["trainable"] == 4 * 3 * ((48 + 80) + (48 + 48) + (48 + 80) + (40 + 48))
    state = torch.load(next((tmp_path / "run" / "mcore").rglob("*.pt")), weights_only=False)
    assert "decoder.layers.0.mlp.linear_fc1.base_layer.weight" in state["model"] and state["args"].lora_r == 3
    ours = load_model(tmp_path / "run", "fp32").model(IDS).logits.detach()
    torch.testing.assert_close(megatron_logits(tmp_path / "run" / "mcore"), ours, rtol=1e-4, atol=1e-5)
    plain = load_model(words[words.index("--load") + 1], "fp32").model(IDS).logits.detach()
    assert (plain - ours).abs().max() > 1e-4


def test_the_filter_leaves_the_base_out(words, tmp_path, capsys):
    run([*words, *LORA, "--lora-ckpt-filter"], capsys)
    state = torch.load(next((tmp_path / "run" / "mcore").rglob("*.pt")), weights_only=False)
    assert all(".lora_" in name for name in state["model"])


def test_no_save_optim_keeps_the_model_and_nothing_to_go_on_from(words, tmp_path, capsys):
    words = [*words, "--no-save-optim", "--lr-decay-iters", "4"]
    output, said = run(words, capsys)
    assert not (tmp_path / "run" / "checkpoints").exists() and (tmp_path / "run" / "model").is_dir()
    model = tmp_path / "run" / "model"
    assert f"saving checkpoint at iteration       2 to {model} in hf format" in output and "can't be continued" in said
    assert cli.run_entry("posttrain_gpt.py", [*words, "--train-iters", "6"]) == 2
    assert "no checkpoint to go on from" in capsys.readouterr().err


def test_tensorboard_tags_by_flag(words, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def tags(name, *more):
        words[words.index("--save") + 1] = str(tmp_path / name)
        run([*words, "--tensorboard-dir", str(tmp_path / f"{name}-events"), *more], capsys)
        return EventAccumulator(str(tmp_path / f"{name}-events")).Reload()

    plain = tags("plain")
    twice = {"lm loss", "grad-norm", "learning-rate", "loss-scale"}
    assert set(plain.Tags()["scalars"]) == {*twice, *(f"{t} vs samples" for t in twice), "tokens per second"}
    assert [e.step for e in plain.Scalars("lm loss vs samples")] == [8, 16, 24, 32]
    assert plain.Scalars("learning-rate")[-1].value == pytest.approx(1e-4)
    flags = "--log-timers-to-tensorboard --log-batch-size-to-tensorboard --log-memory-to-tensorboard "
    flags += "--log-world-size-to-tensorboard --log-validation-ppl-to-tensorboard --no-log-loss-scale-to-tensorboard "
    flags += "--no-log-learnig-rate-to-tensorboard --tensorboard-log-interval 2 --split 80,20,0 --eval-iters 1 --eval-interval 2"
    full = tags("full", *flags.split())
    assert "learning-rate" not in full.Tags()["scalars"] and "loss-scale" not in full.Tags()["scalars"]
    assert [e.step for e in full.Scalars("lm loss")] == [2, 4] and full.Scalars("batch-size")[0].value == 8
    for tag in (
        "iteration-time",
        "throughput",
        "mem-max-allocated-bytes",
        "world-size",
        "lm loss validation ppl vs samples",
    ):
        assert full.Scalars(tag)


def test_validation_lines(words, capsys):
    output, _ = run([*words, "--split", "80,10,10", "--eval-iters", "1", "--eval-interval", "2"], capsys)
    for where in ("iteration 2", "iteration 4 on validation set", "iteration 4 on test set"):
        (line,) = re.findall(rf"^( validation loss at {where} \| .*)$", output, flags=re.MULTILINE)
        assert re.fullmatch(rf" validation loss at {where} \| lm loss value: \d\.\d{{6}}E\+00 \| lm loss PPL: \d\.\d{{6}}E\+\d\d \| ",
                            line)  # fmt: skip
        assert f"{'-' * len(line)}\n{line}\n{'-' * len(line)}\n" in output


def test_micro_batches_of_two_weigh_as_megatrons(words, tmp_path, capsys):
    """The first loss is the mean over pairs of neighbours in the order, each by transformers' own padded loss."""
    run([*words, "--micro-batch-size", "2", "--no-shuffle"], capsys)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    model = load_model(words[words.index("--load") + 1], "fp32").model
    losses = []
    for pair in range(4):
        two = [sample(i, 5 + i % 9) for i in (2 * pair, 2 * pair + 1)]
        longest = max(len(ids) for ids, _ in two)
        ids = torch.tensor([[*map(int, i), *[0] * (longest - len(i))] for i, _ in two])
        labels = torch.tensor([[*map(int, t), *[-100] * (longest - len(t))] for _, t in two])
        losses.append(model(ids, labels=labels).loss.item())
    assert first == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_entry_files_are_thin():
    root = Path(__file__).parents[2]
    for name in "preprocess_data convert_ckpt convert_ckpt_v2 posttrain_gpt inference evaluation".split():
        code = [line for line in (root / f"{name}.py").read_text().splitlines()[1:] if line.strip()]
        assert code == ["import sys", "from tuneval.cli import run_entry", "sys.exit(run_entry(__file__))"]


def adapter_of(run_folder):
    return load_file(run_folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("form", ["run", "mcore"])
def test_an_adapter_goes_on_from_either_form(words, tmp_path, capsys, form):
    """4 steps at a constant rate, then none at rate 0: the adapter comes back as it was, with its settings."""
    run([*words, *LORA], capsys)
    earlier = tmp_path / "run" if form == "run" else tmp_path / "run" / "mcore"
    words[words.index("--save") + 1] = str(tmp_path / "next")
    still = ["--lora-load", str(earlier), "--lr", "0", "--min-lr", "0", "--train-iters", "1"]
    run([*words, *still], capsys)
    before, after = adapter_of(tmp_path / "run"), adapter_of(tmp_path / "next")
    assert list(before) == list(after) and all(torch.equal(before[n], after[n]) for n in before)
    record = json.loads((tmp_path / "next" / "config.json").read_text())["config"]
    assert (record["lora_r"], record["lora_alpha"], record["lora_shared_a"]) == (3, 6.0, True)
    words[words.index("--save") + 1] = str(tmp_path / "moved")
    run([*words, "--lora-load", str(earlier)], capsys)
    assert any(not torch.equal(before[n], t) for n, t in adapter_of(tmp_path / "moved").items())


def test_other_settings_than_the_adapters_are_refused(words, tmp_path, capsys):
    run([*words, *LORA], capsys)
    words[words.index("--save") + 1] = str(tmp_path / "next")
    more = [
        "--lora-load",
        str(tmp_path / "run"),
        "--lora-r",
        "4",
        "--lora-alpha",
        "5",
        "--lora-target-modules",
        "linear_qkv",
    ]
    assert cli.run_entry("posttrain_gpt.py", [*words, *more]) == 2
    error = capsys.readouterr().err
    for text in (
        "3 problems",
        "--lora-r 4: ",
        "trained with 3",
        "--lora-alpha 5.0: ",
        "--lora-target-modules linear_qkv: ",
    ):
        assert text in error

"""MindSpeed-LLM's command lines become ours: its defaults, its losses, its traps told."""

from __future__ import annotations

import json
import os

import pytest

from tuneval.config import flags, schema
from tuneval.config.mindspeed import ENTRIES, translate
from tuneval.errors import UserError

TUNE = "--load m --data-path d --save r --micro-batch-size 1 --global-batch-size 8 --train-iters 4 --lr 1e-5 --bf16".split()


def read(entry: str, *words: str):
    """(configuration, everything said)."""
    ours = translate(entry, list(words))
    parsed = flags.parse(getattr(schema, f"{ours.command.capitalize()}Config"), ours.words, entry)
    return parsed.config, "\n".join([*ours.notices, *parsed.notices])


def tune(*words: str):
    return read("posttrain_gpt.py", *TUNE, *words)


def without(*names: str) -> list[str]:
    words = list(TUNE)
    for name in names:
        at = words.index(name)
        del words[at : at + (1 if name == "--bf16" else 2)]
    return words


# --- posttrain_gpt.py ---


def test_defaults_are_theirs():
    config, _ = tune()
    assert (config.data.split, config.log.log_interval, config.log.eval_interval) == ("969,30,1", 100, 1000)
    assert (config.log.eval_iters, config.optim.lr_decay_style, config.save.ckpt_format) == (100, "linear", "torch")
    assert config.log.log_format == "megatron" and not config.lora.enabled
    config, _ = tune("--split", "100,0,0", "--log-interval", "1")
    assert (config.data.split, config.log.log_interval) == ("100,0,0", 1)


def test_without_a_number_type_it_is_fp32_as_there():
    config, said = read("posttrain_gpt.py", *without("--bf16"))
    assert config.precision.dtype == "fp32" and "--bf16 halves the memory" in said
    assert tune()[0].precision.dtype == "bf16"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), ("micro-batch", 1)),
        (("--micro-batch-size", "4"), ("micro-batch", 4)),
        (("--loss-reduction", "sample"), ("sample", None)),
        (("--micro-batch-size", "4", "--calculate-per-token-loss"), ("token", None)),
        (("--loss-reduction", "token"), ("token", None)),
    ],
)
def test_the_micro_batch_size_decides_the_loss(more, expected):
    config, said = tune(*more)
    assert (config.batch.loss_reduction, config.batch.micro_batch_size) == expected
    assert f"--loss-reduction {expected[0]}" in said
    assert ("--micro-batch-size: no effect" in said) == (expected[1] is None)


def test_the_global_batch_size_is_that_of_all_replicas(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    words = without("--global-batch-size", "--micro-batch-size")
    layout = ["--tensor-model-parallel-size", "2", "--micro-batch-size", "3"]
    assert read("posttrain_gpt.py", *words, *layout)[0].batch.global_batch_size == 12
    with pytest.raises(UserError, match="--micro-batch-size: give it"):
        read("posttrain_gpt.py", *words)


def test_lora_is_on_by_its_targets_alone_and_shares_a():
    targets = ("--lora-target-modules", "linear_qkv", "linear_fc1")
    config, _ = tune(*targets)
    assert (config.lora.rank, config.lora.alpha, config.lora.lora_shared_a) == (16, 32.0, True)
    assert tune(*targets, "--lora-r", "8", "--lora-alpha", "16")[0].lora.alpha == 16
    with pytest.raises(UserError, match="--lora-r: MindSpeed-LLM turns LoRA on by --lora-target-modules alone"):
        tune("--lora-r", "8")


def test_the_five_flag_trap_is_told():
    five = "--finetune --no-load-optim --no-load-rng --no-save-optim --no-save-rng".split()
    config, said = tune(*five)
    assert config.save.finetune and config.save.no_save_optim
    assert f"{' '.join(five)}: a run with these can't be continued after a stop" in said
    config, said = tune()
    assert not config.save.no_save_optim and "can't be continued" not in said
    assert "can't be continued" not in tune("--no-load-optim", "--no-load-rng")[1]


def test_both_meanings_of_variable_seq_lengths():
    _, said = tune("--variable-seq-lengths")
    assert "2.0 to 2.2" in said and "pad to the longest sample only" in said
    for later in ("--no-pad-to-seq-lengths", "--reset-attention-mask"):
        _, said = tune("--variable-seq-lengths", later)
        assert f"2.3 and later mean it ({later} is there)" in said
    assert "--variable-seq-lengths" not in tune("--no-pad-to-seq-lengths")[1]


def test_weights_of_data_sets_are_refused():
    for given in (["0.3", "a", "0.7", "b"], ["1", "a"]):
        with pytest.raises(UserError, match=f"--data-path {' '.join(given)}: begins with a weight"):
            tune("--data-path", *given)
    assert tune("--data-path", "2024")[0].data.data_path.name == "2024"
    config, said = tune("--data-path", "a", "b")
    assert config.data.data_path.name == "a" and "b not, as in MindSpeed-LLM's sft" in said


def test_a_run_loaded_from_its_own_folder_is_continued(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": {"load": "models/base"}}))
    own = ["--load", str(run), "--save", str(run)]
    config, said = read("posttrain_gpt.py", *without("--load", "--save"), *own)
    assert str(config.model.load) == "models/base" and "is continued" in said
    lora = ("--lora-target-modules", "linear_qkv", "--lora-load", str(run / "mcore"))
    config, said = read("posttrain_gpt.py", *without("--save"), "--save", str(run), *lora)
    assert config.lora.lora_load is None and config.lora.lora_shared_a and "began from a fresh adapter" in said
    assert read("posttrain_gpt.py", *without("--load", "--save"), *own, "--finetune")[0].model.load == run


def test_no_save_and_several_prefixes_are_told(monkeypatch):
    config, said = read("posttrain_gpt.py", *without("--save"))
    assert str(config.save.save).startswith("runs/posttrain-") and "would keep nothing" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    config, _ = read("posttrain_gpt.py", *without("--save"))
    assert str(config.save.save).endswith(f"-{os.getppid()}")  # a second apart, two processes still agree
    config, said = tune("--data-path", "one", "two")
    assert str(config.data.data_path) == "one" and "two not, as in MindSpeed-LLM" in said


def test_records_instead_of_token_files_are_told(tmp_path):
    (tmp_path / "alpaca.json").write_text("[]")
    with pytest.raises(UserError, match=r"alpaca.json: a file of records; .* preprocess_data.py --input"):
        read("posttrain_gpt.py", *without("--data-path"), "--data-path", str(tmp_path / "alpaca.json"))


def test_lengths_are_held_against_the_stated_limit():
    with pytest.raises(UserError, match="--seq-length 4096: above --max-position-embeddings 2048"):
        tune("--seq-length", "4096", "--max-position-embeddings", "2048")


def test_a_flag_given_twice_counts_as_the_last_and_the_launcher_s_rank_is_dropped():
    config, _ = read("posttrain_gpt.py", "--local-rank=0", *TUNE, "--train-iters", "9", "--local_rank", "0")
    assert config.batch.train_iters == 9


def test_tensorboard_flags_with_megatrons_spelling():
    config, _ = tune("--no-log-learnig-rate-to-tensorboard", "--log-timers-to-tensorboard")
    assert config.log.no_log_learning_rate_to_tensorboard and config.log.log_timers_to_tensorboard


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_asks_for_nothing_else(entry):
    for word in ("-h", "--help"):
        assert translate(entry, ["--load", "m", word]).words == ["--help"]


# --- the converters ---

V1 = "--use-mcore-models --model-type GPT --load-dir in --save-dir {} --load-model-type {} --save-model-type {}"


def test_version_1_to_megatron():
    words = V1.format("out", "hf", "mg").split()
    config, said = read("convert_ckpt.py", *words, "--target-tensor-parallel-size", "8", "--params-dtype", "bf16")
    assert (str(config.load), str(config.save), config.to) == ("in", "out", "mcore")
    assert (config.target_tensor_parallel_size, config.params_dtype) == (8, "bf16") and "fp16" not in said
    assert "would make them fp16" in read("convert_ckpt.py", *words)[1]


def test_version_1_to_hugging_face_writes_mg2hf_and_takes_its_config(tmp_path):
    words = V1.format(tmp_path, "mg", "hf").split()
    config, said = read("convert_ckpt.py", *words, "--target-tensor-parallel-size", "1")
    assert (config.save, config.hf_cfg_dir, config.to) == (tmp_path / "mg2hf", None, "hf") and "mg2hf" in said
    (tmp_path / "config.json").write_text("{}")
    assert read("convert_ckpt.py", *words)[0].hf_cfg_dir == tmp_path


def test_version_2():
    words = "--load-model-type mg --save-model-type hf --load-dir in --save-dir out --hf-cfg-dir cfg --lora-load l --lora-r 8"
    config, _ = read("convert_ckpt_v2.py", *words.split())
    assert (str(config.save), str(config.hf_cfg_dir), config.lora.lora_r) == ("out", "cfg", 8)


def test_converters_say_what_is_missing():
    with pytest.raises(
        UserError, match=r"3 problems:(.|\n)*--load-model-type optim(.|\n)*--save-model-type (.|\n)*--save-dir"
    ):
        read("convert_ckpt.py", "--load-model-type", "optim", "--load-dir", "in")


def test_the_stated_type_is_held_against_the_folder(tmp_path):
    for stated, mark in (("mg", "model.safetensors"), ("hf", "latest_checkpointed_iteration.txt")):
        folder = tmp_path / stated
        folder.mkdir()
        words = f"--load-model-type {stated} --save-model-type hf --load-dir {folder} --save-dir out".split()
        read("convert_ckpt_v2.py", *words)
        (folder / mark).write_text("")
        with pytest.raises(UserError, match=f"--load-model-type {stated}: .* of the other type"):
            read("convert_ckpt_v2.py", *words)


# --- inference.py, evaluation.py, preprocess_data.py ---


def test_inference_does_everything_where_no_task_is_named():
    config, said = read("inference.py", "--load", "m")
    assert config.task == ("greedy", "do_sample", "beam_search", "beam_search_with_sampling", "chat")
    assert (config.dtype, config.max_new_tokens, config.top_k, config.top_p) == ("fp32", 128, 50, 0.95)
    assert (config.temperature, config.history_turns) == (0.7, 3) and "fp32, as in MindSpeed-LLM" in said
    words = ("--load", "m", "--task", "greedy", "chat", "--fp16", "--micro-batch-size", "1")
    config, _ = read("inference.py", *words)
    assert (config.task, config.dtype) == (("greedy", "chat"), "fp16")


@pytest.mark.parametrize("entry", ["inference.py", "evaluation.py"])
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--fp16 --bf16", "--bf16 --fp16: give one of them"),
        ("--bf16 --dtype fp32", "--bf16 --dtype: give one of them"),
    ],
)
def test_of_two_number_types_none_is_passed_over(entry, given, told):
    with pytest.raises(UserError, match=told):
        read(entry, *f"--load m --task ceval --task-data-path d {given}".split())


def test_no_temperature_names_the_task_that_decodes_so():
    from tuneval.commands.inference_flags import check

    with pytest.raises(UserError, match=r"--temperature 0\.0: must be positive; .*--task greedy"):
        check(read("inference.py", "--load", ".", "--task", "do_sample", "--temperature", "0")[0])


def test_a_number_type_in_our_spelling_is_not_told_as_fp32():
    config, said = read("inference.py", "--load", "m", "--dtype", "bf16")
    assert config.dtype == "bf16" and "fp32" not in said


@pytest.mark.parametrize(
    ("more", "style"),
    [
        ("--no-chat-template", "mindspeed_direct"),
        ("--no-chat-template --alternative-prompt", "mindspeed_alt"),
        ("--prompt-type qwen", "mindspeed_template"),
        ("--prompt-type qwen --eval-language zh", "mindspeed_template_zh"),
        ("--hf-chat-template --eval-language zh", "mindspeed_template_zh"),
        ("--style official", "official"),
    ],
)
def test_ways_to_ask_ceval(more, style):
    config, said = read(
        "evaluation.py", *f"--load m --task ceval --task-data-path ceval/val --max-new-tokens 2 {more}".split()
    )
    assert (config.style, str(config.task_data_path), config.split) == (style, "ceval", "val")
    assert "collapses" not in said


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("--task ceval --prompt-type qwen --alternative-prompt", "--alternative-prompt: no effect, --prompt-type asks"),
        ("--task ceval --no-chat-template --eval-language zh", "--eval-language: no effect, C-Eval without a template"),
        ("--task ceval --style official --eval-language zh", "--eval-language: no effect, --style official says how"),
        ("--task cmmlu --alternative-prompt --eval-language zh", "--alternative-prompt, --eval-language: no effect, the exam"),
    ],
)  # fmt: skip
def test_what_says_nothing_about_asking_is_told(more, told):
    assert told in read("evaluation.py", *f"--load m --task-data-path d {more}".split())[1]


def test_evaluation_tells_the_template_trap_and_the_sample():
    config, said = read("evaluation.py", *"--load m --task ceval --task-data-path e --max-eval-samples 7".split())
    assert config.limit == 7 and "its score collapses" in said and "random sample" in said
    assert config.prompt_type is None and config.allow_unparsed


def test_flags_of_one_entry_are_known_to_every_entry():
    _, said = tune("--task", "ceval", "--max-new-tokens", "1", "--no-chat-template", "--temperature", "0.7")
    assert "--max-new-tokens, --no-chat-template, --task, --temperature: no effect, belongs to generation" in said
    more = "--finetune --data-path d --split 100,0,0 --lr 1e-5 --train-iters 5 --save s --log-interval 1"
    _, said = read("inference.py", *f"--load m {more}".split())
    assert (
        "--finetune, --data-path, --split, --lr, --train-iters, --save, --log-interval: no effect, belongs to" in said
    )
    config, said = read("evaluation.py", *f"--load m --task ceval --task-data-path ceval/val {more}".split())
    assert config.split == "val" and "--split: no effect, it splits training data" in said and "--finetune" in said
    asking = "--task-data-path d --no-chat-template --alternative-prompt --eval-language zh --max-eval-samples 3"
    _, said = read("inference.py", *f"--load m {asking} --evaluation-batch-size 4".split())
    for flag in (
        "--task-data-path",
        "--no-chat-template",
        "--alternative-prompt",
        "--eval-language",
        "--max-eval-samples",
    ):
        assert flag in said.partition(": no effect, belongs to evaluation")[0]
    _, said = read("evaluation.py", *"--load m --task ceval --task-data-path d --history-turns 3".split())
    assert "--history-turns: no effect, belongs to chat" in said


def test_other_exams_and_those_that_are_not_built_in():
    config, said = read(
        "evaluation.py", *"--load m --task mmlu_ppl --task-data-path mmlu/test --no-chat-template".split()
    )
    assert (config.task, config.style, config.split) == ("mmlu", None, "test")
    assert "usual style, scored by logits" in said
    config, said = read("evaluation.py", *"--load m --task gsm8k --task-data-path d --max-new-tokens 200".split())
    assert (config.allow_unparsed, config.max_new_tokens) == (True, 200) and "unreadable ones wrong" in said
    with pytest.raises(UserError, match="lm_eval:humaneval"):
        read("evaluation.py", *"--load m --task human_eval --task-data-path d".split())
    with pytest.raises(UserError, match="give one of mmlu_ppl, ceval"):
        read("evaluation.py", *"--load m --task cevall --task-data-path d".split())
    with pytest.raises(UserError, match="--task-data-path: give the exam's folder"):
        read("evaluation.py", *"--load m --task ceval".split())


def test_preprocess_tells_what_its_thinking_is():
    words = "--input i --tokenizer-name-or-path t --output-prefix p --enable-thinking true --handler-name".split()
    config, said = read("preprocess_data.py", *words, "")
    assert config.handler_name == "auto" and "--enable-thinking true" in said and "no --prompt-type" in said
    assert "no --prompt-type" not in read("preprocess_data.py", *words[:-1], "--prompt-type", "qwen")[1]
    assert "--enable-thinking" not in read("preprocess_data.py", *words[:-3], "--enable-thinking", "false")[1]

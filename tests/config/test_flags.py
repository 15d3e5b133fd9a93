"""The command line: what acts, what is checked, what is said, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tuneval.config import flags, schema
from tuneval.config.fields import flat_types
from tuneval.errors import UserError

REQUIRED = "--load m --data-path d --save r".split()


def tune(*more: str) -> flags.Parsed:
    return flags.parse(schema.TuneConfig, [*REQUIRED, *more], "tuneval tune")


def test_megatron_spellings():
    config = tune(
        "--lr", "1.25e-6", "--lr_warmup_fraction=0.01", "--bf16", "--lora-target-modules", "linear_qkv", "linear_proj"
    ).config
    assert config.optim.lr == 1.25e-6
    assert config.optim.lr_warmup_fraction == 0.01
    assert config.precision.dtype == "bf16"
    assert config.lora.enabled and config.lora.rank == 16
    assert config.lora.lora_target_modules == ("linear_qkv", "linear_proj")


def test_unknown_flag_names_the_nearest():
    with pytest.raises(
        UserError,
        match=r"--learning-rat: unknown flag|--global-batch-sise: unknown flag; did you mean --global-batch-size\?",
    ):
        tune("--global-batch-sise", "8")


@pytest.mark.parametrize(
    ("config_type", "given", "meant"),
    [
        (schema.ConvertConfig, "--target-tp", "--target-tensor-parallel-size"),
        (schema.ConvertConfig, "--target-pp", "--target-pipeline-parallel-size"),
        (schema.TuneConfig, "--tp", "--tensor-model-parallel-size"),
        (schema.TuneConfig, "--pp-size", "--pipeline-model-parallel-size"),
        (schema.TuneConfig, "--mbs", "--micro-batch-size"),
        (schema.TuneConfig, "--gbs", "--global-batch-size"),
        (schema.TuneConfig, "--learning-rate", "--lr"),
        (schema.TuneConfig, "--num-train-epochs", "--train-epochs"),
        (schema.TuneConfig, "--output-dir", "--save"),
        (schema.TuneConfig, "--cutoff-len", "--seq-length"),
        (schema.EvaluateConfig, "--data", "--task-data-path"),
    ],
)
def test_what_everybody_calls_a_flag_is_known(config_type, given, meant):
    with pytest.raises(UserError) as error:
        flags.parse(config_type, [given, "1", "--no-such-flag"], "tuneval")
    assert f"{given}: unknown flag; did you mean {meant}?" in str(error.value)


def test_all_unknown_flags_at_once():
    with pytest.raises(UserError, match=r"2 problems:(.|\n)*--foo-bar(.|\n)*--context-parallel-size 2: give 1"):
        tune("--foo-bar", "--context-parallel-size", "2")


def test_flags_without_effect_say_why():
    assert tune(
        "--use-flash-attn", "--use-fused-swiglu", "--context-parallel-size", "1", "--use-fused-rmsnorm"
    ).notices == (
        "--use-flash-attn: no effect, the fastest attention of the device is always used",
        "--use-fused-swiglu, --use-fused-rmsnorm: no effect, kernels are chosen by torch",
    )


def test_what_is_not_done_here_is_an_error_with_a_way_out():
    with pytest.raises(
        UserError, match=r"--noop-layers 1,3: known from MindSpeed-LLM, but not done here: .*--num-layer-list"
    ):
        tune("--noop-layers", "1,3")


@pytest.mark.parametrize("size", ["tensor", "pipeline"])
def test_where_a_layout_is_written_its_flag_is_named(size):
    words = ["--load", "m", "--save", "s", "--to", "mcore", f"--{size}-model-parallel-size"]
    for config_type in (schema.ConvertConfig, schema.ExportConfig):
        assert flags.parse(config_type, [*words, "1"], "tuneval").notices == ()
        with pytest.raises(UserError, match=f"--{size}-model-parallel-size 2: .*--target-{size}-parallel-size is that"):
            flags.parse(config_type, [*words, "2"], "tuneval")


def test_a_seed_is_not_told_as_evaluations():
    words = ["--load", "m", "--save", "s", "--to", "mcore", "--seed", "1"]
    assert flags.parse(schema.ConvertConfig, words, "tuneval").notices == (
        "--seed: no effect, nothing is drawn at random here",
    )


def test_switches_take_no_value_and_lists_take_many():
    assert len(tune("--spec", "package.module", "layer_spec", "--use-flash-attn").notices) == 2
    with pytest.raises(UserError, match="stray: not a flag"):
        tune("--use-flash-attn", "stray")


def test_model_facts_are_held_against_the_model():
    facts = tune("--num-layers", "28", "--hidden-size", "896", "--rotary-base", "1000000").model_facts
    config = {"num_hidden_layers": 24, "hidden_size": 896, "rope_parameters": {"rope_theta": 1e6}}
    with pytest.raises(UserError, match=r"--num-layers 28: the model's num_hidden_layers is 24"):
        flags.check_model_facts(facts, config)
    flags.check_model_facts(facts, {**config, "num_hidden_layers": 28})


def test_a_padded_vocabulary_is_larger_than_the_models():
    for rows in ("32001", "32256"):
        flags.check_model_facts({"padded-vocab-size": rows}, {"vocab_size": 32001})
    for rows in ("32000", "320010", "many"):
        with pytest.raises(UserError, match="the model's vocab_size is 32001"):
            flags.check_model_facts({"padded-vocab-size": rows}, {"vocab_size": 32001})


QWEN = {"model_type": "qwen2", "tie_word_embeddings": True, "hidden_act": "silu", "rms_norm_eps": 1e-6}


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("--untie-embeddings-and-output-weights", "are tied"),
        ("--qk-layernorm", "does not normalise q and k"),
        ("--attention-dropout 0.1", "attention_dropout is 0.0"),
        ("--hidden-dropout 0.1", "hidden dropout is 0.0"),
        ("--normalization LayerNorm", "norm is RMSNorm"),
        ("--kv-channels 128", "head_dim is 64"),
    ],
)
def test_every_fact_can_be_contradicted(words, wrong):
    facts = tune(*words.split()).model_facts
    with pytest.raises(UserError, match=wrong):
        flags.check_model_facts(facts, {**QWEN, "hidden_size": 896, "num_attention_heads": 14})


def test_numbers_are_compared_as_fp32_holds_them():
    flags.check_model_facts({"norm-epsilon": "1e-6"}, {"rms_norm_eps": 9.999999974752427e-07})
    with pytest.raises(UserError, match="rms_norm_eps is 1e-05"):
        flags.check_model_facts({"norm-epsilon": "1e-6"}, {"rms_norm_eps": 1e-5})


def test_facts_that_hold_pass():
    words = "--add-qkv-bias --disable-bias-linear --swiglu --attention-dropout 0 --normalization RMSNorm --norm-epsilon 1e-06"
    flags.check_model_facts(tune(*words.split()).model_facts, QWEN)
    with pytest.raises(UserError, match="q, k and v have no bias"):
        flags.check_model_facts({"add-qkv-bias": ""}, {**QWEN, "model_type": "qwen3"})


def test_config_file_gives_defaults_and_flags_win(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 2e-5\nglobal_batch_size: 4\nfp32: true\nlora_target_modules: [q_proj, v_proj]\n")
    config = tune("--config", str(file), "--global-batch-size", "8").config
    assert (config.optim.lr, config.batch.global_batch_size, config.precision.dtype) == (2e-5, 8, "fp32")
    assert config.lora.lora_target_modules == ("q_proj", "v_proj")


def test_config_file_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        tune("--config", str(tmp_path / "missing.yaml"))
    file = tmp_path / "list.yaml"
    file.write_text("- a\n")
    with pytest.raises(UserError, match="must hold `flag: value` lines"):
        tune("--config", str(file))
    file.write_text("lerning_rate: 1\n")
    with pytest.raises(UserError, match="--lerning-rate: unknown flag"):
        tune("--config", str(file))


def test_the_resolved_configuration_can_be_given_back(tmp_path):
    import yaml

    config = tune("--lr", "3e-4", "--lora-r", "8", "--fp32").config
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(flags.to_dict(config)))
    assert flags.parse(schema.TuneConfig, ["--config", str(file)], "tuneval tune").config == config
    file.write_text(
        json.dumps({"schema_version": 1, "config": flags.to_dict(config), "machine": {}})
    )  # as in a run's folder
    again = flags.parse(schema.TuneConfig, ["--config", str(file), "--save", "again"], "tuneval tune").config
    assert again == dataclasses.replace(config, save=dataclasses.replace(config.save, save=Path("again")))


def test_flags_of_a_command_are_unique():
    for kind in vars(schema).values():
        if dataclasses.is_dataclass(kind):
            flat_types(kind)
    twice = dataclasses.make_dataclass("Twice", [("lora", schema.LoraConfig), ("again", schema.LoraConfig)])
    with pytest.raises(AssertionError, match="again twice"):
        flat_types(twice)


def test_preprocess_flags_without_effect_say_why():
    words = "--input a.json --tokenizer-name-or-path t --output-prefix p --n-subs 2 --overwrite-cache --json-keys text"
    parsed = flags.parse(schema.PreprocessConfig, words.split(), "tuneval preprocess")
    assert [n.split(":")[0] for n in parsed.notices] == ["--n-subs", "--overwrite-cache", "--json-keys"]


def test_a_value_may_look_like_a_flag(tmp_path):
    words = "--load m --prompt".split()
    for text in ("--x", "-x", "-5", "- a list", "a=b"):
        assert flags.parse(schema.GenerateConfig, [*words[:-1], f"--prompt={text}"], "p").config.prompt == text
        file = tmp_path / "run.yaml"
        file.write_text(f"load: m\nprompt: '{text}'\n")
        assert flags.parse(schema.GenerateConfig, ["--config", str(file)], "p").config.prompt == text
    with pytest.raises(UserError, match="--foo: unknown flag"):
        flags.parse(schema.GenerateConfig, ["--load", "m", "--foo=-1"], "p")


def test_facts_that_are_no_numbers_are_told():
    facts = tune("--num-layers", "abc", "--hidden-size", "nan", "--ffn-hidden-size", "-8").model_facts
    config = {"num_hidden_layers": 24, "hidden_size": [896], "intermediate_size": 10**400}
    with pytest.raises(UserError, match=r"3 problems(.|\n)*--num-layers abc: the model's num_hidden_layers is 24"):
        flags.check_model_facts(facts, config)


def test_odd_config_files_are_told(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xfe\x00lr")
    with pytest.raises(UserError, match="not valid YAML"):
        tune("--config", str(file))
    file.write_text("[" * 5000)
    with pytest.raises(UserError, match="not valid YAML"):
        tune("--config", str(file))
    file.write_text("lr: 1\n")
    with pytest.raises(UserError, match="given twice"):
        tune("--config", str(file), "--config", str(file))


def test_switches_are_off_unless_given():
    """`flag: false` in a file must mean what it says."""
    for section in vars(schema).values():
        if dataclasses.is_dataclass(section):
            assert [f.name for f in dataclasses.fields(section) if f.default is True] == [], section


def test_paths_may_begin_with_the_home_folder_where_no_shell_replaces_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tune.yaml").write_text("save: ~/run\nlora_load: ~nobody-here/a\n", encoding="utf-8")
    words = ["--load=~/m", "--data-path", "~", "--tokenizer-name-or-path=~/t", "--config", f"{tmp_path}/tune.yaml"]
    config = flags.parse(schema.TuneConfig, words, "tuneval tune").config
    assert (config.model.load, config.data.data_path) == (tmp_path / "m", tmp_path)
    assert (config.save.save, config.model.tokenizer_name_or_path) == (tmp_path / "run", str(tmp_path / "t"))
    assert str(config.lora.lora_load) == "~nobody-here/a"
    words = ["--input", "x", "--tokenizer-name-or-path", "~", "--output-prefix=~/p/"]
    assert flags.parse(schema.PreprocessConfig, words, "tuneval preprocess").config.output_prefix == f"{tmp_path}/p/"
    runs = flags.parse(schema.ReportConfig, ["--runs", "~/a", "b"], "tuneval report").config.runs
    assert [str(run) for run in runs] == [str(tmp_path / "a"), "b"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--lr abc", "--lr abc: give a number"),
        ("--train-iters 1e3", "--train-iters 1e3: give a whole number"),
        ("--lr-decay-style cosin", "--lr-decay-style cosin: give constant or linear or cosine"),
        ("--bf16 true", "--bf16 true: takes no value"),
        ("--lr --bf16", "--lr: give a value"),
        ("--data-path my data", "--data-path my data: give one value; quotes hold words together"),
        ("-lr 1e-4", "-lr: a flag begins with two plain hyphens, --lr"),
        ("–lr 1e-4", "–lr: a flag begins with two plain hyphens, --lr"),
        ("—global_batch_size=8", "—global_batch_size=8: a flag begins with two plain hyphens, --global-batch-size"),
    ],
)
def test_what_a_flag_does_not_take_is_told_in_one_line(words, told):
    with pytest.raises(UserError) as error:
        tune(*words.split())
    assert str(error.value).startswith(told)


def test_what_is_missing_is_told_with_what_is_wrong():
    words = "--model m --data d --save s --lr abc".split()
    with pytest.raises(UserError) as error:
        flags.parse(schema.TuneConfig, words, "tuneval tune")
    for told in (
        "4 problems",
        "--lr abc: give a number",
        "--model: unknown flag; did you mean --load?",
        "--data: unknown flag; did you mean --data-path?",
        "--load, --data-path: needed; tuneval tune --help says what for",
    ):
        assert told in str(error.value)


def test_of_a_flag_given_twice_the_last_counts():
    assert tune("--lr", "1", "--lora-target-modules", "a", "--lr", "2").config.optim.lr == 2
    assert tune("--lr", "None", "--lora-target-modules").config.optim.lr is None

"""The example scripts: each becomes a configuration, describes its own model, and the 0.5B set runs from end to end."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneval.config import flags, schema
from tuneval.config.mindspeed import translate
from tuneval.config.schema import ParallelConfig
from tuneval.errors import Problems
from tuneval.parallel.mesh import make_layout

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "mcore"
SCRIPTS = sorted(EXAMPLES.rglob("*.sh"))
LAB = """
ckpt_convert_qwen25_hf2mcore ckpt_convert_qwen25_mcore2hf data_convert_qwen25_instruction tune_qwen25_7b_full_ptd
tune_qwen25_7b_lora_ptd generate_qwen25_7b_ptd generate_qwen25_7b_lora_ptd evaluate_qwen25_7b_ptd
evaluate_qwen25_7b_lora_ptd
""".split()
SAY_ARGUMENTS = f"""#!{sys.executable}
import json, sys
print("ARGUMENTS " + json.dumps(sys.argv[1:]))
"""


def commands_of(script: Path, folder: Path, **variables: str) -> list[list[str]]:
    """What a script starts: each `python` and `torchrun` of it, as words."""
    folder.mkdir(exist_ok=True)
    for name in ("python", "torchrun"):
        (folder / name).write_text(SAY_ARGUMENTS)
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    return [json.loads(line.partition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("ARGUMENTS ")]


def parsed(words: list[str]) -> tuple[list[str], object, flags.Parsed]:
    """(the launcher's words, the configuration, all that was parsed) of one started command."""
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert Path(words[at]).samefile(ROOT / Path(words[at]).name)
    ours = translate(Path(words[at]).name, words[at + 1 :])
    found = flags.parse(getattr(schema, f"{ours.command.capitalize()}Config"), ours.words, words[at])
    return words[:at], found.config, found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: f"{s.parent.name}/{s.stem}")
def test_every_script_becomes_a_configuration_of_its_model(script, tmp_path):
    (words,) = commands_of(script, tmp_path / "bin")
    launcher, config, found = parsed(words)
    if found.model_facts:
        flags.check_model_facts(found.model_facts, config_of(script))
    if launcher:
        parallel = config.parallel if "tune" in script.stem else ParallelConfig(**vars(config.shard))
        processes, problems = int(launcher[launcher.index("--nproc_per_node") + 1]), Problems()
        layout = make_layout(parallel, SimpleNamespace(**config_of(script)), processes, problems)
        problems.raise_if_any()
        assert (layout.tensor, layout.pipeline, layout.data) == ((2, 1, 1) if "0point5b" in script.stem else (8, 1, 1))
    if "tune" in script.stem:
        assert config.lora.enabled is ("lora" in script.stem)
        assert (tmp_path / "bin" / "logs").is_dir()


def config_of(script: Path) -> dict:
    """The published model's config."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    common = {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": 1e6}
    if script.parent.name == "llama3":
        common = {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            "rope_theta": 5e5,
        }
        return LlamaConfig(
            num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, **common,
            num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False).to_dict()  # fmt: skip
    if script.parent.name == "qwen3":
        return Qwen3Config(
            num_hidden_layers=36, hidden_size=4096, intermediate_size=12288, num_attention_heads=32, head_dim=128, **common,
            num_key_value_heads=8, vocab_size=151936, tie_word_embeddings=False).to_dict()  # fmt: skip
    sizes = (
        (24, 896, 4864, 14, 2, 151936, True) if "0point5b" in script.stem else (28, 3584, 18944, 28, 4, 152064, False)
    )
    names = "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads vocab_size"
    return Qwen2Config(**dict(zip([*names.split(), "tie_word_embeddings"], sizes)), **common).to_dict()


def test_the_labs_names_are_there_and_both_spellings_of_the_folder():
    for name in LAB:
        assert (EXAMPLES / "qwen25" / f"{name}.sh").is_file()
        assert (ROOT / "example" / "mcore" / "qwen25" / f"{name}.sh").samefile(EXAMPLES / "qwen25" / f"{name}.sh")
    for folder, count in (("qwen25", 18), ("qwen3", 9), ("llama3", 9)):
        assert len(list((EXAMPLES / folder).glob("*.sh"))) == count


def test_every_variable_can_be_set_from_outside(tmp_path):
    script = EXAMPLES / "qwen25" / "tune_qwen25_0point5b_lora_ptd.sh"
    names = {"TP": "1", "NPROC_PER_NODE": "4", "LORA_R": "32", "TRAIN_ITERS": "7", "CKPT_SAVE_DIR": "a b", "PRECISION": "--fp32",
             "MODEL_ARGS": "--num-layers 4", "EXTRA_ARGS": "--lora-ckpt-filter", "LOG": "own/x.log"}  # fmt: skip
    (words,) = commands_of(script, tmp_path / "bin", **names)
    launcher, config, found = parsed(words)
    assert launcher[launcher.index("--nproc_per_node") + 1] == "4" and config.parallel.tensor_model_parallel_size == 1
    assert (config.lora.rank, config.batch.train_iters, str(config.save.save)) == (32, 7, "a b")
    assert config.precision.dtype == "fp32" and config.lora.lora_ckpt_filter and found.model_facts == {
        "num-layers": "4", "attention-dropout": "0.0", "hidden-dropout": "0.0"}  # fmt: skip
    assert (tmp_path / "bin" / "own" / "x.log").is_file()


TINY = "--num-layers 4 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 4 --group-query-attention " \
    "--num-query-groups 2 --add-qkv-bias --disable-bias-linear --swiglu --normalization RMSNorm --norm-epsilon 1e-6 " \
    "--position-embedding-type rope --rotary-base 1000000 --padded-vocab-size 2048"  # fmt: skip


def starter(folder: Path, **common: str):
    """Function (script, standard input, variables) -> its standard output; the script must end well."""
    settings = {
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **common,
    }

    def run(name: str, stdin: str = "", **variables: str) -> str:
        script = ROOT / "example" / "mcore" / "qwen25" / f"{name}.sh"
        done = subprocess.run(
            ["bash", str(script)],
            cwd=folder,
            env={**os.environ, **settings, **variables},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_0point5b_set_runs_from_end_to_end_on_the_embedded_model(tmp_path):
    """convert -> preprocess -> full -> LoRA -> generate -> evaluate -> convert back, by the scripts themselves."""
    assets = ROOT / "tuneval" / "assets"
    for file in (assets / "model").iterdir():
        (tmp_path / "hf").mkdir(exist_ok=True)
        (tmp_path / "hf" / file.name).write_bytes(file.read_bytes())
    run = starter(
        tmp_path, HF_DIR="hf", TOKENIZER_PATH="hf", CKPT_DIR="mcore", CKPT_LOAD_DIR="mcore", DATA_PATH="data/alpaca", TP="1",
        NPROC_PER_NODE="1", MODEL_ARGS=TINY, SEQ_LENGTH="512", TRAIN_ITERS="3", SAVE_INTERVAL="2", MAX_NEW_TOKENS="2",
        OMP_NUM_THREADS="1",
    )  # fmt: skip

    run("ckpt_convert_qwen25_0point5b_hf2mcore", MODEL_ARGS="--model-type-hf llama2 --add-qkv-bias")
    (tmp_path / "mcore" / "config.json").unlink()  # MindSpeed-LLM's own checkpoints carry none
    run(
        "data_convert_qwen25_0point5b_instruction",
        INPUT=str(assets / "records.jsonl"),
        MAP_KEYS="",
        OUTPUT_PREFIX="data/alpaca",
    )
    said = run("tune_qwen25_0point5b_full_ptd", CKPT_SAVE_DIR="full")
    assert (
        " loading checkpoint from mcore at iteration 1" in said
        and " iteration        3/       3 | consumed samples:" in said
    )
    run("tune_qwen25_0point5b_lora_ptd", CKPT_SAVE_DIR="lora")
    answer = run("generate_qwen25_0point5b_lora_ptd", "hi\nq\n", CHECKPOINT="mcore", CHECKPOINT_LORA="lora/mcore")
    assert "=============== Beam Search =================" in answer and answer.count("MindSpeed-LLM:") == 5
    run("generate_qwen25_0point5b_ptd", CHECKPOINT="full", TASK="greedy")
    exam = {"DATA_PATH": str(assets / "exam" / "val"), "MAX_NEW_TOKENS": "1"}
    run("evaluate_qwen25_0point5b_ptd", CHECKPOINT="full", **exam)
    assert "ceval acc = " in run(
        "evaluate_qwen25_0point5b_lora_ptd", CHECKPOINT="mcore", CHECKPOINT_LORA="lora", **exam
    )
    assert (tmp_path / "full" / "evaluation" / "ceval-mindspeed_direct" / "results.json").is_file()
    run("ckpt_convert_qwen25_0point5b_mcore2hf", CKPT_DIR="mcore", LORA_DIR="lora/mcore", MODEL_ARGS="")
    assert (tmp_path / "hf" / "mg2hf" / "model.safetensors").is_file()
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == [
        f"{what}_qwen25_0point5b{kind}.log" for what in ("evaluate", "generate") for kind in ("", "_lora")
    ] + ["tune_qwen25_0point5b_full.log", "tune_qwen25_0point5b_lora.log"]


@pytest.mark.real
def test_the_0point5b_set_runs_on_the_real_model(tmp_path, real_model, real_data):
    """At TP 2 on disk, at the TP of the variables in the processes; merged back, it is what the adapter computes."""
    from tuneval import cli

    (tmp_path / "hf").mkdir()
    for file in real_model.iterdir():
        (tmp_path / "hf" / file.name).symlink_to(file)
    with lzma.open(real_data / "alpaca-chinese-52k.json.xz", "rt", encoding="utf-8") as file:
        (tmp_path / "alpaca.json").write_text(json.dumps(json.load(file)[:64], ensure_ascii=False), encoding="utf-8")
    with zipfile.ZipFile(real_data / "ceval-exam.zip") as exam:
        exam.extractall(tmp_path / "ceval")
    run = starter(tmp_path, HF_DIR="hf", TOKENIZER_PATH="hf", CKPT_DIR="mcore", CKPT_LOAD_DIR="mcore")
    one = {"TP": "1", "NPROC_PER_NODE": "1", "SEQ_LENGTH": "1024", "GBS": "2"}
    run("ckpt_convert_qwen25_0point5b_hf2mcore")
    run("data_convert_qwen25_0point5b_instruction", INPUT="alpaca.json", OUTPUT_PREFIX="data/alpaca")
    said = run("tune_qwen25_0point5b_lora_ptd", CKPT_SAVE_DIR="lora", DATA_PATH="data/alpaca", TRAIN_ITERS="2", **one)
    assert " iteration        2/       2 | consumed samples:            4 |" in said
    answer = run("generate_qwen25_0point5b_lora_ptd", CHECKPOINT="mcore", CHECKPOINT_LORA="lora/mcore", TASK="greedy",
                 MAX_NEW_TOKENS="16", **one)  # fmt: skip
    assert "I'm just a computer program" in answer
    few = {"DATA_PATH": "ceval/val", "EXTRA_ARGS": "--max-eval-samples 2 --subjects law"}
    assert "ceval acc = " in run(
        "evaluate_qwen25_0point5b_lora_ptd", CHECKPOINT="mcore", CHECKPOINT_LORA="lora", **few, **one
    )
    run("ckpt_convert_qwen25_0point5b_mcore2hf", CKPT_DIR="lora/mcore")
    assert cli.main(["verify", str(tmp_path / "lora"), str(tmp_path / "hf" / "mg2hf")]) == 0

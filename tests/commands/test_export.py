"""`tuneval export`: what leaves a run folder is base + adapter, exactly as peft merges it."""

from __future__ import annotations

import json

import pytest
import torch

from tuneval.checkpoints.load import open_source
from tuneval.cli import main


@pytest.fixture
def run(tiny_folder, tmp_path):
    """(run folder with a LoRA adapter, peft's own merged model)."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny_folder("qwen2")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, lora_alpha=7, target_modules=["v_proj", "o_proj", "gate_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "run" / "adapter")
    record = {"prompt_type": "qwen", "base_model": str(base)}
    (tmp_path / "run" / "adapter" / "tuneval.json").write_text(json.dumps(record))
    return tmp_path / "run", model.merge_and_unload()


def export(load, save, to, *more):
    return main(["export", "--load", str(load), "--save", str(save), "--to", to, *map(str, more)])


def test_merged_folder_is_what_peft_merges(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, merged = run
    assert export(folder, tmp_path / "out", "hf") == 0
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, parameter in merged.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert json.loads((tmp_path / "out" / "tuneval.json").read_text())["prompt_type"] == "qwen"
    assert json.loads((tmp_path / "out" / "convert.json").read_text())["command"] == "export"


def test_shards(run, tmp_path):
    folder, merged = run
    parallel = ("--target-tensor-parallel-size", 2, "--target-pipeline-parallel-size", 2, "--num-layer-list", "3,1")
    assert export(folder, tmp_path / "out", "mcore", *parallel) == 0
    source = open_source(tmp_path / "out")
    assert all(torch.equal(source.read(n), p) for n, p in merged.named_parameters())


def test_adapter_is_what_peft_loads(run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, merged = run
    assert export(folder, tmp_path / "out", "peft") == 0
    base = json.loads((tmp_path / "out" / "tuneval.json").read_text())["base_model"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").merge_and_unload()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in merged.named_parameters())


def test_what_cannot_be_exported(run, tiny_folder, tmp_path, capsys):
    folder, _ = run
    assert export(tiny_folder("qwen2"), tmp_path / "out", "peft") == 2
    assert "not tuned with LoRA" in capsys.readouterr().err
    assert export(folder, folder, "peft") == 2
    assert export(folder, folder, "hf") == 2
    assert "would be replaced" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["hf", "peft", "mcore"])
def test_folders_without_a_result_are_told(run, tiny_folder, tmp_path, capsys, to):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints" / "step_0000002").mkdir(parents=True)
    (unfinished / "config.json").write_text("{}")
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "no checkpoint in it"),
        (tmp_path / "file", "is a file. Give the folder that holds it"),
        (unfinished, "a run that has not ended"),
    ):
        assert export(folder, tmp_path / "out", to) == 2
        assert words in capsys.readouterr().err
    tiny_folder(name="run/model")
    if to != "peft":
        assert export(run[0], tmp_path / "out", to) == 2
        assert "holds model and adapter. Name one: " in capsys.readouterr().err
        assert export(run[0] / "model", tmp_path / "out", to) == 0


def test_a_file_in_the_place_of_the_adapter_is_told(run, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert export(run[0], tmp_path / "out", "peft") == 2
    assert "is there already" in capsys.readouterr().err and (tmp_path / "out").read_text() == "mine"


def test_what_is_stated_of_an_adapter_is_held_against_it(run, tmp_path, capsys):
    assert export(run[0], tmp_path / "out", "hf", "--lora-r", 4, "--lora-alpha", 7) == 2
    assert "--lora-r 4: the adapter in" in capsys.readouterr().err
    assert export(run[0], tmp_path / "out", "hf", "--lora-r", 3, "--lora-alpha", 7) == 0
    assert export(run[0], tmp_path / "alone", "peft", "--lora-r", 4) == 2
    assert "--lora-r 4: the adapter in" in capsys.readouterr().err and not (tmp_path / "alone").exists()
    assert export(run[0], tmp_path / "alone", "peft", "--lora-r", 3) == 0

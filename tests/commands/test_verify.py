"""`tuneval verify` passes on equal checkpoints of any formats and names the tensor when one bit differs."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny_model

from tuneval.checkpoints.convert import to_mcore
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.load import open_source
from tuneval.cli import main


@pytest.fixture
def pair(tiny_folder, tmp_path):
    """A Hugging Face folder and the same model as shards."""
    folder = tiny_folder("qwen2", tie_word_embeddings=True)
    source = open_source(folder)
    to_mcore(source, tmp_path / "mcore", plan_layout(source.config, 2, 2, None))
    return folder, tmp_path / "mcore"


def verify(*words):
    return main(["verify", *map(str, words)])


def test_equal_in_two_formats(pair, capsys):
    assert verify(*pair) == 0
    said = capsys.readouterr().out
    assert "50 of 50 bit-identical" in said and "largest difference 0" in said and "NOT EQUAL" not in said


def test_one_flipped_bit_is_named(pair, capsys):
    folder, shards = pair
    file = shards / "iter_0000001/mp_rank_01_001/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    weight = state["model"]["decoder.layers.1.mlp.linear_fc1.weight"]
    weight.view(torch.int32)[23, 7] ^= 1  # the last bit of one number: rank 1's row 23 is row 3 of its up, 23 of all
    torch.save(state, file)
    assert verify(folder, shards) == 1
    said = capsys.readouterr().out
    assert "49 of 50 bit-identical" in said and "NOT EQUAL" in said
    assert "model.layers.3.mlp.up_proj.weight: 1 of 1920 elements differ, the first at [23, 7]" in said


def test_a_minus_zero_and_a_nan(tmp_path, capsys):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[:2] = torch.tensor([0.0, float("nan")])
    model.save_pretrained(tmp_path / "a")
    assert verify(tmp_path / "a", tmp_path / "a", "--no-logits") == 0
    with torch.no_grad():
        model.model.norm.weight[0] = -0.0
    model.save_pretrained(tmp_path / "b")
    assert verify(tmp_path / "a", tmp_path / "b", "--no-logits") == 1
    assert "model.norm.weight: 1 of 48" in capsys.readouterr().out


def test_types_and_missing_tensors(tmp_path, capsys):
    tiny_model("llama").save_pretrained(tmp_path / "a")
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "b")
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "c")
    assert verify(tmp_path / "a", tmp_path / "b") == 1
    assert "dtype torch.float32 and torch.bfloat16" in capsys.readouterr().out
    assert verify(tmp_path / "c", tmp_path / "a") == 1
    assert "lm_head.weight: only in the second" in capsys.readouterr().out


def test_equal_tensors_under_another_config_differ_in_logits(tmp_path, capsys):
    for name, theta in (("a", 10000.0), ("b", 500.0)):
        tiny_model("llama").save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config.pop("rope_parameters", None)
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "rope_theta": theta}))
    assert verify(tmp_path / "a", tmp_path / "b", "--no-logits") == 0
    assert verify(tmp_path / "a", tmp_path / "b") == 1
    assert "logits" in capsys.readouterr().out


def test_a_wrong_path(tmp_path, capsys):
    assert verify(tmp_path / "x", tmp_path / "y") == 2
    assert "no such folder" in capsys.readouterr().err


def without_spaces(text):
    """A table wraps what it holds."""
    return "".join(c for c in text if c not in "│ \n")


def test_paths_are_shown_as_they_are(tiny_folder, tmp_path, capsys):
    odd = tmp_path / "模型 [red] [b]"
    tiny_folder().rename(odd)
    assert verify(odd, odd) == 0
    assert without_spaces(f"{odd} (hf)") in without_spaces(capsys.readouterr().out)


def test_logits_that_are_no_numbers_are_equal_where_both_are_none(tmp_path, capsys):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "a")
    assert verify(tmp_path / "a", tmp_path / "a") == 0
    assert "arenotfinite" in without_spaces(capsys.readouterr().out)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    model.save_pretrained(tmp_path / "b")
    assert verify(tmp_path / "a", tmp_path / "b") == 1
    assert verify(tmp_path / "b", tmp_path / "b") == 0


def test_a_folder_without_tensors_is_told(tiny_folder, tmp_path, capsys):
    from safetensors.torch import save_file

    folder = tiny_folder()
    save_file({}, folder / "model.safetensors")
    assert verify(folder, folder) == 2
    assert "no tensor in model.safetensors" in capsys.readouterr().err


def test_quantised_weights_are_compared_and_not_run(tiny_folder, capsys):
    from safetensors.torch import load_file, save_file

    folder = tiny_folder()
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"})
    assert verify(folder, folder, "--no-logits") == 0
    assert verify(folder, folder) == 1
    said = capsys.readouterr().out
    assert "notcomputed:weightsoftypeint8" in without_spaces(said)
    assert "TENSORS EQUAL, the logits not computed" in said and "NOT EQUAL" not in said

"""Damaged and odd checkpoints: whatever the bytes are, opening and reading them ends in a user error or in a model."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file

from tuneval.checkpoints.convert import to_mcore
from tuneval.checkpoints.hf import HfSource
from tuneval.checkpoints.layout import plan_layout
from tuneval.checkpoints.load import open_source
from tuneval.errors import UserError
from tuneval.model.build import build_model
from tuneval.model.lora import LoraSettings, add_lora, save_adapter

RANK_00 = "iter_0000001/mp_rank_00/model_optim_rng.pt"


@pytest.fixture
def whole(tiny_folder):
    return tiny_folder()


@pytest.fixture
def sharded(whole, tmp_path):
    """Two files and an index."""
    tensors = load_file(whole / "model.safetensors")
    parts = [dict(list(tensors.items())[i::2]) for i in range(2)]
    names = [f"model-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
    for name, part in zip(names, parts):
        save_file(part, whole / name, {"format": "pt"})
    (whole / "model.safetensors").unlink()
    weight_map = {tensor: name for name, part in zip(names, parts) for tensor in part}
    write_index(whole, {"metadata": {}, "weight_map": weight_map})
    HfSource(whole)
    return whole, weight_map, names


@pytest.fixture
def shards(whole, tmp_path):
    source = HfSource(whole)
    to_mcore(source, tmp_path / "mcore", plan_layout(source.config, 2, 1, None))
    return tmp_path / "mcore"


@pytest.fixture
def adapter(whole, tmp_path):
    source, settings = HfSource(whole), LoraSettings(2, 4.0, targets=("q_proj", "down_proj"))
    model = add_lora(build_model(source.config, source.read, torch.float32), settings, seed=1)
    save_adapter(model, settings, tmp_path / "adapter", str(whole))
    return tmp_path / "adapter"


def write_index(folder, value):
    (folder / "model.safetensors.index.json").write_text(json.dumps(value))


def read_all(folder):
    source = open_source(folder)
    for name in source.names():
        source.read(name)


def refused(folder, words):
    with pytest.raises(UserError, match=words):
        read_all(folder)


@pytest.mark.parametrize(
    "index, words",
    [
        ([], "must hold a JSON object, found a list"),
        ({}, '"weight_map"'),
        ({"weight_map": []}, '"weight_map"'),
        ({"weight_map": {}}, '"weight_map"'),
        ({"weight_map": {"a": 7}}, "names 7, which is not a file beside it"),
        ({"weight_map": {"a": "../x"}}, "not a file beside it"),
        ({"weight_map": {"a": ""}}, "not a file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "files that are not there: gone.safetensors"),
        ({"weight_map": {str(i): f"gone-{i}.safetensors" for i in range(40)}}, "28 more"),
    ],
)
def test_an_index_that_is_none(sharded, index, words):
    write_index(sharded[0], index)
    refused(sharded[0], words)


def test_an_index_is_held_against_the_files(sharded):
    folder, weight_map, names = sharded
    write_index(folder, {"weight_map": {**weight_map, "model.extra.weight": names[0]}})
    refused(folder, rf"model\.extra\.weight: not in {names[0]}, where the index says")
    name = next(iter(weight_map))
    write_index(folder, {"weight_map": {n: f for n, f in weight_map.items() if n != name}})
    refused(folder, rf"{name}: in {weight_map[name]}, which the index does not say")
    write_index(folder, {"weight_map": weight_map})
    shutil.copyfile(folder / names[0], folder / names[1])  # a download mixed up
    refused(folder, "not in")


def test_ranks_of_two_layouts_in_one_folder(whole, shards, tmp_path):
    """As a second conversion to the same folder leaves them."""
    source = HfSource(whole)
    to_mcore(source, tmp_path / "staged", plan_layout(source.config, 2, 2, None))
    shutil.copytree(tmp_path / "staged" / "iter_0000001", shards / "iter_0000001", dirs_exist_ok=True)
    refused(shards, "two checkpoints in one folder")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100, b"{}", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_weights_that_are_none(whole, content):
    (whole / "model.safetensors").write_bytes(content)
    refused(whole, "not a safetensors file, or cut off|no tensor in model.safetensors")


def test_a_pickle_that_holds_no_tensors(whole):
    (whole / "model.safetensors").unlink()
    for value, words in (([1], "must hold tensors by name, found list"), ({"a": 1}, "no tensor in")):
        torch.save(value, whole / "pytorch_model.bin")
        refused(whole, words)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"\xff\xfe1", "not a number or release"),
        (b"", "says '', not a number or release"),
        ("²".encode(), "not a number or release"),
        (b"9" * 5000, "not a number or release"),
        (b"../elsewhere", "not a number or release"),
        (b"7", "iter_0000007 is not there"),
    ],
)
def test_odd_trackers(shards, content, words):
    (shards / "latest_checkpointed_iteration.txt").write_bytes(content)
    refused(shards, words)


@pytest.mark.parametrize(
    "state, words",
    [
        ([1, 2], "no `model` in it; found list"),
        ({"args": None, 3: 4}, "no `model` in it; found args, 3"),
        ({"model": 7}, "its `model` is int, not tensors by name"),
        ({"model": {1: torch.ones(1)}}, "not tensors by name"),
        ({"model": {"embedding.word_embeddings.weight": "text"}}, "is not a tensor but str"),
        ({"model0": {}, "model1": {}}, "some rank files hold model0, model1, others model"),
        ({"model": {}}, "missing: embedding"),
    ],
)
def test_odd_rank_files(shards, state, words):
    torch.save(state, shards / RANK_00)
    refused(shards, words)


def test_odd_args_do_not_stop_what_needs_none(shards):
    state = torch.load(shards / RANK_00, weights_only=False)
    for args in (None, 7, {"num_layers": "four"}):
        torch.save({**state, "args": args}, shards / RANK_00)
        read_all(shards)
    state["args"].expert_model_parallel_size = "many"
    torch.save(state, shards / RANK_00)
    refused(shards, "mixture of experts")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"r": 0}, "r is 0, not a rank from 1 on"),
        ({"r": "2"}, "r is '2'"),
        ({"r": None, "lora_alpha": None}, "2 problems"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"r": 3}, r"lora_A\.weight: \[2, \d+\] is not a factor of rank 3"),
        ({"peft_type": 7}, "an adapter of kind 7"),
        ({"base_model_name_or_path": 7}, "names no base model"),
        ({"base_model_name_or_path": ""}, "names no base model"),
    ],
)
def test_odd_adapter_configs(adapter, changes, words):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    refused(adapter, words)


@pytest.mark.parametrize("content", [b"[]", b"7", b"\xff\xfe", b"{"])
def test_adapter_configs_that_are_none(adapter, content):
    (adapter / "adapter_config.json").write_bytes(content)
    refused(adapter, "must hold a JSON object|not UTF-8|not valid JSON")


def test_an_adapter_is_not_its_own_base(adapter):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(adapter)}))
    refused(adapter, "which is not on this machine")


def test_odd_adapter_weights(adapter):
    file = adapter / "adapter_model.safetensors"
    raw, tensors = file.read_bytes(), load_file(file)
    for content in (b"", raw[:50], raw[:-1]):
        file.write_bytes(content)
        refused(adapter, "not a safetensors file, or cut off")
    save_file({}, file)
    refused(adapter, "holds no tensor")
    save_file({n: t.flatten() for n, t in tensors.items()}, file)
    refused(adapter, "is not a factor of rank 2")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_odd_configs(whole, file):
    for content in (b"", b"[]", b"7", b"\xff\xfe", b'{"model_type": "nothing"}'):
        (whole / file).write_bytes(content)
        if file == "config.json":
            refused(whole, r"transformers can't use it|config\.json")


def mutations(raw: bytes, count: int, seed: int) -> list[bytes]:
    """Truncated, flipped, zeroed, doubled: what discs and networks do."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        data = bytearray(raw)
        match draw.randrange(4):
            case 0:
                data = data[: draw.randrange(len(data))]
            case 1:
                for _ in range(draw.randrange(1, 20)):
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 2:
                at = draw.randrange(len(data))
                data[at : at + draw.randrange(1, 400)] = b"\x00" * 100
            case 3:
                at = draw.randrange(len(data))
                data = data[:at] + data[draw.randrange(len(data)) :]
        found.append(bytes(data))
    return found


@pytest.mark.parametrize("kind", ["safetensors", "megatron", "bin", "adapter", "config"])
def test_whatever_the_bytes_are(kind, whole, shards, adapter, request):
    """The heads of files are where structure is, so they are damaged most."""
    torch.save(load_file(whole / "model.safetensors"), whole / "pytorch_model.bin")
    folder, file = {
        "safetensors": (whole, whole / "model.safetensors"),
        "megatron": (shards, shards / RANK_00),
        "bin": (whole, whole / "pytorch_model.bin"),
        "adapter": (adapter, adapter / "adapter_model.safetensors"),
        "config": (whole, whole / "config.json"),
    }[kind]
    if kind == "bin":
        (whole / "model.safetensors").unlink()
    raw, head, good = file.read_bytes(), 6000, 0
    for data in (*mutations(raw, 60, 1), *(m + raw[head:] for m in mutations(raw[:head], 100, 2))):
        file.write_bytes(data)
        try:
            read_all(folder)
            good += 1
        except UserError:
            pass
    assert good < 140, "nothing was damaged"
    file.write_bytes(raw)
    read_all(folder)


def test_the_sizes_of_a_config_are_held_against_the_weights(whole, tmp_path):
    config = tiny_config().to_dict()
    for changes in ({"vocab_size": -1}, {"num_hidden_layers": 0}, {"num_attention_heads": 0}, {"hidden_size": 10**9}):
        (whole / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError):
            source = HfSource(whole)
            to_mcore(source, tmp_path / "out", plan_layout(source.config, 1, 1, None))

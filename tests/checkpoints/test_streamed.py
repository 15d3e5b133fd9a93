"""Files written tensor by tensor are torch.save's: torch loads them in every way it has."""

from __future__ import annotations

import argparse
import zipfile

import pytest
import torch

from tuneval.checkpoints import streamed
from tuneval.checkpoints.pickled import safe_load
from tuneval.checkpoints.streamed import ALIGNMENT, Pending, save

TENSORS = {
    "a": torch.arange(35, dtype=torch.float32).view(5, 7).bfloat16(),
    "b": torch.arange(3.0),
    "c": torch.arange(24.0).view(2, 3, 4).half(),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def file(tmp_path):
    made = []

    def pending(name, tensor):
        return Pending(tuple(tensor.shape), tensor.dtype, lambda: made.append(name) or list(tensor.split(2)))

    structure = {"args": argparse.Namespace(n=1, names=["x"]), "model": {n: pending(n, t) for n, t in TENSORS.items()}}
    save(structure, tmp_path / "t.pt")
    assert made == list(TENSORS)  # each once, in order
    return tmp_path / "t.pt"


@pytest.mark.parametrize(
    "options", [{"weights_only": False}, {"weights_only": True}, {"weights_only": True, "mmap": True}]
)
def test_torch_loads_it(file, options):
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(file, **options)
    assert loaded["args"] == argparse.Namespace(n=1, names=["x"])
    assert list(loaded["model"]) == list(TENSORS)
    for name, tensor in TENSORS.items():
        found = loaded["model"][name]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor) and found.is_contiguous()
        assert found.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


def test_storages_are_aligned(file):
    loaded = safe_load(file)["model"]
    assert all(stored.offset % ALIGNMENT == 0 for stored in loaded.values())
    assert all(torch.equal(stored.read(), TENSORS[name]) for name, stored in loaded.items())


def test_the_archive_is_a_whole_zip(tmp_path):
    save({name: Pending(tuple(t.shape), t.dtype, lambda t=t: [t]) for name, t in TENSORS.items()}, tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        assert archive.testzip() is None  # every CRC is that of its bytes
        assert len(archive.namelist()) == len(set(archive.namelist())) == len(TENSORS) + 3


def test_what_is_mapped_can_be_changed_and_the_file_stays(tmp_path):
    torch.save({"w": torch.ones(5)}, tmp_path / "t.pt")
    stored = safe_load(tmp_path / "t.pt")["w"]
    stored.read().zero_()
    assert torch.equal(stored.read(), torch.ones(5))


def test_another_tensor_than_announced_is_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="announced"):
        save({"w": Pending((2,), torch.float32, lambda: [torch.ones(3)])}, tmp_path / "t.pt")


def test_a_tensor_of_several_blocks_and_one_of_no_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "BLOCK", 10)
    tensors = {"odd": torch.arange(33, dtype=torch.float32), "none": torch.zeros(0, 4)}
    save(
        {name: Pending(tuple(t.shape), t.dtype, lambda t=t: [t[:5], t[5:]]) for name, t in tensors.items()},
        tmp_path / "t.pt",
    )
    loaded = torch.load(tmp_path / "t.pt", weights_only=True)
    assert all(torch.equal(loaded[name], t) for name, t in tensors.items())
    with zipfile.ZipFile(tmp_path / "t.pt") as archive:
        assert archive.testzip() is None

"""Checkpoints come back bit for bit, appear whole or not at all, and can't run code."""

import logging
import pickle
import random
import resource
from enum import Enum

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorProperties

from tuneval.checkpoints.resume import latest_step, load_state, remove_partial, save_state, set_aside, steps
from tuneval.errors import UserError


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(7, 5, generator=generator)
    return {
        "weight.a": wide.bfloat16(),
        "low.a": wide.view(torch.int32).to(torch.int16),
        "exp_avg.a": torch.randn(7, 5, generator=generator),
        "weight.b": torch.randn(3, generator=generator),
    }


def test_round_trip_is_bit_identical(tmp_path):
    saved = tensors(1)
    facts = {"progress": {"step": 3, "samples": 12}, "scaler": {"scale": 65536.0}}
    save_state(tmp_path, 3, saved, facts, keep=2)
    loaded = tensors(2)
    assert load_state(tmp_path, 3, loaded) == {"step": 3, **facts}
    for name in saved:
        assert torch.equal(loaded[name].view(torch.uint8), saved[name].view(torch.uint8)), name
    assert not torch.equal(tensors(2)["weight.a"], saved["weight.a"])


def test_random_generators_go_on(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    torch.manual_seed(5)
    draw()
    save_state(tmp_path, 1, tensors(1), {}, keep=1)
    expected = draw()
    assert draw() != expected
    load_state(tmp_path, 1, tensors(1))
    assert draw() == expected


def test_newest_are_kept_and_named(tmp_path):
    assert latest_step(tmp_path) is None
    for step in (2, 4, 6):
        save_state(tmp_path, step, tensors(step), {}, keep=2)
    assert steps(tmp_path) == [4, 6] and latest_step(tmp_path) == 6
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_0000006\n"


def test_an_interrupted_write_is_no_checkpoint(tmp_path):
    save_state(tmp_path, 1, tensors(1), {}, keep=2)
    with pytest.raises(TypeError):
        save_state(tmp_path, 2, tensors(1), {"not json": object()}, keep=2)
    (tmp_path / "checkpoints" / ".step_0000003.1a2b3c4d.partial").mkdir()  # what kill -9 leaves
    assert latest_step(tmp_path) == 1
    remove_partial(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_0000001"]


def test_an_interrupted_write_leaves_the_loggers_level(tmp_path):
    logger = logging.getLogger("torch.distributed.checkpoint")
    before = logger.level
    with pytest.raises(TypeError):
        save_state(tmp_path, 1, tensors(1), {"not json": object()}, keep=2)
    assert logger.level == before != logging.ERROR


def test_another_models_checkpoint_is_refused(tmp_path):
    save_state(tmp_path, 1, tensors(1), {}, keep=1)
    other = {**tensors(1), "weight.b": torch.zeros(4)}
    with pytest.raises(UserError, match=r"1 tensors differ, such as weight\.b .*\(3,\).*\(4,\).*--finetune"):
        load_state(tmp_path, 1, other)
    with pytest.raises(UserError, match=r"weight\.c .*absent"):
        load_state(tmp_path, 1, {**tensors(1), "weight.c": torch.zeros(4)})


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (self.marker,)


def test_moments_of_8_bits_cut_in_another_way_are_named(tmp_path):
    """A process of another layout holds no whole blocks of a matrix."""
    save_state(tmp_path, 5, {"exp_avg_codes.w": torch.zeros(2, 64, dtype=torch.uint8)}, {}, keep=1)
    with pytest.raises(UserError, match="adam8bit at the same --tensor-model-parallel-size"):
        load_state(tmp_path, 5, {"exp_avg.w": torch.zeros(2, 64)})


def test_an_index_that_wants_to_run_code_is_refused(tmp_path):
    folder = save_state(tmp_path, 1, tensors(1), {}, keep=1)
    marker = tmp_path / "ran"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(str(marker))))
    with pytest.raises(UserError, match="nothing was run"):
        load_state(tmp_path, 1, tensors(1))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["random.torch", "random.torch.1", "weight.a", "other"])
def test_an_entry_that_is_no_tensor_is_refused_and_nothing_is_run(tmp_path, name):
    """DCP unpickles whatever the index calls bytes."""
    folder = save_state(tmp_path, 1, tensors(1), {}, keep=1)
    marker = tmp_path / "ran"
    torch.save(Evil(str(marker)), folder / "evil.distcp")
    index = dcp.FileSystemReader(folder).read_metadata()
    index.state_dict_metadata[name] = BytesStorageMetadata()
    index.storage_data = {at: where for at, where in index.storage_data.items() if at.fqn != name}
    size = (folder / "evil.distcp").stat().st_size
    index.storage_data[MetadataIndex(name)] = _StorageInfo("evil.distcp", 0, size)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    loaded = tensors(2)
    with pytest.raises(UserError, match=f"{folder}: {name} is not a tensor there.*nothing was loaded"):
        load_state(tmp_path, 1, loaded)
    assert not marker.exists()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors(2).items())


@pytest.mark.parametrize("index", [None, TensorProperties(), Metadata(state_dict_metadata=[])], ids=str)
def test_an_index_without_entries_is_refused(tmp_path, index):
    folder = save_state(tmp_path, 1, tensors(1), {}, keep=1)
    for raw in (pickle.dumps(index), b"\x80\x94.", b"\x8c\x02\xff\xff."):  # the last two: another protocol, no text
        (folder / ".metadata").write_bytes(raw)
        with pytest.raises(UserError, match=f"{folder}/.metadata: damaged or not ours"):
            load_state(tmp_path, 1, tensors(1))


class OlderPickler(pickle.Pickler):
    """Writes members of enumerations as Python 3.11.0 to 3.11.3 do; 3.11.2 is the Python of Debian 12."""

    def reducer_override(self, thing):
        return (getattr, (type(thing), thing.name)) if isinstance(thing, Enum) else NotImplemented


def test_an_index_by_an_older_python_is_read(tmp_path):
    saved, loaded = tensors(1), tensors(2)
    folder = save_state(tmp_path, 1, saved, {}, keep=1)
    index = dcp.FileSystemReader(folder).read_metadata()
    with open(folder / ".metadata", "wb") as file:
        OlderPickler(file).dump(index)
    assert b"getattr" in (folder / ".metadata").read_bytes()
    load_state(tmp_path, 1, loaded)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


@pytest.mark.parametrize("asked", [(torch.Size, "numel"), (torch.float32, "to_real"), ("text", "format")], ids=str)
def test_no_attribute_is_looked_up_for_an_index(tmp_path, asked):
    folder = save_state(tmp_path, 1, tensors(1), {}, keep=1)

    class Asks:
        def __reduce__(self):
            return getattr, asked

    (folder / ".metadata").write_bytes(pickle.dumps(Asks()))
    with pytest.raises(
        UserError, match=f"asks for the attribute '{asked[1]}', which no checkpoint needs; nothing was run"
    ):
        load_state(tmp_path, 1, tensors(1))


def test_a_full_disk_is_told_before_writing(tmp_path):
    huge = {"weight.a": torch.empty(1 << 50, device="meta")}
    with pytest.raises(UserError, match="the checkpoint of step 1 needs"):
        save_state(tmp_path, 1, huge, {}, keep=1)
    assert not (tmp_path / "checkpoints").exists()


def test_a_disk_that_fills_up_while_writing_is_told(tmp_path):
    """A limit on the size of a file stops the writer as a full disk does."""
    save_state(tmp_path, 1, tensors(1), {}, keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(UserError, match=r"step_0000002: could not be written \(.*\)\. Is the disk full"):
            save_state(tmp_path, 2, {"weight.a": torch.zeros(4096)}, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "checkpoints").glob(".*")] == []
    assert steps(tmp_path) == [1]


def test_an_earlier_run_is_moved_aside(tmp_path):
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(str(number))
        assert set_aside(tmp_path) == tmp_path / f"previous-{number}"
    assert (tmp_path / "previous-1" / "metrics.jsonl").read_text() == "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["previous-1", "previous-2"]

import numpy as np
import pytest

from tuneval.data.indexed import IndexedDataset, IndexedWriter
from tuneval.errors import UserError

GOLDEN_IDX = (
    b"MMIDIDX\x00\x00"
    + bytes([1, 0, 0, 0, 0, 0, 0, 0])
    + bytes([4])
    + bytes([2, 0, 0, 0, 0, 0, 0, 0])
    + bytes([3, 0, 0, 0, 0, 0, 0, 0])
    + bytes([3, 0, 0, 0, 2, 0, 0, 0])
    + bytes([0] * 8 + [12] + [0] * 7)
    + bytes([0] * 8 + [1] + [0] * 7 + [2] + [0] * 7)
)


def write_two(prefix):
    with IndexedWriter(prefix) as writer:
        writer.add([7, -100, 9])
        writer.add(np.array([1, 2]))


def test_bytes_of_two_sequences_are_megatrons(tmp_path):
    write_two(tmp_path / "deep" / "x")
    assert len(GOLDEN_IDX) == 82
    assert (tmp_path / "deep/x.idx").read_bytes() == GOLDEN_IDX
    assert (tmp_path / "deep/x.bin").read_bytes() == np.array([7, -100, 9, 1, 2], "<i4").tobytes()


def test_reads_back_what_was_written(tmp_path):
    write_two(tmp_path / "x")
    data = IndexedDataset(tmp_path / "x")
    assert len(data) == 2 and data.lengths.tolist() == [3, 2]
    assert [s.tolist() for s in data] == [[7, -100, 9], [1, 2]] and data[1].dtype == np.int32
    assert data[-1].tolist() == [1, 2]
    with pytest.raises(IndexError):
        data[2]


def test_many_at_once_equal_one_at_a_time(tmp_path):
    with IndexedWriter(tmp_path / "y") as writer:
        writer.add_many(np.array([7, -100, 9, 1, 2]), np.array([3, 2]))
    write_two(tmp_path / "x")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"y{suffix}").read_bytes()


def test_a_skipped_sample_repeats_its_document_mark(tmp_path):
    with IndexedWriter(tmp_path / "x") as writer:
        writer.add([1])
        writer.add_empty_document()
        writer.add([2, 3])
    assert IndexedDataset(tmp_path / "x").documents.tolist() == [0, 1, 1, 2]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "x") as writer:
        writer.add([1])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_empty_set(tmp_path):
    with IndexedWriter(tmp_path / "x"):
        pass
    assert len(IndexedDataset(tmp_path / "x")) == 0


@pytest.mark.parametrize("code, kind", [(8, "<u2"), (5, "<i8")])
def test_reads_other_number_types(tmp_path, code, kind):
    values = np.array([5, 6, 7], kind)
    (tmp_path / "x.bin").write_bytes(values.tobytes())
    (tmp_path / "x.idx").write_bytes(
        GOLDEN_IDX[:17] + bytes([code]) + GOLDEN_IDX[18:34] + np.array([1, 2], "<i4").tobytes()
        + np.array([0, values.itemsize], "<i8").tobytes() + GOLDEN_IDX[-24:]
    )  # fmt: skip
    assert [s.tolist() for s in IndexedDataset(tmp_path / "x")] == [[5], [6, 7]]


def test_damage_is_named(tmp_path):
    write_two(tmp_path / "x")
    bin_path, idx_path = tmp_path / "x.bin", tmp_path / "x.idx"
    bin_path.write_bytes(bin_path.read_bytes()[:-1])
    with pytest.raises(UserError, match="19 bytes, but its index needs 20"):
        IndexedDataset(tmp_path / "x")
    bin_path.write_bytes(np.arange(6, dtype="<i4").tobytes())  # of another data set
    with pytest.raises(UserError, match="24 bytes, but its index needs 20"):
        IndexedDataset(tmp_path / "x")
    for lengths, offsets in (([3, 2], [0, 8]), ([7, -2], [0, 28])):
        idx_path.write_bytes(
            GOLDEN_IDX[:34] + np.array(lengths, "<i4").tobytes() + np.array(offsets, "<i8").tobytes() + GOLDEN_IDX[58:]
        )
        with pytest.raises(UserError, match="do not lie back to back"):
            IndexedDataset(tmp_path / "x")
    idx_path.write_bytes(GOLDEN_IDX[:60])
    with pytest.raises(UserError, match="cut short"):
        IndexedDataset(tmp_path / "x")
    idx_path.write_bytes(b"PK" + GOLDEN_IDX)
    with pytest.raises(UserError, match="not a Megatron index"):
        IndexedDataset(tmp_path / "x")
    bin_path.unlink()
    with pytest.raises(UserError, match=r"x\.bin: no such file"):
        IndexedDataset(tmp_path / "x")

"""Write a `.pt` file as `torch.save` would, but one tensor at a time: a rank file never has to fit in memory."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from isal import isal_zlib

ALIGNMENT = 64
"""torch.save starts every storage at such a byte, so that a mapped file holds aligned elements."""
BLOCK = 1 << 20
"""Bytes read, then written: a processor's second cache holds them. A write that fetches mapped pages itself is slower."""
PAGE = 4096
_T = TypeVar("_T")
_ZIP64_EXTRA = 20
_STORAGE_TYPES = {
    torch.bfloat16: torch.BFloat16Storage,
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
}


@dataclass(frozen=True)
class Pending:
    """A tensor that is made when its turn to be written comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], list[torch.Tensor]]
    """Gives it in pieces along its first dim."""

    @property
    def stride(self) -> tuple[int, ...]:
        """Of a contiguous tensor."""
        strides, step = [], 1
        for size in reversed(self.shape):
            strides.append(step)
            step *= size
        return tuple(reversed(strides))

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def save(structure: Any, path: Path) -> None:
    """Write `structure`, with a contiguous tensor of its own storage for each `Pending` in it.

    Args:
        structure: containers, plain values, a Namespace, `Pending`s.
        path: file to write; `torch.load` reads it.
    """
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(structure)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(f"{path.stem}/data.pkl", text.getvalue())
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, read in groupby(_ahead(_read(pickler.pending)), key=lambda block: block.key):
            _append(archive, f"{path.stem}/data/{key}", pickler.pending[key].nbytes, read)
        archive.writestr(f"{path.stem}/version", "3\n")


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor; a copy's of another."""
    return memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


def blocks_read(data: memoryview) -> Iterator[memoryview]:
    """`BLOCK` bytes at a time, each after a pass over its pages."""
    for block in blocks(data):
        np.frombuffer(block, np.uint8)[::PAGE].sum()
        yield block


def blocks(data: memoryview) -> Iterator[memoryview]:
    """`BLOCK` bytes at a time."""
    return (data[start : start + BLOCK] for start in range(0, data.nbytes, BLOCK))


class _Block(NamedTuple):
    key: int
    """Number of the tensor."""
    data: memoryview
    crc: int
    """Of the tensor's bytes up to the end of this block."""


def _read(tensors: list[Pending]) -> Iterator[_Block]:
    """Make the tensors, one after another, and compute their CRC, which reads a mapped tensor's pages."""
    for key, pending in enumerate(tensors):
        pieces, crc = pending.make(), 0
        shapes = {(*piece.shape[1:], piece.dtype) for piece in pieces}
        announced = shapes == {(*pending.shape[1:], pending.dtype)} and sum(map(len, pieces)) == pending.shape[0]
        assert announced, f"not the tensor announced, {pending.shape}"
        yield _Block(key, memoryview(b""), crc)  # a tensor of no bytes is a member, too
        for data in chain.from_iterable(blocks(bytes_of(piece)) for piece in pieces):
            crc = isal_zlib.crc32(data, crc)
            yield _Block(key, data, crc)


def _ahead(items: Iterator[_T], depth: int = 8) -> Iterator[_T]:
    """The same, made by a thread up to `depth` before they are asked for: one ahead, each thread waits for the other."""
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item


def _append(archive: zipfile.ZipFile, name: str, size: int, read: Iterable[_Block]) -> None:
    """Append a member of `size` bytes: zipfile itself would copy it, and compute the CRC with zlib."""
    file, info = archive.fp, _aligned(archive, name)
    info.header_offset, info.external_attr = file.tell(), 0o600 << 16
    info.file_size = info.compress_size = size
    info.CRC = 0
    file.write(info.FileHeader(zip64=True))
    for block in read:
        file.write(block.data)
        info.CRC = block.crc
    archive.start_dir = file.tell()
    file.seek(info.header_offset)
    file.write(info.FileHeader(zip64=True))  # now that the CRC is known
    file.seek(archive.start_dir)
    archive.filelist.append(info)
    archive.NameToInfo[name] = info


def _aligned(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A member whose extra field is as long as it takes for its bytes to start at a multiple of ALIGNMENT."""
    info = zipfile.ZipInfo(name)
    start = archive.fp.tell() + 30 + len(name) + 4 + _ZIP64_EXTRA
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return info


class _Storage:
    def __init__(self, key: int, pending: Pending) -> None:
        self.key, self.pending = key, pending


class _Pickler(pickle.Pickler):
    """Says `Pending` as torch says a tensor: a call that rebuilds it from a numbered storage."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)  # torch.save's own; `weights_only` loading knows no other well
        self.pending: list[Pending] = []

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Pending):
            return NotImplemented
        self.pending.append(value)
        storage = _Storage(len(self.pending) - 1, value)
        arguments = (storage, 0, value.shape, value.stride, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        count = torch.Size(value.pending.shape).numel()
        return "storage", _STORAGE_TYPES[value.pending.dtype], str(value.key), "cpu", count

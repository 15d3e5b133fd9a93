"""PyTorch `.pt` and `.bin` files, read without running anything in them and without loading their tensors.

A file of `torch.save` is a zip: one pickle for the structure, one stored member for each storage. Here the pickle may
build numbers, texts, containers, a Namespace and descriptions of tensors; classes of other packages become inert
stand-ins; what belongs to Python itself and has no place in a checkpoint (`os.system`, `builtins.eval`) is refused.
Tensors stay on disk as `StoredTensor` until they are asked for.
"""

from __future__ import annotations

import _compat_pickle
import argparse
import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneval.errors import UserError

_PLAIN = {
    "builtins": frozenset(
        "set frozenset list dict tuple int float complex bool str bytes bytearray slice range object".split()
    ),
    "collections": frozenset(["OrderedDict"]),
}
"""Types of Python that are themselves: none can run code, and none can be changed from a pickle."""

_INERT_MODULES = frozenset(
    "argparse collections copyreg dataclasses datetime decimal enum fractions functools pathlib signal types uuid "
    "_codecs _io io".split()
)
"""Modules of Python whose objects trainers do leave in `args`, random states or `_extra_state`: stand-ins."""

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class StandIn:
    """What an object of an unknown class becomes: it swallows everything it is given and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__}>"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk: where its bytes are, and what they mean."""

    path: Path
    offset: int
    """Bytes from the start of the file to the first element."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Elements between neighbours along each dim."""

    @classmethod
    def contiguous_at(cls, path: Path, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> StoredTensor:
        """One whose elements lie in order, back to back."""
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        return cls(path, offset, dtype, tuple(shape), tuple(strides[: len(shape)]))

    @property
    def contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride)):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def extent(self) -> int:
        """Elements from the first to the last of this tensor in its storage."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride))

    def read(self) -> torch.Tensor:
        """The tensor, mapped: its pages are read when they are looked at, and a change of it stays in this process."""
        flat = self._elements(0, self.extent)
        return flat.view(self.shape) if self.contiguous else flat.as_strided(self.shape, self.stride).contiguous()

    def read_slice(self, dim: int, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` along `dim`; along dim 0 only their bytes are read."""
        if dim == 0 and self.contiguous:
            row = self.stride[0] if self.shape[0] != 1 else self.extent
            return self._elements(start * row, (stop - start) * row).view(stop - start, *self.shape[1:])
        return self.read().narrow(dim, start, stop - start)

    def _elements(self, first: int, count: int) -> torch.Tensor:
        start, size = self.offset + first * self.dtype.itemsize, count * self.dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=self.dtype)
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size < start + size:
                raise UserError(f"{self.path}: shorter than its own index says. Copy the file again.")
            raw = torch.from_numpy(np.memmap(file, np.uint8, "c", start, (size,)))
        # Elements at odd bytes, as some writers leave them, can't be used where they lie.
        return (raw if start % self.dtype.itemsize == 0 else raw.clone()).view(self.dtype)


def safe_load(path: str | Path) -> Any:
    """Structure of a `torch.save` file, each tensor a `StoredTensor`. Nothing in the file can run.

    Raises:
        UserError: not such a file, damaged, or it asks for something that no checkpoint needs.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {m.filename.partition("/")[2]: m for m in archive.infolist()}
            if "data.pkl" not in members:
                raise UserError(f"{path}: a zip without data.pkl, so not a file of torch.save")
            if "constants.pkl" in members:
                raise UserError(f"{path}: a TorchScript program, not a checkpoint; programs are not run")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise UserError(f"{path}: written on a big-endian machine, which can't be read here")
            structure = io.BytesIO(archive.read(members["data.pkl"]))
        return _Unpickler(structure, path, members).load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except zipfile.BadZipFile:
        raise UserError(
            f"{path}: not a file of torch.save (a zip), or cut off. Copy it again, or save it anew."
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged bytes are odd instructions: they raise whatever they come upon
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"{path}: damaged, or not a checkpoint ({type(error).__name__}: {error})") from None


@dataclass(frozen=True)
class _Storage:
    offset: int
    numel: int
    dtype: torch.dtype


class _Unpickler(pickle.Unpickler):
    """Everything `find_class` hands out is immutable or made for this one load: a pickle may also set attributes."""

    def __init__(self, structure: io.BytesIO, path: Path, members: dict[str, zipfile.ZipInfo]) -> None:
        super().__init__(structure, encoding="utf-8")
        self._path, self._members, self._made = path, members, {}

    def find_class(self, module: str, name: str) -> Any:
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (module, name)
        )  # protocol 2 writes Python 2's names
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if name in _PLAIN.get(module, ()):
            return OrderedDict if name == "OrderedDict" else vars(sys.modules["builtins"])[name]
        if (module, name) not in self._made:
            self._made[module, name] = self._make(module, name)
        return self._made[module, name]

    def _make(self, module: str, name: str) -> Any:
        if module == "argparse" and name == "Namespace":
            return type("Namespace", (argparse.Namespace,), {})
        if module == "collections" and name == "defaultdict":
            return type("defaultdict", (dict,), {"__init__": _without_factory})
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("torch", "Size"):
            return type("Size", (tuple,), {})
        if (module, name) in _REBUILD:
            rebuild = _REBUILD[module, name]
            return lambda *arguments: rebuild(self._path, *arguments)
        top = module.partition(".")[0]
        if (module, name) != ("builtins", "getattr") and top in sys.stdlib_module_names and top not in _INERT_MODULES:
            raise UserError(
                f"{self._path}: refused. It asks Python for {module}.{name} while loading, which no checkpoint needs; "
                "it may be an attack. Nothing was run."
            )
        return type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, numel = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(numel, int):
            raise pickle.UnpicklingError(f"unknown kind of storage {kind!r}")
        member = self._members[f"data/{key}"]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size < numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is compressed or too short")
        return _Storage(_data_offset(self._path, member), numel, dtype)


def _without_factory(self: dict, factory: Any = None, *rest: Any) -> None:
    dict.__init__(self, *rest)


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes start: after its local header, whose two lengths are its own."""
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + name_length + extra_length


def _tensor(path: Path, storage: _Storage, first: int, size: tuple, stride: tuple, *rest: Any) -> StoredTensor:
    return _stored(path, storage, first, size, stride, storage.dtype)


def _tensor_v3(path: Path, storage: _Storage, first: int, size: tuple, stride: tuple, *rest: Any) -> StoredTensor:
    return _stored(path, storage, first, size, stride, rest[2])


def _stored(path: Path, storage: _Storage, first: int, size: tuple, stride: tuple, dtype: torch.dtype) -> StoredTensor:
    tensor = StoredTensor(path, storage.offset + first * dtype.itemsize, dtype, tuple(size), tuple(stride))
    numbers = (first, *tensor.shape, *tensor.stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor with an impossible shape")
    if (first + tensor.extent) * dtype.itemsize > storage.numel * storage.dtype.itemsize:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return tensor


def _parameter(path: Path, data: Any, *rest: Any) -> Any:
    return data


def _from_type(path: Path, rebuild: Any, kind: Any, arguments: tuple, state: Any) -> Any:
    return rebuild(*arguments)


_REBUILD = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch_npu.utils.storage", "_rebuild_npu_tensor"): _tensor,  # Ascend's older files
}
"""Functions that make tensors -> ours, which only describe them."""

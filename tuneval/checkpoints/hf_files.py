"""The weight files of a Hugging Face folder: which tensors they hold and where, no tensor read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tuneval import files
from tuneval.checkpoints.pickled import StoredTensor, safe_load
from tuneval.errors import UserError

NAME_OF_DTYPE = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPE_OF_NAME = {name: dtype for dtype, name in NAME_OF_DTYPE.items()}


def stored_tensors(folder: Path) -> dict[str, Any]:
    """Every tensor that the weight files of a folder hold, by name: with shape, dtype, read() and read_slice().

    Raises:
        UserError: no weights, files missing or damaged, or an index that does not say what they hold.
    """
    files_of, wanted = _weight_files(folder)
    held = {f: _safetensors_index(f) if f.suffix == ".safetensors" else _pickled_index(f) for f in files_of}
    tensors = {name: tensor for found in held.values() for name, tensor in found.items()}
    if wanted is not None:
        _check_index(folder, wanted, {f.name: set(found) for f, found in held.items()})
    if not tensors:
        raise UserError(f"{folder}: no tensor in {', '.join(f.name for f in files_of)}. Fetch the files again.")
    return tensors


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files, and what the index says, tensor -> file; None where there is none."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index, single = folder / f"{stem}.index.json", folder / stem
        if single.is_file():  # as transformers reads: an index beside it was left by a larger save
            return [single], None
        if index.is_file():
            weight_map = _read_index(index)
            return [folder / name for name in sorted(set(weight_map.values()))], weight_map
    raise UserError(
        f"{folder}: no weights. Looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin and "
        "pytorch_model.bin.index.json."
    )


def _read_index(path: Path) -> dict[str, str]:
    """`weight_map` of an index: tensor -> file beside it."""
    weight_map = files.read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{path}: no "weight_map" from tensors to files in it. Fetch the file again.')
    odd = [n for n in weight_map.values() if not isinstance(n, str) or n != Path(n).name or n in ("", "..")]
    if odd:
        raise UserError(f"{path}: names {odd[0]!r}, which is not a file beside it. Fetch the file again.")
    missing = sorted({n for n in weight_map.values() if not (path.parent / n).is_file()})
    if missing:
        shown = _shortened(missing)
        raise UserError(f"{path.parent}: the index names files that are not there: {shown}. Fetch them again.")
    return weight_map


def _check_index(folder: Path, weight_map: dict[str, str], held: dict[str, set[str]]) -> None:
    wrong = [f"{n}: not in {file}, where the index says" for n, file in weight_map.items() if n not in held[file]]
    wrong += [
        f"{n}: in {file}, which the index does not say"
        for file, names in held.items()
        for n in sorted(names)
        if weight_map.get(n) != file
    ]
    if wrong:
        raise UserError(
            f"{folder}: the index and the files differ; fetch both again:\n  {_shortened(wrong, chr(10) + '  ')}"
        )


def _shortened(lines: list[str], between: str = ", ") -> str:
    return between.join([*lines[:12], *([f"... and {len(lines) - 12} more"] if len(lines) > 12 else [])])


def _safetensors_index(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor lies: after eight bytes of length, JSON that says so; safetensors itself has checked it."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            dtypes = {name: _dtype(path, stored) for name, stored in slices.items()}
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file, or cut off ({error}). Fetch it again.") from None
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {
        name: StoredTensor.contiguous_at(
            path, 8 + length + header[name]["data_offsets"][0], dtype, header[name]["shape"]
        )
        for name, dtype in dtypes.items()
    }


def _dtype(path: Path, stored: Any) -> torch.dtype:
    if stored.get_dtype() not in DTYPE_OF_NAME:
        known = ", ".join(DTYPE_OF_NAME)
        raise UserError(f"{path}: {stored.get_dtype()} weights (quantised?) can't be read; {known} can")
    return DTYPE_OF_NAME[stored.get_dtype()]


def _pickled_index(path: Path) -> dict[str, Any]:
    loaded = safe_load(path)
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold tensors by name, found {type(loaded).__name__}")
    return {name: t for name, t in loaded.items() if isinstance(name, str) and isinstance(t, StoredTensor)}

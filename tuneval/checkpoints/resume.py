"""The state of a run on disk: written beside, published by rename, read back bit for bit.

RUN/checkpoints/step_0000200/ holds the tensors (torch.distributed.checkpoint) and state.json; RUN/checkpoints/latest
names the newest for people and scripts.
"""

from __future__ import annotations

import logging
import pickle
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tuneval import runtime
from tuneval.errors import UserError
from tuneval.files import atomic_file, atomic_folder, check_free_space, read_json, write_json

_STEP = re.compile(r"step_(\d{7,})")


def save_state(run: Path, step: int, tensors: dict[str, torch.Tensor], facts: dict[str, Any], keep: int) -> Path:
    """Write one checkpoint, publish it, point `latest` at it and remove the oldest. Every process must call it.

    Args:
        run: run folder.
        step: steps done.
        tensors: name -> tensor; what `load_state` will fill. Of a DTensor each process writes its part.
        facts: JSON values that belong to it. The random generators' states are added.
        keep: newest checkpoints that stay, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk has no room, or was filled meanwhile; the checkpoints before stay as they are.
    """
    folder = checkpoints_folder(run) / f"step_{step:07d}"
    needed = sum(_of_all({name: t.numel() * t.dtype.itemsize for name, t in tensors.items()}).values())
    if runtime.is_main():
        check_free_space(run, needed + (1 << 20), f"the checkpoint of step {step}")
    with _atomic_folder_of_all(folder) as temporary, _without_warnings():
        _write({**tensors, **_rng_states()}, temporary, folder)
        if runtime.is_main():
            write_json(temporary / "state.json", {"step": step, **facts, "random": _host_rng_state()})
    if not runtime.is_main():
        return folder
    with atomic_file(checkpoints_folder(run) / "latest") as file:
        file.write(folder.name + "\n")
    for old in steps(run)[:-keep]:
        shutil.rmtree(checkpoints_folder(run) / f"step_{old:07d}")
    return folder


def _write(tensors: dict[str, torch.Tensor], temporary: Path, folder: Path) -> None:
    try:
        dcp.save(tensors, checkpoint_id=temporary)
    except (RuntimeError, CheckpointException) as error:  # the first of one process, the second of several
        if not any(said in str(error) for said in _DISK_FULL):
            raise
        told = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{folder}: could not be written ({told}). Is the disk full, or its quota used up? Free some space; the same "
            "command goes on from the checkpoint before"
        ) from error


_DISK_FULL = ("unexpected pos", "No space left on device", "File too large", "Disk quota exceeded")
"""What torch's writer says of a file that could not be written to its end, and what the system does."""


def load_state(run: Path, step: int, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fill `tensors` from a checkpoint and set the random generators.

    Args:
        run: run folder.
        step: a step that `steps` lists.
        tensors: name -> tensor of the same shape and type as saved, spread over processes in any way; overwritten.

    Returns:
        The facts given to `save_state`, and `step`.

    Raises:
        UserError: the checkpoint holds other tensors, or its files are damaged.
    """
    folder = checkpoints_folder(run) / f"step_{step:07d}"
    facts = read_json(folder / "state.json")
    reader = _Reader(folder)
    saved = reader.read_metadata().state_dict_metadata
    _check_same_tensors(folder, saved, tensors)
    generators = {name: t for name, t in _rng_states().items() if name in saved}  # a process that is new draws afresh
    wanted = {**tensors, **generators}
    with _without_warnings():
        dcp.load(wanted, storage_reader=reader)
    _set_rng_states({name: wanted[name] for name in generators})
    _set_host_rng_state(facts.pop("random"))
    return facts


def steps(run: Path) -> list[int]:
    """Steps of the run's checkpoints, rising. A folder has its name only once it is whole."""
    found = (_STEP.fullmatch(p.name) for p in checkpoints_folder(run).glob("step_*"))
    return sorted(int(m.group(1)) for m in found if m)


def latest_step(run: Path) -> int | None:
    """Step of the newest checkpoint; None where there is none."""
    return max(steps(run), default=None)


def checkpoints_folder(run: Path) -> Path:
    return Path(run) / "checkpoints"


def remove_partial(run: Path) -> None:
    """Remove what a killed writer left half-written in the run folder."""
    for folder in (Path(run), checkpoints_folder(run)):
        for path in folder.glob(".*.partial"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(run: Path) -> Path | None:
    """Move an earlier run's files into RUN/previous-1 (or -2 ...); None where there is nothing to move."""
    entries = [p for p in Path(run).glob("*") if not p.name.startswith("previous-")]
    if not entries:
        return None
    number = 1 + max((int(p.name[9:]) for p in Path(run).glob("previous-*") if p.name[9:].isdigit()), default=0)
    target = Path(run) / f"previous-{number}"
    target.mkdir()
    for path in entries:
        path.rename(target / path.name)
    return target


def _of_all(mine: dict[str, Any]) -> dict[str, Any]:
    """The processes' dicts as one."""
    if not dist.is_initialized():
        return mine
    everyone: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    return {name: value for each in everyone for name, value in each.items()}


@contextmanager
def _atomic_folder_of_all(folder: Path) -> Iterator[Path]:
    """`atomic_folder` that all processes write into; it appears when the last of them has left."""
    if not dist.is_initialized():
        with atomic_folder(folder) as temporary:
            yield temporary
        return
    with atomic_folder(folder) if runtime.is_main() else nullcontext() as temporary:
        path = [temporary]
        dist.broadcast_object_list(path, 0)
        yield path[0]
        dist.barrier()
    dist.barrier()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without a process group DCP works for one process, and says so at length."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_same_tensors(folder: Path, saved: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    here = _of_all({name: (tuple(t.shape), t.dtype) for name, t in wanted.items()})
    there = {name: (tuple(m.size), m.properties.dtype) for name, m in saved.items() if not _is_rng(name)}
    differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differing:
        name = differing[0]
        of_8_bits = any(other.startswith("exp_avg_codes.") for other in differing)
        cut = " (with --optimizer adam8bit at the same --tensor-model-parallel-size: it decides which matrices have 8 bits)"
        raise UserError(
            f"{folder}: belongs to another model or precision: {len(differing)} tensors differ, such as {name} "
            f"({there.get(name, 'absent')} there, {here.get(name, 'absent')} here). Use the command that the run was "
            f"started with{cut if of_8_bits else ''}, another --save, or --finetune to start afresh"
        )


class _Reader(dcp.FileSystemReader):
    """DCP's reader, but the pickled index may name DCP's own descriptions alone, and of tensors: nothing in a file can run.

    What it describes as bytes DCP would unpickle whole, with all that they ask for.
    """

    def read_metadata(self, *arguments: Any, **options: Any) -> Any:
        try:
            with open(Path(self.path) / ".metadata", "rb") as file:
                metadata = _MetadataUnpickler(file).load()
        except FileNotFoundError:
            raise UserError(f"{self.path}: has no .metadata, so it is not a checkpoint of ours") from None
        except OSError:
            raise
        except Exception as error:  # damaged bytes are odd instructions: they raise whatever they come upon
            raise UserError(f"{self.path}/.metadata: damaged or not ours ({error})") from None
        entries = getattr(metadata, "state_dict_metadata", None)
        if not isinstance(entries, dict):
            raise UserError(f"{self.path}/.metadata: damaged or not ours (it lists no tensors)")
        for name, entry in entries.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise UserError(f"{self.path}: {name} is not a tensor there, so it is not ours; nothing was loaded")
        if getattr(metadata, "storage_meta", None) is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        found = super().find_class(module, name) if module in (*self._MODULES, "torch") and "." not in name else None
        ours = isinstance(found, type) and found.__module__ in self._MODULES
        plain = found is torch.Size or isinstance(found, (torch.dtype, torch.memory_format, torch.layout))
        if ours or plain or (module, name) in _HARMLESS:
            return found if found is not None else super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs; nothing was run")


def _enum_member(kind: Any, name: str) -> Enum:
    """What Python 3.11.0 to 3.11.3 asks of `getattr` for a member of an enumeration; nothing else is looked up."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"it asks for the attribute {name!r}, which no checkpoint needs; nothing was run")


_HARMLESS = {("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}


def _host_rng_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
    }


def _set_host_rng_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))


def _device_module() -> Any:
    device = runtime.device()
    return None if device.type == "cpu" else torch.get_device_module(device)


_GENERATOR = "random."


def _is_rng(name: str) -> bool:
    return name.startswith(_GENERATOR)


def _rng_states() -> dict[str, torch.Tensor]:
    """torch's generators of this process; those of process 0 have the plain names."""
    own = f".{runtime.rank()}" if runtime.rank() else ""
    states = {f"{_GENERATOR}torch{own}": torch.get_rng_state()}
    module = _device_module()
    if module is not None:
        states[f"{_GENERATOR}device{own}"] = module.get_rng_state()
    return states


def _set_rng_states(states: dict[str, torch.Tensor]) -> None:
    for name, state in states.items():
        if name.startswith(f"{_GENERATOR}torch"):
            torch.set_rng_state(state)
        else:
            _device_module().set_rng_state(state)

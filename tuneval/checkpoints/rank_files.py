"""The rank files of Megatron-LM / MindSpeed-LLM: iter_*/mp_rank_*/model_optim_rng.pt of any grid, found and opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneval.checkpoints.layout import rank_name
from tuneval.checkpoints.pickled import StoredTensor, safe_load
from tuneval.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"
Chunk = list[dict[str, StoredTensor]]
"""One pipeline stage (or virtual stage): for each TP rank its tensors by local Megatron name."""


class MegatronFiles:
    """The rank files of a checkpoint of any layout: what is where, no tensor read.

    Args:
        folder: the one with the tracker file, or one iter_* folder.

    Raises:
        UserError: a missing or unreadable rank file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.iteration_folder = find_iteration(self.folder)
        grid = _rank_grid(self.iteration_folder)
        self.first, self.tp = grid[0][0], len(grid[0])
        loaded = [[_load_rank(file) for file in stage] for stage in grid]
        self.args, self.iteration = loaded[0][0].get("args"), loaded[0][0].get("iteration")
        chunks = _chunks(loaded, self.iteration_folder)
        self.weights: list[Chunk] = _only(chunks, lambda name: ".lora_" not in name)
        """The model, or what lies under its adapter."""
        self.lora: list[Chunk] = _only(chunks, lambda name: ".lora_" in name)
        """A and B of LoRA; empty dicts where there are none."""

    @property
    def has_weights(self) -> bool:
        return any(rank for chunk in self.weights for rank in chunk)

    @property
    def has_lora(self) -> bool:
        return any(rank for chunk in self.lora for rank in chunk)


def find_iteration(folder: Path) -> Path:
    """The folder with the mp_rank_* folders: the one given, the one its tracker names, or its only iter_*."""
    if any(folder.glob("mp_rank_*")):
        return folder
    tracker = folder / TRACKER
    if tracker.is_file():
        word = tracker.read_text(encoding="utf-8", errors="replace").strip()
        named = word if re.fullmatch(r"release|iter_\d{7,18}", word) else None
        named = f"iter_{int(word):07d}" if re.fullmatch(r"[0-9]{1,18}", word) else named
        if named is None:
            raise UserError(
                f"{tracker}: says {word[:40]!r}, not a number or release. Write the checkpoint's number in it."
            )
        if not (folder / named).is_dir():
            raise UserError(f"{tracker}: says {word}, but {named} is not there")
        return folder / named
    found = sorted(p for p in folder.glob("iter_*") if p.is_dir())
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found)
        raise UserError(f"{folder}: no {TRACKER}, and several checkpoints: {names}. Give one of these folders.")
    raise UserError(f"{folder}: no Megatron checkpoint. Looked for {TRACKER}, iter_* and mp_rank_*.")


def is_megatron(folder: str | Path) -> bool:
    """Whether a folder looks like a Megatron checkpoint."""
    return any(any(Path(folder).glob(marker)) for marker in (TRACKER, "iter_*", "mp_rank_*"))


_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?$")


def _rank_grid(folder: Path) -> list[list[Path]]:
    """Rank files by [stage][tp rank]; none may be missing."""
    ranks, staged = {}, set()
    for path in sorted(folder.glob("mp_rank_*")):
        match = _RANK.match(path.name)
        if match is None:
            raise UserError(f"{path}: expert-parallel ranks; dense models (mp_rank_TT or mp_rank_TT_PPP) can be read")
        staged.add(match[2] is not None)
        ranks[int(match[2] or 0), int(match[1])] = path / RANK_FILE
    if not ranks:
        other = " (this is the torch_dist format)" if any(folder.glob("*.distcp")) else ""
        raise UserError(f"{folder}: no mp_rank_* folder in it{other}. Save it with Megatron's --ckpt-format torch.")
    if len(staged) > 1:
        raise UserError(
            f"{folder}: ranks with a stage (mp_rank_00_000) and without (mp_rank_00): two checkpoints in one folder. Move "
            "the older one away"
        )
    pp, tp = (max(axis) + 1 for axis in zip(*ranks))
    named = 2 if staged == {True} else 1  # a single stage may be named, too
    wanted = {(p, t): folder / rank_name(t, p, named) / RANK_FILE for p in range(pp) for t in range(tp)}
    missing = [str(file.relative_to(folder)) for file in wanted.values() if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 12} more" if len(missing) > 12 else ""
        raise UserError(f"{folder}: TP {tp} x PP {pp} by its folders, but not there: {', '.join(missing[:12])}{more}")
    return [[wanted[p, t] for t in range(tp)] for p in range(pp)]


def _load_rank(file: Path) -> dict[str, Any]:
    """What a rank file holds; its pieces of the model are tensors by name."""
    loaded = safe_load(file)
    found = ", ".join(map(str, list(loaded)[:12])) if isinstance(loaded, dict) else type(loaded).__name__
    if not isinstance(loaded, dict) or not _model_keys(loaded):
        raise UserError(f"{file}: no `model` in it; found {found}. Save it with Megatron's --ckpt-format torch.")
    for key in _model_keys(loaded):
        if not isinstance(loaded[key], dict) or not all(isinstance(name, str) for name in loaded[key]):
            raise UserError(f"{file}: its `{key}` is {type(loaded[key]).__name__}, not tensors by name")
        odd = [n for n, t in loaded[key].items() if not isinstance(t, StoredTensor) and not n.endswith("_extra_state")]
        if odd:
            kind = type(loaded[key][odd[0]]).__name__
            raise UserError(f"{file}: {odd[0]} is not a tensor but {kind}; {len(odd)} such entries in `{key}`")
    return loaded


def _model_keys(loaded: dict) -> list[str]:
    """`model`, or `model0`, `model1` ... of virtual stages, in their order."""
    return sorted(
        (k for k in loaded if isinstance(k, str) and re.fullmatch(r"model\d{0,4}", k)), key=lambda k: int(k[5:] or 0)
    )


def _chunks(loaded: list[list[dict]], where: Path) -> list[Chunk]:
    """Pieces of the model in the order of its layers: virtual stage by virtual stage, each over all pipeline stages."""
    keys = _model_keys(loaded[0][0])
    for stage in loaded:
        for rank in stage:
            if _model_keys(rank) != keys:
                raise UserError(
                    f"{where}: some rank files hold {', '.join(keys)}, others {', '.join(_model_keys(rank))}"
                )
    return [[_tensors(rank[key]) for rank in stage] for key in keys for stage in loaded]


def _only(chunks: list[Chunk], wanted: Callable[[str], bool]) -> list[Chunk]:
    return [[{n: t for n, t in rank.items() if wanted(n)} for rank in chunk] for chunk in chunks]


def _tensors(state: dict) -> dict[str, StoredTensor]:
    """Weights of one rank by plain name. `_extra_state` (None, or a blob of transformer_engine) is no weight."""
    kept = {n: t for n, t in state.items() if not n.endswith("_extra_state")}
    return {n.removeprefix("module.").replace(".base_layer.", "."): t for n, t in kept.items()}


def places_of(chunks: list[Chunk]) -> dict[int | None, tuple[int, int | None]]:
    """Global layer -> (chunk, local number). Numbers without tensors (noop layers) are passed over."""
    places: dict[int | None, tuple[int, int | None]] = {}
    for number, chunk in enumerate(chunks):
        matches = (re.match(r"decoder\.layers\.(\d+)\.", name) for name in chunk[0])
        for local in sorted({int(m[1]) for m in matches if m}):
            places[len(places)] = (number, local)
    return places

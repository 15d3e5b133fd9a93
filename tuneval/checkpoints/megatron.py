"""Megatron-LM / MindSpeed-LLM checkpoints of any TP x PP x VPP grid: a source that reads them, a sink that writes them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from tuneval import files
from tuneval.checkpoints.hf import read_config
from tuneval.checkpoints.layout import ShardLayout, check_args, make_args, rank_name
from tuneval.checkpoints.pickled import StoredTensor
from tuneval.checkpoints.rank_files import (
    RANK_FILE,
    TRACKER,
    Chunk,
    MegatronFiles,
    find_iteration,
    is_megatron,
    places_of,
)
from tuneval.checkpoints.streamed import Pending, save
from tuneval.errors import UserError
from tuneval.model.weight_map import Row, rows

EMBEDDING = "embedding.word_embeddings.weight"


class MegatronSource:
    """A Megatron checkpoint of any layout, seen as Hugging Face's tensors; of a LoRA checkpoint what lies under it.

    Args:
        folder: the one with the tracker file, one iter_* folder, or its files, opened.
        config_folder: holds config.json and the tokenizer. Default: `folder`, or the folder of the tracker.

    Raises:
        UserError: a missing rank file, a tensor missing, unknown or of a wrong shape, or no config.json.
    """

    kind = "mcore"

    def __init__(self, folder: str | Path | MegatronFiles, config_folder: str | Path | None = None) -> None:
        files = folder if isinstance(folder, MegatronFiles) else MegatronFiles(folder)
        self.iteration_folder, self.iteration, self.tp = files.iteration_folder, files.iteration, files.tp
        self.folder = Path(config_folder) if config_folder else _config_folder(files.folder, files.iteration_folder)
        self.config = read_config(self.folder)
        check_args(files.args, self.config, self.tp, str(files.first))
        chunks = files.weights
        self._vocabulary = sum(rank[EMBEDDING].shape[0] for rank in chunks[0] if EMBEDDING in rank)
        self._found = _assign(chunks, rows(self.config, self._vocabulary), self.tp, self.iteration_folder)
        self._check_vocabulary()
        self._rows = {name: (row, i) for row in self._found if not row.is_copy for i, name in enumerate(row.hf_names)}
        self._copy_checked = False

    def names(self) -> list[str]:
        """Tensors in the order of the forward pass."""
        return list(self._rows)

    def shape(self, name: str) -> tuple[int, ...]:
        row, which = self._rows[name]
        shape = row.hf_shapes[which]
        if row.name in (EMBEDDING, "output_layer.weight"):  # rows that a trainer padded are no part of the model
            return (self.config.vocab_size, *shape[1:])
        return shape

    def dtype(self, name: str) -> torch.dtype:
        return self._found[self._rows[name][0]][0].dtype

    def read(self, name: str) -> torch.Tensor:
        row, _ = self._rows[name]
        if row.tp_dim is None:
            self._check_replicas(row)
        return self.read_slice(name, row.tp_dim or 0, 0, self.shape(name)[row.tp_dim or 0])

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        row, which = self._rows[name]
        if row.name == EMBEDDING and not self._copy_checked:
            self._check_copy(row)
        if dim != (row.tp_dim or 0):
            return self.read(name).narrow(dim, start, stop - start)
        stored = self._found[row]
        return row.split(lambda rank, d, low, high: stored[rank].read_slice(d, low, high), self.tp, which, start, stop)

    def _check_vocabulary(self) -> None:
        if self._vocabulary < self.config.vocab_size:
            raise UserError(
                f"{self.iteration_folder}: the embedding has {self._vocabulary} rows, config.json's vocab_size is "
                f"{self.config.vocab_size}. Is this the right config.json?"
            )

    def _check_replicas(self, row: Row) -> None:
        first, *others = (stored.read() for stored in self._found[row])
        for rank, other in enumerate(others, 1):
            if not torch.equal(first, other):
                raise UserError(f"{self.iteration_folder}: rank {rank} holds another {row.hf_names[0]} than rank 0")

    def _check_copy(self, embedding: Row) -> None:
        """The last stage's copy of a tied embedding must be one: it is used by being compared."""
        self._copy_checked = True
        for row in self._found:
            for rank in range(self.tp) if row.is_copy else ():
                if not torch.equal(self._found[row][rank].read(), self._found[embedding][rank].read()):
                    raise UserError(
                        f"{self.iteration_folder}: config.json ties output_layer.weight to the embedding, but on rank "
                        f"{rank} they differ. Is tie_word_embeddings right?"
                    )


class MegatronSink:
    """Writes a Megatron folder, one tensor at a time; the folder appears, whole, when the block ends well.

    Args:
        folder: to write.
        hf_config: of the model.
        layout: of the rank files.
        dtype: of the weights, for the files' `args`.
        more_args: what `args` says besides.
        iteration: number of the checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        hf_config: Any,
        layout: ShardLayout,
        dtype: torch.dtype,
        more_args: dict[str, Any] | None = None,
        iteration: int = 1,
    ) -> None:
        self._target, self._layout, self._iteration = Path(folder), layout, iteration
        self._args = make_args(hf_config, layout, dtype)
        vars(self._args).update({**(more_args or {}), "iteration": iteration})
        self._stack = ExitStack()

    def __enter__(self) -> MegatronSink:
        self.folder = self._stack.enter_context(files.atomic_folder(self._target))
        (self.folder / TRACKER).write_text(
            str(self._iteration)
        )  # the folder is not public yet: the order does not matter
        return self

    def write_rank(self, stage: int, tp_rank: int, pieces: list[dict[str, Pending]]) -> None:
        """Write one rank file; each tensor is made when its turn comes and owns its storage in the file.

        Args:
            stage: pipeline stage.
            tp_rank: tensor-parallel rank.
            pieces: `model`, or `model0`, `model1` ... where the stage has several.
        """
        target = self.folder / f"iter_{self._iteration:07d}" / rank_name(tp_rank, stage, self._layout.pp)
        target.mkdir(parents=True)
        named = {f"model{i}" if len(pieces) > 1 else "model": tensors for i, tensors in enumerate(pieces)}
        state = {"args": self._args, "checkpoint_version": 3.0, "iteration": self._iteration, **named}
        save(state, target / RANK_FILE)

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)


def has_config(folder: str | Path) -> bool:
    """Whether a Megatron checkpoint carries config.json; True for what is no Megatron checkpoint."""
    folder = Path(folder)
    return not is_megatron(folder) or _carrying_config(folder, find_iteration(folder)) is not None


def _carrying_config(folder: Path, iteration_folder: Path) -> Path | None:
    candidates = (folder, iteration_folder, iteration_folder.parent)
    return next((c for c in candidates if (c / "config.json").is_file()), None)


def _config_folder(folder: Path, iteration_folder: Path) -> Path:
    found = _carrying_config(folder, iteration_folder)
    if found is not None:
        return found
    raise UserError(
        f"{folder}: no config.json beside the Megatron shards. Copy the original Hugging Face model's config.json and "
        "tokenizer files there, name its folder with --tokenizer-name-or-path, or convert with --hf-cfg-dir DIR."
    )


def _assign(chunks: list[Chunk], table: list[Row], tp: int, where: Path) -> dict[Row, list[StoredTensor]]:
    """Give every row its tensor on each TP rank, and every tensor its row; anything left on either side is an error."""
    found: dict[Row, list[StoredTensor]] = {}
    unused = {(c, r, name) for c, chunk in enumerate(chunks) for r, rank in enumerate(chunk) for name in rank}
    places = {None: (-1, None), **places_of(chunks)}
    missing, misshapen = [], []
    for row in table:
        number, local = (0, None) if row.place == "embedding" else places.get(row.layer, (None, None))
        stored = [] if number is None else _take(chunks[number], row, local, number % len(chunks), unused)
        if len(stored) == tp:
            found[row] = stored
            misshapen += _wrong_shape(row, stored, tp)
        elif not row.is_copy:
            missing.append(f"missing: {_title(row)}")
    left = [f"left over: {name} (stage {c}, rank {r})" for c, r, name in sorted(unused)]
    if wrong := missing + left + misshapen:
        more = f"\n  ... and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        layers = f"{len(places) - 1} layers found"
        raise UserError(f"{where}: does not fit its config.json ({layers}):\n  " + "\n  ".join(wrong[:12]) + more)
    return found


def _title(row: Row) -> str:
    return row.name if row.layer is None else f"{row.name} of layer {row.layer}"


def _take(chunk: Chunk, row: Row, local: int | None, number: int, unused: set) -> list[StoredTensor]:
    """A row's tensor from every rank that has it, under Megatron's own name or transformer_engine's."""
    names = (row.megatron_name(local), row.megatron_name(local, alias=True))
    taken = []
    for r, rank in enumerate(chunk):
        name = next((n for n in names if isinstance(rank.get(n), StoredTensor)), None)
        if name is not None:
            taken.append(rank[name])
            unused.discard((number, r, name))
    return taken


def _wrong_shape(row: Row, stored: list[StoredTensor], tp: int) -> list[str]:
    """At most one line about a row whose tensors do not have the shape that the config gives it."""
    if row.tp_dim is not None and sum(shape[row.tp_dim] for shape in row.hf_shapes) % tp:
        return [f"{_title(row)}: {tp} ranks can't share {row.hf_shapes}"]
    expected = row.rank_shape(tp)
    found = (f"{list(t.shape)} on rank {r}" for r, t in enumerate(stored) if t.shape != expected)
    return [f"{_title(row)}: {text}, {list(expected)} by the config" for text in found][:1]

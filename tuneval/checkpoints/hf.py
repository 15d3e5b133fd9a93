"""Hugging Face folders: weights read and written tensor by tensor, so that no model has to fit in memory.

A *source* is a checkpoint of any format seen as Hugging Face's tensors (`Source` below); `HfSource` is the plain one.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from tuneval import files
from tuneval.checkpoints.hf_files import NAME_OF_DTYPE, stored_tensors
from tuneval.checkpoints.streamed import blocks_read, bytes_of
from tuneval.errors import UserError


class Source(Protocol):
    """A checkpoint of any format, seen as Hugging Face's tensors."""

    folder: Path
    """Where config.json and the tokenizer lie."""
    kind: str
    """`hf`, `mcore` or `adapter`."""
    config: Any
    """transformers' config."""

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def read(self, name: str) -> torch.Tensor: ...
    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor: ...


class HfSource:
    """A Hugging Face folder: safetensors, one file or sharded; else the older `pytorch_model*.bin`.

    Args:
        folder: holds config.json and the weights.

    Raises:
        UserError: no weights, a missing shard, or an index that does not say what the files hold.
    """

    kind = "hf"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._tensors = stored_tensors(self.folder)
        self._config: Any = None
        self._names = sorted(set(self._tensors) - self._spare(), key=_reading_order)

    @property
    def config(self) -> Any:
        self._config = self._config or read_config(self.folder)
        return self._config

    def names(self) -> list[str]:
        """Tensors in the order of the forward pass. The other methods raise KeyError for a name that is not in it."""
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._find(name).dtype

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored; safetensors give a view of the file's pages, copied when changed."""
        return self._find(name).read()

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` along `dim`; only their pages are touched."""
        return self._find(name).read_slice(dim, start, stop)

    def _spare(self) -> set[str]:
        """Stored tensors that are no weights of the model: rotary buffers, and a second copy of a tied embedding."""
        spare = {name for name in self._tensors if name.endswith("rotary_emb.inv_freq")}
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if {head, embedding} <= set(self._tensors) and self.config.tie_word_embeddings:
            if not torch.equal(self.read(head), self.read(embedding)):
                raise UserError(
                    f"{self.folder}: config.json ties {head} to {embedding}, but they differ. "
                    'Set "tie_word_embeddings" to false if both are meant.'
                )
            spare.add(head)
        return spare

    def _find(self, name: str) -> Any:
        if name not in self._tensors:
            raise KeyError(f"{self.folder}: no tensor {name}")
        return self._tensors[name]


def read_config(folder: str | Path) -> Any:
    """transformers' config of a folder. Code that lies in the folder is never run.

    Raises:
        UserError: no config.json, or an architecture that the installed transformers does not have.
    """
    from transformers import AutoConfig

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: no config.json. Copy the original model's config.json and tokenizer files there.")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a bad config raises differs between transformers versions
        raise UserError(f"{folder}/config.json: transformers can't use it ({error})") from None


def size_of(source: Source) -> int:
    """Bytes of all tensors of a source."""
    return sum(torch.Size(source.shape(n)).numel() * source.dtype(n).itemsize for n in source.names())


COMPANIONS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
"""What a checkpoint folder carries beside its weights: config, tokenizer, template, generation defaults."""
_NOT_COMPANIONS = re.compile(r"(\.index|^convert|^adapter_config|^trainer_state|^results|^comparison)\.json$")


def copy_companions(source: Path, target: Path) -> None:
    """Copy config and tokenizer files. Weights, code and this project's own records stay behind."""
    for pattern in COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not _NOT_COMPANIONS.search(file.name):
                shutil.copyfile(file, target / file.name)


class HfSink:
    """Writes a folder of safetensors, one tensor at a time; the folder appears, whole, when the block ends well.

    Args:
        folder: to write; an existing one is replaced at the end.
        max_shard_bytes: of one file; a larger tensor gets a file of its own.

    >>> with HfSink("out") as sink:          # doctest: +SKIP
    ...     copy_companions(source.folder, sink.folder)
    ...     sink.add("model.norm.weight", tensor)
    """

    def __init__(self, folder: str | Path, max_shard_bytes: int = 4 << 30) -> None:
        self._target, self._limit = Path(folder), max_shard_bytes
        self._shards: list[_ShardWriter] = []
        self._stack = ExitStack()

    def __enter__(self) -> HfSink:
        self.folder = self._stack.enter_context(files.atomic_folder(self._target))
        return self

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor; it is on disk, and out of memory, when this returns."""
        size = tensor.numel() * tensor.dtype.itemsize
        if any(name in shard.header for shard in self._shards):
            raise UserError(f"{self._target}: tensor {name} was given twice")
        if not self._shards or not self._shards[-1].has_room(size, tensor.dtype, self._limit):
            if self._shards:
                self._shards[-1].close()
            self._shards.append(_ShardWriter(self.folder / f".shard-{len(self._shards)}"))
        self._shards[-1].append(name, tensor)

    def __exit__(self, *failure: Any) -> None:
        try:
            if failure[0] is None:
                self._publish()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        finally:
            if failure[0] is not None:
                for shard in self._shards:
                    shard.file.close()
        self._stack.__exit__(*failure)

    def _publish(self) -> None:
        if not self._shards:
            raise UserError(f"{self._target}: no tensor was written")
        self._shards[-1].close()
        count = len(self._shards)
        if count == 1:
            self._shards[0].path.rename(self.folder / "model.safetensors")
            return
        weight_map = {}
        for number, shard in enumerate(self._shards, 1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            shard.path.rename(self.folder / name)
            weight_map.update(dict.fromkeys(shard.header, name))
        total = sum(shard.size for shard in self._shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_json(self.folder / "model.safetensors.index.json", index, sync=False)


class _ShardWriter:
    """One safetensors file, written in one pass: room for the header is kept free and filled at the end.

    safetensors' own writer wants every tensor of the file in memory at once. The format allows spaces after the header.
    """

    HEADER_BYTES = (1 << 18) - 8

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.header: dict[str, dict] = {}
        self._header_bytes = 64
        self.file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.file.seek(8 + self.HEADER_BYTES)

    def has_room(self, size: int, dtype: torch.dtype, limit: int) -> bool:
        aligned = self.size % dtype.itemsize == 0  # the format allows no gaps, and readers want aligned elements
        return aligned and self.size + size <= limit and self._header_bytes + 1024 < self.HEADER_BYTES

    def append(self, name: str, tensor: torch.Tensor) -> None:
        start = self.size
        for block in blocks_read(bytes_of(tensor.cpu())):
            self.size += self.file.write(block)
        self.header[name] = {
            "dtype": NAME_OF_DTYPE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, self.size],
        }
        self._header_bytes += len(json.dumps({name: self.header[name]}))

    def close(self) -> None:
        text = json.dumps({"__metadata__": {"format": "pt"}, **self.header}).encode().ljust(self.HEADER_BYTES)
        self.file.seek(0)
        self.file.write(struct.pack("<Q", self.HEADER_BYTES) + text)
        self.file.close()


def _reading_order(name: str) -> tuple:
    """Embedding, layers by number, final norm, head."""
    last = 2 if name.startswith("lm_head") else 1 if re.search(r"(^|\.)(norm|ln_f|final_layernorm)\.", name) else 0
    inside = re.search(r"\.(layers|h|blocks)\.(\d+)\.", name)
    return (1 if inside else 2 if last else 0, last if not inside else int(inside.group(2)), name)

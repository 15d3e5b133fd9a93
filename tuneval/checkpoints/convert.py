"""Source -> Hugging Face or Megatron folder, streamed: memory holds one tensor, never a file, let alone the model."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch

from tuneval import files
from tuneval.checkpoints.hf import COMPANIONS, HfSink, Source, copy_companions, size_of
from tuneval.checkpoints.layout import Piece, ShardLayout
from tuneval.checkpoints.megatron import MegatronSink
from tuneval.checkpoints.megatron_lora import LoraForm
from tuneval.checkpoints.padding import PaddedVocabulary, padded_size
from tuneval.checkpoints.rank_files import RANK_FILE, TRACKER
from tuneval.checkpoints.streamed import Pending
from tuneval.console import Bar, note, progress_bar
from tuneval.errors import UserError
from tuneval.model.weight_map import Row, rows

RECORD = "convert.json"
"""Written beside the weights: the resolved configuration, what was read, and the files written."""
_USUAL = (*COMPANIONS, TRACKER, f"iter_*/mp_rank_*/{RANK_FILE}", "model.safetensors", "model-*-of-*.safetensors")
"""The files of a result whose record does not list them yet."""


def to_hf(
    source: Source,
    save: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 4 << 30,
    record: dict | None = None,
) -> None:
    """Write a source as a Hugging Face folder with config and tokenizer.

    Args:
        source: any checkpoint, of any architecture.
        save: folder to write.
        dtype: cast every tensor to it; None keeps each as stored.
        max_shard_bytes: of one safetensors file.
        record: goes to convert.json.

    Raises:
        UserError: the folder is in use or holds other files, or the disk is too small. Nothing is written then.
    """
    check_target(save, source)
    files.check_free_space(save, _written_bytes(source, dtype), "The Hugging Face folder")
    names = source.names()
    with HfSink(save, max_shard_bytes) as sink, progress_bar("tensors", len(names)) as bar:
        for name in names:
            sink.add(name, _cast(source.read(name), dtype))
            bar.advance()
        _finish(source, sink.folder, dtype, record)


def to_mcore(
    source: Source,
    save: Path,
    layout: ShardLayout,
    dtype: torch.dtype | None = None,
    record: dict | None = None,
    lora: LoraForm | None = None,
    iteration: int = 1,
    consumed_samples: int = 0,
    vocabulary: int | None = None,
    transformer_impl: str = "local",
) -> None:
    """Write a source as Megatron shards with config and tokenizer, one tensor at a time.

    Args:
        source: any checkpoint of a family that the weight table covers; Megatron of another layout too.
        save: folder to write.
        layout: from `plan_layout`.
        dtype: cast every tensor to it; None keeps each as stored.
        record: goes to convert.json.
        lora: an adapter to write beside the weights; `source` is the model under it.
        iteration: number of the checkpoint.
        consumed_samples: that training saw until then.
        vocabulary: rows of the written embedding and head, the last one repeated; rounded up to what the ranks can share.
            None: the model's.
        transformer_impl: whose layers the tensors are named for, `local` or `transformer_engine`.

    Raises:
        UserError: tensors that the table has no place for or does not find, the folder is in use or holds other files, or
            the disk is too small. Nothing is written then.
    """
    check_complete(source, rows(source.config))
    if dtype is None:
        _check_types(source, rows(source.config))
    check_target(save, source)
    words = padded_size(vocabulary or source.config.vocab_size, 1, layout.tp)
    source, table = PaddedVocabulary(source, words), rows(source.config, words)
    files.check_free_space(save, _written_bytes(source, dtype, layout), "The Megatron folder")
    stored = dtype or source.dtype(source.names()[0])
    stages = [layout.stage_rows(table, stage) for stage in range(layout.pp)]
    total = layout.tp * sum(len(piece) for stage in stages for piece in stage)
    more_args = {"padded_vocab_size": words, "consumed_train_samples": consumed_samples, **(lora.args if lora else {})}
    more_args["transformer_impl"] = transformer_impl
    sink = MegatronSink(save, source.config, layout, stored, more_args, iteration)

    with sink, progress_bar("tensors", total) as bar:

        def entries(piece: Piece, rank: int) -> dict[str, Pending]:
            """One piece of a stage in a rank file."""
            found: dict[str, Pending] = {}
            for row, local in piece:
                name = row.megatron_name(local, alias=transformer_impl == "transformer_engine")
                tensor = _rank_tensor(source, layout.tp, rank, dtype, bar, row)
                found |= lora.entries(row, name, layout.tp, rank, tensor) if lora else {name: tensor}
            return found

        for stage, rank in product(range(layout.pp), range(layout.tp)):
            bar.describe(f"stage {stage}, rank {rank}")
            sink.write_rank(stage, rank, [entries(piece, rank) for piece in stages[stage]])
        _finish(source, sink.folder, dtype, record)


def _rank_tensor(source: Source, tp: int, rank: int, dtype: torch.dtype | None, bar: Bar, row: Row) -> Pending:
    def make() -> list[torch.Tensor]:
        bar.advance()
        return [_cast(piece, dtype) for piece in row.pieces(source.read_slice, tp, rank)]

    return Pending(row.rank_shape(tp), dtype or source.dtype(row.hf_names[0]), make)


def check_complete(source: Source, table: list[Row]) -> None:
    """Every tensor of the source has one place in the table, with the right shape, and the other way round."""
    shapes = {name: shape for row in table for name, shape in zip(row.hf_names, row.hf_shapes)}
    names = set(source.names())
    wrong = [f"missing: {name}" for name in shapes if name not in names]
    wrong += [f"left over: {name}" for name in source.names() if name not in shapes]
    wrong += [
        f"{name}: {list(source.shape(name))}, {list(shape)} by the config"
        for name, shape in shapes.items()
        if name in names and tuple(source.shape(name)) != shape
    ]
    wrong += [
        f"{n}: {source.dtype(n)}, no float" for n in shapes if n in names and not source.dtype(n).is_floating_point
    ]
    if wrong:
        more = f"\n  ... and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise UserError(f"{source.folder}: does not fit its config.json:\n  " + "\n  ".join(wrong[:12]) + more)


def _check_types(source: Source, table: list[Row]) -> None:
    for row in table:
        if len({source.dtype(name) for name in row.hf_names}) > 1:
            names = ", ".join(row.hf_names)
            raise UserError(
                f"{source.folder}: {names} are of several types, but one tensor of Megatron's. Give --params-dtype"
            )


def check_target(save: Path, source: Source) -> None:
    """Refuse to replace what is not an earlier result of this command and nothing else, or is being read; say what is."""
    target = save.resolve()
    if any(target in (folder, *folder.parents) for folder in _folders_read(source)):
        raise UserError(f"--save {save}: holds what is read and would be replaced. Choose another folder.")
    check_replaceable(save)
    files.remove_partial(save)
    if (save / RECORD).is_file():
        note(f"--save {save}: the earlier result there{_described(files.read_object(save / RECORD))} is replaced")


def check_replaceable(save: Path) -> None:
    """Raise a UserError where writing a folder would replace what is not an earlier result and nothing else."""
    if not save.exists() or (save.is_dir() and not any(save.iterdir())):
        return
    if not (save / RECORD).is_file():
        raise UserError(f"--save {save}: is there already and would be replaced. Choose another folder, or remove it.")
    others = _others(save, files.read_object(save / RECORD))
    if others:
        more = f" and {len(others) - 12} more" if len(others) > 12 else ""
        raise UserError(
            f"--save {save}: is an earlier result and would be replaced, but holds what no conversion wrote: "
            f"{', '.join(others[:12])}{more}. Move that, or choose another folder."
        )


def _others(save: Path, record: dict[str, Any]) -> list[str]:
    """Every file, link and empty folder in an earlier result that is not of it."""
    listed = record.get("files")
    own = {save / str(name) for name in listed} if isinstance(listed, list) else set()
    if not own:
        own = {path for pattern in _USUAL for path in save.glob(pattern)}
    ends = (p for p in sorted(save.rglob("*")) if p.is_symlink() or not p.is_dir() or not any(p.iterdir()))
    return [path.relative_to(save).as_posix() for path in ends if path not in own]


def _described(record: dict[str, Any]) -> str:
    """What a record says of the form of its result; nothing where `tune` wrote it."""
    config = record.get("config")
    if not isinstance(config, dict) or config.get("to") not in ("hf", "mcore"):
        return ""
    if config["to"] == "hf":
        return " (Hugging Face)"
    tp, pp = config.get("target_tensor_parallel_size"), config.get("target_pipeline_parallel_size")
    layers = f", layers {config['num_layer_list']}" if config.get("num_layer_list") else ""
    return f" (Megatron, TP {tp} x PP {pp}{layers})"


def _folders_read(source: Source) -> list[Path]:
    """Every folder that weights or config come from: a Megatron checkpoint's config may lie elsewhere."""
    named = (getattr(source, attribute, None) for attribute in ("folder", "iteration_folder", "adapter"))
    own = [Path(folder).resolve() for folder in named if folder is not None]
    base = getattr(source, "base", None)
    return own if base is None else own + _folders_read(base)


def _written_bytes(source: Source, dtype: torch.dtype | None, layout: ShardLayout | None = None) -> int:
    size = size_of(source)
    if dtype is not None:
        size = sum(torch.Size(source.shape(n)).numel() for n in source.names()) * dtype.itemsize
    if layout is not None and layout.pp > 1 and source.config.tie_word_embeddings:
        size += torch.Size(source.shape("model.embed_tokens.weight")).numel() * 4
    return size + (64 << 20)  # config, tokenizer, headers


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if dtype == torch.float16 and cast.isinf().any() and not tensor.isinf().any():
        largest = tensor.abs().max().item()
        raise UserError(f"--params-dtype fp16: a weight of {largest:.6g} is beyond its 65504. Give bf16 or fp32")
    return cast


def _finish(source: Source, folder: Path, dtype: torch.dtype | None, record: dict[str, Any] | None) -> None:
    copy_companions(source.folder, folder)
    adapter = getattr(source, "adapter", None)
    if adapter is not None and (adapter / "tuneval.json").is_file():  # the tuned template wins over the base's
        files.write_json(folder / "tuneval.json", files.read_json(adapter / "tuneval.json"), sync=False)
    if dtype is None and source.kind == "mcore":  # its config.json may be of weights of another type
        dtype = source.dtype(source.names()[0])
    if dtype is not None:
        _state_type(folder / "config.json", dtype)
    files.write_json(folder / RECORD, {**(record or {}), "files": _written_files(folder)}, sync=False)


def _state_type(path: Path, dtype: torch.dtype) -> None:
    """Let a config.json say the type of its weights, as transformers loads them; it stays as it is where it does."""
    config, name = files.read_json(path), str(dtype).removeprefix("torch.")
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    if any(config.get(key) != name for key in keys):
        files.write_json(path, config | dict.fromkeys(keys, name), sync=False)


def _written_files(folder: Path) -> list[str]:
    """Every file of a result, as it is named once the folder appears: HfSink names its weights last."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    weights = [name for name in names if name.startswith(".shard-")]
    named = [f"model-{n:05d}-of-{len(weights):05d}.safetensors" for n in range(1, len(weights) + 1)]
    if len(weights) == 1:
        named = ["model.safetensors"]
    elif weights:
        named.append("model.safetensors.index.json")
    return sorted([*set(names).difference(weights), *named, RECORD])

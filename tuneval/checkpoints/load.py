"""Whatever `--load` names -> a source of tensors, or a model ready to run."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneval import files, runtime
from tuneval.checkpoints.hf import HfSource, Source
from tuneval.checkpoints.megatron import MegatronSource, has_config
from tuneval.checkpoints.megatron_lora import adapted_layers, read_megatron_lora
from tuneval.checkpoints.paths import check_there
from tuneval.checkpoints.rank_files import TRACKER, MegatronFiles, is_megatron
from tuneval.config.schema import MegatronLoraConfig, ParallelConfig
from tuneval.data.tokenizer import load_tokenizer
from tuneval.errors import Problems, UserError
from tuneval.model.adapter import Adapter, is_peft, read_peft
from tuneval.model.build import build_model, check_float, empty_model, stored_names
from tuneval.model.decoder import stored_name
from tuneval.parallel.mesh import Mesh, make_layout
from tuneval.parallel.tensor import tensor_parallel
from tuneval.parallel.weights import fill


def open_source(
    path: str | Path, config_folder: str | Path | None = None, stated: MegatronLoraConfig | None = None
) -> Source:
    """The checkpoint at `path`, as a source in Hugging Face's names.

    Args:
        path: a Hugging Face folder, a Megatron folder of any layout (the one with the tracker file, or one iter_*; its
            LoRA is merged), a run folder (its model/, or its adapter/ merged into the base), or an adapter folder.
        config_folder: config.json and tokenizer for a Megatron folder; it wins over what the folder carries.
        stated: what the command line says of the adapter there.

    Raises:
        UserError: nothing of the kind there (the text lists what was looked for), or an adapter other than stated.
    """
    path = Path(path)
    check_there(path)
    both = [name for name, marker in _RESULTS.items() if (path / marker).is_file()]
    if len(both) > 1:
        raise UserError(f"{path}: holds {' and '.join(both)}. Name one: {' or '.join(str(path / b) for b in both)}")
    for marker, opener in _OPENERS:
        if any(path.glob(marker)):
            return opener(path, config_folder, stated)
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path}: a run that has not ended, so without a model yet. Repeat its command to finish it.")
    raise UserError(f"{path}: no checkpoint in it. Looked for {', '.join(m for m, _ in _OPENERS)}.")


def open_megatron(
    path: Path, config_folder: str | Path | None = None, stated: MegatronLoraConfig | None = None
) -> Source:
    """A Megatron folder; where LoRA is in it, the model with the adapter merged."""
    files = MegatronFiles(path)
    if files.has_lora and not files.has_weights:
        raise UserError(
            f"{path}: holds an adapter alone (--lora-ckpt-filter). Give the model under it with --load and this folder "
            "with --lora-load"
        )
    source = MegatronSource(files, config_folder)
    if not files.has_lora:
        return source
    return AdapterSource(source, read_megatron_lora(files, source.config, stated or MegatronLoraConfig()))


class AdapterSource:
    """A base with an adapter merged into it while it is read: W + (alpha / r) B A, as peft merges.

    Args:
        base: source of the weights under the adapter.
        factors: the adapter.
    """

    kind = "adapter"

    def __init__(self, base: Source, factors: Adapter) -> None:
        self.base, self.factors, self.folder, self.config = base, factors, base.folder, base.config
        self.adapter = factors.folder
        factors.check_fits(base.names(), base.shape, base.folder)
        for module in factors.factors:
            check_float(f"{module}.weight", base.dtype(f"{module}.weight"))
        self.names, self.shape, self.dtype = base.names, base.shape, base.dtype

    def read(self, name: str) -> torch.Tensor:
        weight, delta = self.base.read(name), self.factors.delta(name)
        return weight if delta is None else weight + delta.to(weight.dtype)

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        weight, delta = self.base.read_slice(name, dim, start, stop), self.factors.delta(name)
        return weight if delta is None else weight + delta.narrow(dim, start, stop - start).to(weight.dtype)


def open_adapter(
    folder: str | Path, base: Source | None = None, stated: MegatronLoraConfig | None = None
) -> AdapterSource:
    """An adapter on its base.

    Args:
        folder: a PEFT folder, a run folder with one, or a Megatron folder with LoRA.
        base: the model under it; None: the one that the adapter names (a Megatron LoRA names none).
        stated: what the command line says of a Megatron LoRA.
    """
    folder = Path(folder)
    folder = folder / "adapter" if is_peft(folder / "adapter") else folder
    if is_peft(folder):
        adapter, base = read_peft(folder), _base_of(folder) if base is None else base
        _check_stated(adapter, base.config, stated or MegatronLoraConfig())
        return AdapterSource(base, adapter)
    if base is None or not is_megatron(folder):
        raise UserError(f"{folder}: no adapter. Looked for adapter_config.json, adapter/ and Megatron's LoRA")
    files = MegatronFiles(folder)
    if not files.has_lora:
        raise UserError(f"{folder}: a Megatron checkpoint without LoRA; give it with --load")
    return AdapterSource(base, read_megatron_lora(files, base.config, stated or MegatronLoraConfig()))


def _check_stated(adapter: Adapter, hf_config: Any, stated: MegatronLoraConfig) -> None:
    """Raise one UserError for what the command line says and a PEFT folder contradicts."""
    problems = Problems()
    for flag, given, own in (("r", stated.lora_r, adapter.r), ("alpha", stated.lora_alpha, adapter.alpha)):
        problems.check(
            given is None or math.isclose(given, own),
            f"--lora-{flag} {given}: the adapter in {adapter.folder} has {own:g}. Leave it out, or give that",
        )
    named = set(stated.lora_target_modules)
    problems.check(
        not named or named == set(adapter.targets) or named == set(adapted_layers(adapter, hf_config)),
        f"--lora-target-modules {' '.join(stated.lora_target_modules)}: the adapter in {adapter.folder} is of "
        f"{' '.join(adapter.targets)}. Leave the flag out",
    )
    problems.raise_if_any()


def stated_flags(stated: MegatronLoraConfig) -> list[str]:
    """What the command line says of an adapter, as it says it."""
    values = {"--lora-r": stated.lora_r, "--lora-alpha": stated.lora_alpha}
    flags = [f"{flag} {value}" for flag, value in values.items() if value is not None]
    return flags + (["--lora-target-modules"] if stated.lora_target_modules else [])


def _base_of(adapter: Path) -> Source:
    """The model that an adapter was made for."""
    named, config = files.read_object(adapter / "adapter_config.json").get("base_model_name_or_path"), None
    record = adapter / "tuneval.json"
    if record.is_file():
        facts = files.read_object(record)
        named, config = facts.get("base_model") or named, facts.get("base_config")
    if not isinstance(named, str) or not named:
        raise UserError(
            f"{adapter}/adapter_config.json: names no base model. Give it with --load, this with --lora-load."
        )
    for candidate in (Path(named), adapter / named):
        if candidate.exists() and candidate.resolve() != adapter.resolve():
            return open_with_tokenizer(candidate, config)
    raise UserError(
        f"{adapter}: made for the base model {named}, which is not on this machine. "
        "Give the base with --load and this folder with --lora-load."
    )


_OPENERS = (
    ("adapter_config.json", lambda folder, _, stated: open_adapter(folder, stated=stated)),
    ("model.safetensors*", lambda folder, *_: HfSource(folder)),
    ("pytorch_model.bin*", lambda folder, *_: HfSource(folder)),
    (TRACKER, open_megatron),
    ("mp_rank_*", open_megatron),
    ("iter_*", open_megatron),
    ("model/config.json", lambda run, *_: open_source(run / "model")),
    ("adapter/adapter_config.json", lambda run, _, stated: open_adapter(run / "adapter", stated=stated)),
)
"""File that tells a kind of folder -> what opens it, as `open_megatron` is called."""
_RESULTS = {"model": "model/config.json", "adapter": "adapter/adapter_config.json"}
"""What a run ends with -> the file that shows it is there."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and what it is."""

    model: Any
    """transformers model with the attention `tuneval`, in eval mode; of several processes each holds its part."""
    tokenizer: Any
    config: Any
    template_name: str | None
    """`--prompt-type` the model was tuned with; None where no record says."""
    template_fingerprint: str | None
    identity: dict[str, Any]
    """path, kind and weights_sha256, for records."""
    mesh: Mesh
    """The processes that share the model, and the copies of it that share the work."""
    template_description: dict[str, Any] | None = None
    """What the fingerprint hashes, so that a mismatch can name what differs."""


def open_with_tokenizer(
    path: str | Path, tokenizer_folder: str | Path | None, stated: MegatronLoraConfig | None = None
) -> Source:
    """`open_source`; a Megatron folder without config.json takes the one that lies with the tokenizer.

    MindSpeed-LLM's own checkpoints carry none, and its scripts name the original folder as the tokenizer's.
    """
    carried = tokenizer_folder is None or not (Path(tokenizer_folder) / "config.json").is_file() or has_config(path)
    return open_source(path, None if carried else tokenizer_folder, stated)


def load_model(
    path: str | Path,
    dtype: str,
    lora_load: str | Path | None = None,
    tokenizer_folder: str | Path | None = None,
    stated: MegatronLoraConfig | None = None,
    tensor_parallel_size: int = 1,
) -> Loaded:
    """Load the model at `path` on this machine's device. Every process of a job must call it.

    Args:
        path: anything `open_source` takes.
        dtype: `bf16`, `fp16` or `fp32`.
        lora_load: adapter folder to merge into it.
        tokenizer_folder: where the tokenizer lies (and config.json, for a Megatron folder without). Default: with the
            weights.
        stated: what the command line says of a Megatron LoRA.
        tensor_parallel_size: processes that share the model, each with its part; so many more have copies.

    Raises:
        UserError: nothing there that can be loaded, or processes among which the model can't be divided.
    """
    source = open_with_tokenizer(path, tokenizer_folder, stated)
    if lora_load is not None:
        source = open_adapter(lora_load, source, stated)
    flags = stated_flags(stated) if stated is not None else []
    if flags and not isinstance(source, AdapterSource):
        raise UserError(
            f"{', '.join(flags)}: {path} holds no adapter, so the model would answer without one. Name it with "
            "--lora-load, or leave them out"
        )
    mesh = _mesh(source, tensor_parallel_size)
    model, digest = (_whole if mesh.layout.tensor == 1 else _part)(source, mesh, runtime.DTYPES[dtype])
    facts = tuned_record(source)
    tokenizer = load_tokenizer(tokenizer_folder or source.folder)
    return Loaded(
        model,
        tokenizer,
        source.config,
        facts.get("prompt_type"),
        facts.get("template_fingerprint"),
        {"path": str(path), "kind": source.kind, "weights_sha256": mesh.first(digest())},
        mesh,
        facts.get("template"),
    )


def _mesh(source: Source, tensor_parallel_size: int) -> Mesh:
    """All processes of the job: groups that share a model, and so many copies of it."""
    problems, parallel = Problems(), ParallelConfig(tensor_model_parallel_size=tensor_parallel_size)
    layout = make_layout(parallel, source.config, runtime.world_size(), problems)
    problems.raise_if_any()
    return Mesh(layout, runtime.device().type)


def _whole(source: Source, mesh: Mesh, dtype: torch.dtype) -> tuple[PreTrainedModel, Callable[[], str | None]]:
    """The model, and what waits for the hash of its weights, which process 0 makes."""
    read = _HashingReader(source) if runtime.is_main() else source.read
    model = build_model(source.config, read, dtype, runtime.device())
    return model, read.digest if runtime.is_main() else lambda: None


def _part(source: Source, mesh: Mesh, dtype: torch.dtype) -> tuple[PreTrainedModel, Callable[[], str | None]]:
    """As `_whole`, of a model that several processes hold together."""
    digest = weights_hash(source) if runtime.is_main() else None
    model = empty_model(source.config, dtype)
    tensor_parallel(model, mesh.tp)
    fill(
        model,
        source,
        stored=partial(stored_name, source.config),
        fresh=lambda name, shape: None,
        dtype=dtype,
        device=runtime.device(),
    )
    return model.eval(), lambda: digest


def tuned_record(source: Source) -> dict[str, Any]:
    """tuneval.json of the tuning that made a model or its adapter: its template, its base; {} where there is none."""
    for folder in (getattr(source, "adapter", None), source.folder):
        if folder is not None and (folder / "tuneval.json").is_file():
            return files.read_object(folder / "tuneval.json")
    return {}


def weights_hash(source: Source) -> str:
    """The hash by which `load_model` knows weights, with a few tensors in memory at a time.

    Raises:
        UserError: a tensor that the config needs is not in the checkpoint.
    """
    read = _HashingReader(source)
    for name in stored_names(source.config):
        try:
            read(name)
        except KeyError:
            raise UserError(f"{source.folder}: {name} is not in the checkpoint, though the config needs it") from None
    return read.digest()


class _HashingReader:
    """Reads tensors and hashes what went by: the same weights give the same hash in every format and layout.

    Hashing goes on in threads of its own while the model is built and the tokenizer read: a third of loading else.
    """

    WAITING_BYTES = 1 << 30
    """Of tensors read and not yet hashed, at most."""

    def __init__(self, source: Source) -> None:
        self._source, self._digests = source, {}
        self._pool, self._waiting, self._bytes = ThreadPoolExecutor(2), deque(), 0

    def __call__(self, name: str) -> torch.Tensor:
        tensor = self._source.read(name)
        raw = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        self._digests[name] = self._pool.submit(lambda: hashlib.sha256(raw).hexdigest())
        self._waiting.append((self._digests[name], raw.nbytes))
        self._bytes += raw.nbytes
        while self._bytes > self.WAITING_BYTES:
            first, size = self._waiting.popleft()
            first.result()
            self._bytes -= size
        return tensor

    def digest(self) -> str:
        self._pool.shutdown()
        return files.sha256_json({name: digest.result() for name, digest in self._digests.items()})

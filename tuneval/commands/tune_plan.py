"""What `tune` will do, resolved and checked before any weight is read: every problem is told at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuneval import console, runtime
from tuneval.checkpoints.hf import Source, size_of
from tuneval.checkpoints.load import open_with_tokenizer, tuned_record
from tuneval.checkpoints.paths import holds_run
from tuneval.commands.tune_adapter import open_earlier
from tuneval.commands.tune_flags import check_flags, resolve, settings_without_effect
from tuneval.config.flags import Parsed, check_model_facts
from tuneval.config.schema import TuneConfig
from tuneval.data.batches import SftDataset, sample_order
from tuneval.data.split import split_borders
from tuneval.data.template import load_template, template_difference
from tuneval.data.tokenizer import load_tokenizer, vocabulary_sha256
from tuneval.errors import Problems
from tuneval.files import check_free_space
from tuneval.model.adapter import Adapter
from tuneval.model.lora import hf_targets
from tuneval.parallel.mesh import Layout, make_layout, without_effect
from tuneval.training.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """A checked run."""

    config: TuneConfig
    """Resolved: no default that depends on the model or the data is left open."""
    source: Source
    tokenizer: Any
    template: Any
    """The renderer the data was made with; goes along with the tuned model."""
    dataset: SftDataset
    borders: tuple[int, int, int, int]
    schedule: Schedule
    layout: Layout
    """How the model is spread over the processes of this job."""
    compiles: bool
    """Whether torch.compile makes the layers' kernels."""
    adapter: Adapter | None = None
    """What LoRA starts from; None: from the seed."""
    vocabulary: int | None = None
    """Rows of the embedding in RUN/mcore, where `--padded-vocab-size` says more than the model has."""

    @property
    def train_iters(self) -> int:
        return self.schedule.train_iters

    @property
    def train_samples(self) -> int:
        return self.borders[1]

    def order(self, split: int, num_samples: int) -> np.ndarray:
        """[num_samples] indices into the data set, of the train (0), validation (1) or test (2) split."""
        first, end = self.borders[split], self.borders[split + 1]
        data = self.config.data
        multiple = self.config.batch.global_batch_size if data.padded_samples and split == 0 else 1
        return first + sample_order(end - first, num_samples, self.config.log.seed, not data.no_shuffle, multiple)


def make_plan(parsed: Parsed) -> Plan:
    """Resolve and check everything.

    Raises:
        UserError: every problem found, together.
    """
    config, problems = parsed.config, Problems()
    check_flags(config, problems)
    source = problems.attempt(lambda: open_with_tokenizer(config.model.load, config.model.tokenizer_name_or_path))
    dataset = problems.attempt(lambda: SftDataset(config.data.data_path))
    borders = None
    if dataset is not None:
        borders = problems.attempt(lambda: split_borders(len(dataset), config.data.split))
    problems.raise_if_any()
    lora, adapter = open_earlier(config.lora, source)
    config = resolve(replace(config, lora=lora), source.config, borders[1])
    folder = config.model.tokenizer_name_or_path or source.folder
    tokenizer = problems.attempt(lambda: load_tokenizer(folder))
    template = None
    if tokenizer is not None:
        _check_tokenizer(config, dataset, tokenizer, problems)
        template = _check_template(config, source, dataset, tokenizer, problems)
    problems.attempt(lambda: check_model_facts(parsed.model_facts, source.config.to_dict()))
    _check_model(config, source, problems)
    size = config.batch.global_batch_size
    layout = make_layout(config.parallel, source.config, runtime.world_size(), problems, size)
    compiles = _compiles(config, source, layout, dataset, problems)
    if config.lora.enabled:
        targets = problems.attempt(lambda: hf_targets(config.lora.lora_target_modules, source.config))
        config = replace(config, lora=replace(config.lora, lora_target_modules=targets or ()))
    _check_data(config, source, dataset, borders, problems)
    schedule = Schedule(config.optim, config.batch.train_iters, config.batch.global_batch_size)
    schedule.check(problems)
    problems.attempt(lambda: _check_disk(config, source))
    problems.raise_if_any()
    if template is not None:
        config = replace(config, model=replace(config.model, prompt_type=template.name))
    for notice in (*without_effect(config.parallel, layout), *settings_without_effect(config)):
        console.note(notice)
    padded = parsed.model_facts.get("padded-vocab-size", "")
    vocabulary = int(padded) if padded.isdecimal() else None
    return Plan(config, source, tokenizer, template, dataset, borders, schedule, layout, compiles, adapter, vocabulary)


def _check_model(config: TuneConfig, source: Source, problems: Problems) -> None:
    problems.check(
        not (config.lora.enabled and source.kind == "adapter"),
        f"--load {config.model.load}: holds an adapter; a second one on top would fit no model on disk. To go on "
        "with it, give the model under it with --load and this folder with --lora-load; for a new one, merge it first "
        "with `tuneval export`; or leave --lora-r out for full tuning",
    )
    save = Path(config.save.save)
    inside = Path(config.model.load).resolve().is_relative_to(save.resolve())
    problems.check(not inside, f"--save {save}: holds --load {config.model.load}; choose another folder")
    problems.check(
        inside or not (save / "config.json").is_file() or holds_run(save),
        f"--save {save}: its config.json is no run's, perhaps a model's, and would be replaced; choose another folder",
    )
    limit = getattr(source.config, "max_position_embeddings", None)
    problems.check(
        limit is None or config.data.seq_length <= limit,
        f"--seq-length {config.data.seq_length}: the model's limit is {limit} positions. Give at most that",
    )


COMPILED_FROM = 4e14
"""Floating-point operations of one process: a quarter of an hour at half a teraflop a second, what a few cores do in bf16."""


def _compiles(config: TuneConfig, source: Source, layout: Layout, dataset: SftDataset, problems: Problems) -> bool:
    """Whether the layers are compiled: as the flag says, or where it pays and nothing stands against it."""
    choice = config.precision.torch_compile
    tokens = config.batch.train_iters * config.batch.global_batch_size * dataset.lengths.mean()
    pays = 4 * parameters_of(source) * tokens / layout.world_size >= COMPILED_FROM and runtime.device().type == "cpu"
    if choice == "off" or (choice == "auto" and not pays):
        return False
    obstacles = []
    if layout.tensor > 1 or layout.sharding != "none":
        obstacles.append(f"needs layers that a process holds whole, and {layout} cuts them")
    if config.precision.recompute_granularity == "selective":
        obstacles.append("chooses itself what to keep of a layer, as --recompute-granularity selective does")
    if missing := runtime.missing_compiler():
        obstacles.append(f"needs {missing}")
    if choice == "on":
        for obstacle in obstacles:
            problems.add(f"--torch-compile on: {obstacle}. Change that, or leave the flag out")
    return not obstacles


def _check_template(config: TuneConfig, source: Source, dataset: SftDataset, tokenizer: Any, problems: Problems) -> Any:
    """The template the data was made with; a problem where it is not the model's or the flag's."""
    manifest, record = dataset.manifest or {}, tuned_record(source)
    flag = config.model.prompt_type
    name = flag or manifest.get("prompt_type") or record.get("prompt_type") or "auto"
    if not manifest:
        console.note(f"{config.data.data_path}_manifest.json: not there, so the data's template can't be checked")
        if flag is None and not record and not getattr(tokenizer, "chat_template", None):
            return None
    template = problems.attempt(lambda: load_template(name, tokenizer))
    if template is None:
        return None
    if manifest and manifest["template_fingerprint"] != template.fingerprint:
        differing = template_difference(manifest["template"], template.description)
        problems.add(
            f"--prompt-type {name}: the data was made with --prompt-type {manifest['prompt_type']}, and the two "
            f"templates differ (data's, then this model's): {differing}. Preprocess the data with this model's "
            "tokenizer and template"
        )
    if flag is None and record.get("template_fingerprint", template.fingerprint) != template.fingerprint:
        differing = template_difference(record.get("template", {}), template.description)
        problems.add(
            f"--load {config.model.load}: was tuned with --prompt-type {record['prompt_type']}, the data was made with "
            f"{name}, and the two differ (model's, then data's): {differing}. Preprocess the data with the model's "
            f"template, or give --prompt-type {name} to move the model to the data's on purpose"
        )
    return template


def _check_tokenizer(config: TuneConfig, dataset: SftDataset, tokenizer: Any, problems: Problems) -> None:
    made_with = (dataset.manifest or {}).get("tokenizer")
    problems.check(
        made_with is None or made_with.get("sha256") == vocabulary_sha256(tokenizer),
        f"--data-path {config.data.data_path}: was made with the tokenizer of {(made_with or {}).get('path')}, whose "
        "vocabulary is not that of this model's tokenizer. Preprocess the data with this model's",
    )


def _check_data(
    config: TuneConfig, source: Source, dataset: SftDataset, borders: tuple[int, ...], problems: Problems
) -> None:
    train, size = borders[1], config.batch.global_batch_size
    remedy = f"at most {train}" if train else "--split another first weight"
    problems.check(
        size <= train,
        f"--global-batch-size {size}: the training split has {train} samples (--split {config.data.split} of "
        f"{len(dataset)}). Give {remedy}, or more data",
    )
    smallest, largest = dataset.token_range()
    vocabulary = source.config.vocab_size
    problems.check(
        smallest >= 0 and largest < vocabulary,
        f"--data-path {config.data.data_path}: holds token ids from {smallest} to {largest}, the model's vocabulary "
        f"ends at {vocabulary - 1}: the data was made with another tokenizer. Preprocess it with this model's",
    )
    counts = dataset.trained_counts()[:train]
    problems.check(
        not train or counts.any(),
        f"--data-path {config.data.data_path}: none of the {train} training samples has a trainable token, so nothing "
        "would be learnt. `tuneval inspect` shows what is masked; preprocess with another --handler-name or --map-keys",
    )
    if counts.any() and not counts.all():
        console.note(
            f"{int((counts == 0).sum())} of {train} training samples have no trainable token and weigh nothing"
        )
    if config.log.eval_iters and borders[1] == borders[2]:
        console.note(
            f"--split {config.data.split} of {len(dataset)}: no sample to validate with, so no validation loss"
        )
    over_long = int((dataset.lengths[:train] > config.data.seq_length).sum())
    if over_long:
        console.note(
            f"{over_long} of {train} training samples are longer than {config.data.seq_length} tokens and are cut"
        )


STATE_BYTES = {"fp32": 12, "bf16": 12, "fp16": 14}
"""Bytes of a checkpoint for each trained parameter: weight, what completes its fp32 master, two moments."""


def _check_disk(config: TuneConfig, source: Source) -> None:
    """Room for the checkpoints that stay, one being written, and the result; an adapter is small beside these."""
    if config.lora.enabled:
        return
    dtype = config.precision.dtype
    copies = 0 if config.save.no_save_optim else config.save.keep_checkpoints + 1
    results = (2 if config.save.ckpt_format == "torch" else 1) * (2 if config.save.no_save_optim else 1)
    needed = parameters_of(source) * (STATE_BYTES[dtype] * copies + runtime.DTYPES[dtype].itemsize * results)
    what = f"a run that keeps {config.save.keep_checkpoints} checkpoints (--keep-checkpoints) and writes its model"
    check_free_space(config.save.save, needed, what)


def parameters_of(source: Source) -> int:
    """Number of its parameters, from the bytes of its weights: a little less where some are wider than others."""
    return size_of(source) // max(source.dtype(name).itemsize for name in source.names())

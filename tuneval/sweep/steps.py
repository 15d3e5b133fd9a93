"""A sweep's points -> the commands that make them: what is shared is done once, a point's run folder is an ordinary one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tuneval.config import schema
from tuneval.config.fields import flat_types
from tuneval.config.flags import setting_words
from tuneval.files import sha256_json, write_jsonl
from tuneval.sweep.points import Point
from tuneval.sweep.records import Subset, write_subset
from tuneval.sweep.spec import DATA_KEYS, Sweep

POINTS, SHARED = "points", "shared"
"""Folders of the sweep: run folders; what several points use."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, or one piece of work of our own."""

    id: str
    """Unique in the sweep; names its state and its log."""
    words: tuple[str, ...]
    """What runs, after `tuneval`; for work of our own what identifies it."""
    output: Path
    """There when it is done."""
    action: Callable[[], None] | None = None
    """Work of our own; None: a command."""
    needs: tuple[str, ...] = ()
    """Shared steps without which it can't run."""

    @property
    def kind(self) -> str:
        """`tune`, `evaluate`, ..."""
        return self.words[0]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A point and its commands, in their order."""

    point: Point
    run: Path
    """Its run folder."""
    steps: tuple[Step, ...]
    baseline: Path | None
    """Evaluation of the model it starts from."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a sweep does."""

    sweep: Sweep
    folder: Path
    shared: tuple[Step, ...]
    jobs: tuple[Job, ...]


def make_plan(sweep: Sweep, folder: Path) -> Plan:
    """The commands of a sweep, whose flags `sweep.checks` has held against the commands'.

    Raises:
        UserError: a data_filter that is none.
    """
    builder = _Builder(sweep, folder)
    jobs = tuple(builder.job(point) for point in sweep.points)
    return Plan(sweep=sweep, folder=folder, shared=tuple(builder.shared.values()), jobs=jobs)


def preprocess_flags(sweep: Sweep) -> set[str]:
    """Flags of a point that mean `preprocess`: those `tune` lacks, and the template, which `tune` takes from the data."""
    if sweep.preprocess is None:
        return set()
    return set(flat_types(schema.PreprocessConfig)) - set(flat_types(schema.TuneConfig)) | {"prompt_type"}


class _Builder:
    """Collects the shared steps while the jobs are made; equal work has an equal id and so is there once."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep, self.folder = sweep, folder
        self.shared: dict[str, Step] = {}

    def job(self, point: Point) -> Job:
        settings = {k: v for k, v in {**self.sweep.base, **point.flags}.items() if v is not None}
        data = {k: settings.pop(k) for k in DATA_KEYS if k in settings}
        preprocess = {k: settings.pop(k) for k in preprocess_flags(self.sweep) if k in settings}
        model, run = Path(str(settings["load"])), self.folder / POINTS / point.id
        needs: list[str] = []
        if self.sweep.convert is not None:
            settings["load"] = self._converted(model, self.sweep.convert, needs)
        if self.sweep.preprocess is not None:
            settings["data_path"] = self._tokens(model, {**self.sweep.preprocess, **preprocess}, data, needs)
        tune = Step(
            id=f"{point.id}/tune",
            words=_words("tune", {**settings, "save": run}),
            output=run / "metrics.jsonl",
            needs=tuple(needs),
        )
        steps, baseline = [tune], None
        if self.sweep.evaluate is not None:
            baseline = self._baseline(model, self.sweep.evaluate)
            steps.append(self._evaluation(point, run, self.sweep.evaluate))
        if self.sweep.answers is not None:
            steps.append(self._answers(point, model, run, dict(self.sweep.answers)))
        return Job(point=point, run=run, steps=tuple(steps), baseline=baseline)

    def _add(self, step: Step) -> str:
        return self.shared.setdefault(step.id, step).id

    def _converted(self, model: Path, settings: dict[str, Any], needs: list[str]) -> Path:
        settings = {"to": "mcore", **settings}
        key = _key(settings, str(model))
        place = self.folder / SHARED / f"model-{model.name}-{key}"
        words = _words("convert", {**settings, "load": model, "save": place})
        needs.append(self._add(Step(id=f"{SHARED}/convert-{key}", words=words, output=place)))
        return place

    def _tokens(self, model: Path, settings: dict[str, Any], data: dict[str, Any], needs: list[str]) -> Path:
        """Prefix of the token files; records are cut down first where an axis says so."""
        settings = {"tokenizer_name_or_path": str(model), **settings}
        before: tuple[str, ...] = ()
        subset = Subset.of(data)
        if subset != Subset():
            settings["input"], before = self._records(subset, settings)
        key = _key({k: str(v) for k, v in settings.items()})
        prefix = self.folder / SHARED / f"tokens-{key}"
        step = Step(
            id=f"{SHARED}/preprocess-{key}",
            words=_words("preprocess", {**settings, "output_prefix": prefix}),
            output=Path(f"{prefix}_manifest.json"),
            needs=before,
        )
        needs.append(self._add(step))
        return prefix

    def _records(self, subset: Subset, settings: dict[str, Any]) -> tuple[Path, tuple[str, ...]]:
        source, handler, keys = (
            Path(os.path.expanduser(str(settings["input"]))),
            settings.get("handler_name", "auto"),
            settings.get("map_keys"),
        )
        key = _key(asdict(subset), str(source), handler, keys)
        place = self.folder / SHARED / f"records-{key}.jsonl"
        step = Step(
            id=f"{SHARED}/records-{key}",
            words=("records", str(source), json.dumps(asdict(subset), ensure_ascii=False)),
            output=place,
            action=lambda: write_subset(source, place, subset, handler, keys),
        )
        return place, (self._add(step),)

    def _baseline(self, model: Path, settings: dict[str, Any]) -> Path:
        key = _key(settings, str(model))
        place = self.folder / SHARED / f"before-{model.name}-{key}"
        words = _words("evaluate", {**settings, "load": model, "output": place})
        self._add(Step(id=f"{SHARED}/evaluate-{key}", words=words, output=place / "results.json"))
        return place

    def _evaluation(self, point: Point, run: Path, settings: dict[str, Any]) -> Step:
        place = run / "evaluation" / f"{settings.get('task', 'ceval')}-{settings.get('style', 'official')}"
        words = _words("evaluate", {**settings, "load": run, "output": place})
        return Step(id=f"{point.id}/evaluate", words=words, output=place / "results.json")

    def _answers(self, point: Point, model: Path, run: Path, settings: dict[str, Any]) -> Step:
        prompts = settings.pop("prompts")
        file, needs = self._prompts(prompts)
        key = _key(settings, str(model), prompts)
        before = self.folder / SHARED / f"answers-{model.name}-{key}.jsonl"
        words = _words("generate", {**settings, "load": model, "input": file, "output": before})
        first = self._add(Step(id=f"{SHARED}/answers-{key}", words=words, output=before, needs=needs))
        words = _words("generate", {**settings, "load": run, "input": file, "before": before})
        return Step(id=f"{point.id}/answers", words=words, output=run / "samples.jsonl", needs=(first,))

    def _prompts(self, prompts: str | list[str]) -> tuple[Path, tuple[str, ...]]:
        if isinstance(prompts, str):
            return Path(prompts), ()
        key = _key(prompts)
        place = self.folder / SHARED / f"prompts-{key}.jsonl"
        rows = [{"prompt": prompt} for prompt in prompts]
        step = Step(
            id=f"{SHARED}/prompts-{key}",
            words=("prompts", *prompts),
            output=place,
            action=lambda: write_jsonl(place, rows),
        )
        return place, (self._add(step),)


def _key(*parts: Any) -> str:
    """Short hash of what a piece of shared work depends on."""
    return sha256_json(json.loads(json.dumps(parts, default=str)))[:8]


def _words(command: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """The command's flags as typed; None, False and [] are left out."""
    words = (setting_words(key, value) for key, value in settings.items() if value != [])
    return (command, *chain.from_iterable(words))

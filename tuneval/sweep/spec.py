"""A sweep's YAML file -> its points: every combination of the axes, or a random part of them, or a plain list.

An axis is named after a flag (`lr: [1e-4, 1e-3]`), or gathers flags under names of its own
(`method: {full: {lr: 1e-5}, lora: {lora_r: 8}}`). What a point leaves open is as `base` says. docs/ablations.md shows
every key.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneval.errors import Problems, UserError
from tuneval.sweep.points import NAME, Level, Point, as_number, flag_name, folder_name, level_of, spell_value

KEYS = (
    *("name", "output", "base", "axes", "points", "seeds", "sample", "objective"),
    *("preprocess", "convert", "evaluate", "answers"),
)
"""What a sweep file may hold."""
DATA_KEYS = ("data_size", "data_filter")
"""Axes of the records themselves, before they become tokens."""
OBJECTIVES = ("score", "validation_loss")
RANGE_KEYS = {"min", "max", "log", "whole"}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file, read."""

    name: str
    output: Path | None
    base: dict[str, Any]
    """Flags of `tune` that every point shares."""
    axes: dict[str, tuple[Level, ...]]
    points: tuple[Point, ...]
    objective: str
    """`score` or `validation_loss`: what makes a point the best."""
    preprocess: dict[str, Any] | None = None
    """Flags of `preprocess`; None: `base` names a data_path that is there."""
    convert: dict[str, Any] | None = None
    """Flags of `convert`, applied to every model before it is tuned; None: models are tuned as they are."""
    evaluate: dict[str, Any] | None = None
    """Flags of `evaluate`; None: no exam."""
    answers: dict[str, Any] | None = None
    """`prompts` (texts, or a JSON-lines file) and flags of `generate`; None: no sample answers."""
    source: dict[str, Any] = field(default_factory=dict)
    """The file as read."""


def read_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        UserError: every problem that shows in the file itself: unknown keys, empty axes, two equal points.
    """
    source, problems = _load(path), Problems()
    for key in source:
        nearest = difflib.get_close_matches(str(key), KEYS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(KEYS)}"
        problems.check(key in KEYS, f"{path}: {key}: unknown key{hint}")
    sections = {
        name: _section(source, name, path, problems) for name in ("preprocess", "convert", "evaluate", "answers")
    }
    base = _section(source, "base", path, problems) or {}
    axes = _axes(source.get("axes"), path, problems)
    objective = source.get("objective") or ("score" if sections["evaluate"] else "validation_loss")
    problems.check(objective in OBJECTIVES, f"{path}: objective {objective}: must be {' or '.join(OBJECTIVES)}")
    problems.check(
        objective != "score" or sections["evaluate"], f"{path}: objective score: give an `evaluate` section, or none"
    )
    seeds = _seeds(source.get("seeds"), base, path, problems)
    problems.raise_if_any()
    points = [*_combine(axes, source.get("sample"), path), *_listed(source.get("points"), axes, path)]
    if not points:
        raise UserError(f"{path}: no point in it; give `axes` or `points`")
    points = [_with_seed(point, seed, len(seeds) > 1) for point in points for seed in seeds]
    _check_distinct(points, path)
    output = source.get("output")
    return Sweep(
        name=str(source.get("name") or path.stem),
        output=None if output is None else Path(os.path.expanduser(str(output))),
        base=base,
        axes=axes,
        points=tuple(points),
        objective=objective,
        source=source,
        **sections,
    )


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; give the sweep's YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys such as base and axes, found {type(values).__name__}")
    return values


def _section(source: dict[str, Any], name: str, path: Path, problems: Problems) -> dict[str, Any] | None:
    given = source.get(name)
    if given is None:
        return None
    if not isinstance(given, dict):
        problems.add(f"{path}: {name}: must hold `flag: value` lines, found {type(given).__name__}")
        return None
    return {flag_name(key): as_number(value) for key, value in given.items()}


def _axes(given: Any, path: Path, problems: Problems) -> dict[str, tuple[Level, ...]]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        problems.add(f"{path}: axes: must hold `flag: [values]` lines, found {type(given).__name__}")
        return {}
    axes = {}
    for key, values in given.items():
        name = flag_name(key)
        if isinstance(values, list):
            levels = [level_of(name, value) for value in values]
        elif isinstance(values, dict) and values.keys() <= RANGE_KEYS and {"min", "max"} <= values.keys():
            bounds = {k: as_number(v) for k, v in values.items()}
            wrong = _wrong_range(bounds)
            if wrong:
                problems.add(f"{path}: axes.{key}: {wrong}")
            else:
                axes[name] = (_Range(name, **bounds),)
            continue
        elif isinstance(values, dict) and all(isinstance(flags, dict) for flags in values.values()):
            levels = [
                Level(label=str(label), flags={flag_name(k): as_number(v) for k, v in flags.items()})
                for label, flags in values.items()
            ]
        else:
            problems.add(
                f"{path}: axes.{key}: give a list of values, named groups of flags, or a range {{min, max}} to sample"
            )
            continue
        labels = [level.label for level in levels]
        problems.check(levels, f"{path}: axes.{key}: is empty; give its values, or leave it out")
        problems.check(len(set(labels)) == len(labels), f"{path}: axes.{key}: holds the same value twice")
        axes[name] = tuple(levels)
    return axes


def _wrong_range(bounds: dict[str, Any]) -> str:
    """What is wrong with a range; "" where nothing is."""
    for name in ("min", "max"):
        if not _is_number(bounds[name]):
            return f"{name} {bounds[name]}: must be a number"
    for name in ("log", "whole"):
        if not isinstance(bounds.get(name, False), bool):
            return f"{name} {bounds[name]}: must be true or false"
    if not bounds["min"] < bounds["max"]:
        return f"min {bounds['min']}, max {bounds['max']}: min must be below max"
    if bounds.get("log") and bounds["min"] <= 0:
        return f"min {bounds['min']} with log: must be above 0"
    return ""


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


class _Range:
    """An axis of which values are drawn: evenly, or with `log` evenly in the exponent."""

    def __init__(self, name: str, min: float, max: float, log: bool = False, whole: bool = False) -> None:
        self.name, self.low, self.high, self.log, self.whole = name, min, max, log, whole

    def draw(self, generator: random.Random) -> Level:
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        return level_of(self.name, round(value) if self.whole else float(f"{value:.3g}"))


def _combine(axes: dict[str, tuple[Any, ...]], sample: Any, path: Path) -> list[Point]:
    """Every combination of the levels, or `sample` of them. Drawn levels take the place of the ranges in `axes`."""
    ranges = [name for name, levels in axes.items() if isinstance(levels[0], _Range)]
    if not axes:
        return []
    if sample is None:
        if ranges:
            raise UserError(f"{path}: axes.{ranges[0]} is a range: say with `sample: N` how many points to draw")
        return [_point(dict(zip(axes, levels))) for levels in itertools.product(*axes.values())]
    count, seed = (sample.get("count"), sample.get("seed", 0)) if isinstance(sample, dict) else (sample, 0)
    if not _is_number(count, int) or count < 1 or not _is_number(seed, int):
        raise UserError(f"{path}: sample {sample}: give the number of points, or {{count: N, seed: S}}")
    generator = random.Random(seed)
    if ranges:
        drawn = [
            {name: ls[0].draw(generator) if name in ranges else generator.choice(ls) for name, ls in axes.items()}
            for _ in range(count)
        ]
    else:
        every = [dict(zip(axes, levels)) for levels in itertools.product(*axes.values())]
        drawn = generator.sample(every, min(count, len(every)))
    for name in ranges:
        found = {point[name].label: point[name] for point in drawn}
        axes[name] = tuple(sorted(found.values(), key=lambda level: level.number))
    return [_point(levels) for levels in drawn]


def _point(levels: dict[str, Level], listed: bool = False) -> Point:
    flags: dict[str, Any] = {}
    for level in levels.values():
        flags |= level.flags
    labels = {axis: level.label for axis, level in levels.items()}
    return Point(id=folder_name(labels), levels=labels, flags=flags, listed=listed)


def _listed(given: Any, axes: dict[str, tuple[Level, ...]], path: Path) -> list[Point]:
    """The points of the list: flags, or an axis's name with the label of one of its levels; `name` is its label."""
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise UserError(f"{path}: points: must be a list of `flag: value` groups")
    found = []
    for entry in given:
        entry = {flag_name(key): as_number(value) for key, value in entry.items()}
        name, levels = entry.pop("name", None), {}
        for key, value in entry.items():
            named = [level for level in axes.get(key, ()) if level.label == spell_value(value)]
            levels[key] = named[0] if named else level_of(key, value)
        point = _point(levels, listed=True)
        if name is not None:
            labels = {NAME: str(name)}
            point = Point(id=folder_name(labels), levels=labels, flags=point.flags, listed=True)
        found.append(point)
    return found


def _seeds(given: Any, base: dict[str, Any], path: Path, problems: Problems) -> list[int | None]:
    """The seeds of every point; [None]: the base's alone."""
    if given is None:
        return [None]
    first, seeds = base.get("seed", 1234), given
    if _is_number(given, int):
        if not _is_number(first, int):
            problems.add(f"{path}: base: seed {first}: must be a whole number, seeds are counted up from it")
            return [None]
        seeds = [first + i for i in range(given)]
    right = (
        isinstance(seeds, list) and seeds and all(_is_number(s, int) for s in seeds) and len(set(seeds)) == len(seeds)
    )
    problems.check(right, f"{path}: seeds {given}: give how many, or a list of different whole numbers")
    return seeds if right else [None]


def _with_seed(point: Point, seed: int | None, several: bool) -> Point:
    if seed is None:
        return point
    flags = {**point.flags, "seed": seed}
    if not several:
        return Point(id=point.id, levels=point.levels, flags=flags, listed=point.listed)
    return Point(id=f"{point.id}.seed-{seed}", levels=point.levels, flags=flags, seed=seed, listed=point.listed)


def _check_distinct(points: list[Point], path: Path) -> None:
    problems, seen, flags = Problems(), {}, {}
    for point in points:
        first = seen.setdefault(point.id.casefold(), point)
        problems.check(first is point, f"{path}: two points are called {point.label}; give one of them another `name`")
        key = repr(sorted(point.flags.items()))
        twin = flags.setdefault(key, point)
        problems.check(twin is point or first is not point, f"{path}: {twin.label} and {point.label} are the same run")
    problems.raise_if_any()

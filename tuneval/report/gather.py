"""Run folders -> what a report needs of them. Missing parts stay None or empty, to be said in the page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneval.errors import Problems, UserError
from tuneval.files import read_object
from tuneval.report.checks import read_predictions, read_result, read_run
from tuneval.report.records import (
    Comparison,
    EvalResult,
    Prediction,
    RunRecord,
    SampleAnswer,
    Step,
    Validation,
    read_record,
    read_records,
    result_folder,
)

ExamKey = tuple[str, str, int, str]
"""task, style, shots, split: results with the same key may be compared."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A folder with results.json."""

    folder: Path
    result: EvalResult
    predictions: tuple[Prediction, ...] | None
    """None: no predictions.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder."""

    folder: Path
    label: str
    """Short and unique in the page."""
    record: RunRecord
    steps: tuple[Step, ...]
    validations: tuple[Validation, ...]
    samples: tuple[SampleAnswer, ...]
    evaluations: dict[ExamKey, Evaluation]
    preprocess: dict[str, Any]
    """Settings the data was made with, from its manifest; {} where that is gone or of other data."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    runs: tuple[Run, ...]
    baseline: dict[ExamKey, Evaluation]
    """The model before tuning; empty where it was not scored."""
    baseline_gone: tuple[str, ...] = ()
    """Baselines that the records name and that are no longer there."""

    @property
    def exams(self) -> list[ExamKey]:
        """Every exam that the baseline or a run took, in the order met."""
        found = dict.fromkeys(self.baseline)
        for run in self.runs:
            found |= dict.fromkeys(run.evaluations)
        return list(found)


def gather(
    folders: tuple[Path, ...],
    baseline: Path | None,
    label_of,
    from_logs: tuple[Run, ...] = (),
    logged_baseline: dict[ExamKey, Evaluation] | None = None,
) -> Gathered:
    """Read the run folders.

    Args:
        folders: run folders, in the order to show.
        baseline: folder with results.json of the model before tuning (or a folder of such folders); None: the one that
            the runs name.
        label_of: RunRecord -> short name; runs with the same get their folder's name added.
        from_logs: runs that logs tell of, to stand behind the folders'.
        logged_baseline: results of the model before tuning that logs tell of, for exams no folder holds.

    Raises:
        UserError: a folder is no run folder, a file does not fit its schema, or the runs name different baselines.
    """
    problems = Problems()
    for folder in folders:
        problems.check(folder.is_dir(), f"{folder}: no such folder. Give a run folder, the --save of `tuneval tune`")
        if folder.is_dir():
            problems.check(
                (folder / "config.json").is_file(), f"{folder}: holds no config.json, so it is not a run folder"
            )
    resolved = [folder.resolve() for folder in folders]
    problems.check(len(set(resolved)) == len(resolved), "the same run folder is given twice: leave one out")
    problems.raise_if_any()
    runs = _distinct((*(read_run_folder(folder, label_of) for folder in folders), *from_logs))
    found, gone = (_given_baseline(baseline), ()) if baseline is not None else _named_baseline(runs)
    return Gathered(runs=runs, baseline={**(logged_baseline or {}), **found}, baseline_gone=gone)


def read_run_folder(folder: Path, label_of) -> Run:
    """One run folder; `label_of`: RunRecord -> short name."""
    record = read_run(folder)
    return Run(
        folder=folder,
        label=label_of(record),
        record=record,
        steps=_lines(Step, folder / "metrics.jsonl"),
        validations=_lines(Validation, folder / "validation.jsonl"),
        samples=_lines(SampleAnswer, folder / "samples.jsonl"),
        evaluations=read_evaluations(folder / "evaluation"),
        preprocess=_preprocess_settings(record),
    )


def _preprocess_settings(record: RunRecord) -> dict[str, Any]:
    path = Path(f"{record.config.get('data_path')}_manifest.json")
    manifest = read_object(path) if path.is_file() else {}
    same = manifest.get("data_sha256") is not None and manifest["data_sha256"] == record.data.get("data_sha256")
    return manifest.get("config") or {} if same else {}


def _lines(kind, path: Path) -> tuple:
    return tuple(read_records(kind, path)) if path.is_file() else ()


def read_evaluations(folder: Path) -> dict[ExamKey, Evaluation]:
    """`folder` itself where it holds results.json, and its children that do; one result an exam.

    Raises:
        UserError: two results of the same exam: which one counts is the user's to say.
    """
    found: dict[ExamKey, Evaluation] = {}
    problems = Problems()
    for evaluation in (_read_evaluation(path.parent) for path in result_files(folder)):
        key = key_of(evaluation.result)
        first = found.setdefault(key, evaluation)
        problems.check(
            first is evaluation,
            f"{first.folder} and {evaluation.folder} both hold a result of {key[0]}, style {key[1]}, {key[2]} shots, "
            f"split {key[3]}: move the one that shall not count out of {folder}",
        )
    problems.raise_if_any()
    return found


def result_files(folder: Path) -> list[Path]:
    """results.json of `folder` itself and of its children, those that are there."""
    return [p for p in (folder / "results.json", *sorted(folder.glob("*/results.json"))) if p.is_file()]


def _read_evaluation(folder: Path) -> Evaluation:
    predictions = folder / "predictions.jsonl"
    return Evaluation(
        folder=folder,
        result=read_result(folder / "results.json"),
        predictions=read_predictions(predictions) if predictions.is_file() else None,
    )


def key_of(result: EvalResult) -> ExamKey:
    return result.task, result.style, result.shots, result.split


def _given_baseline(folder: Path) -> dict[ExamKey, Evaluation]:
    folder = result_folder(folder)
    found = read_evaluations(folder) or read_evaluations(folder / "evaluation")
    if not found:
        raise UserError(
            f"--baseline {folder}: holds no results.json. Give the --output folder of `tuneval evaluate` on the model "
            "before tuning"
        )
    return found


def _named_baseline(runs: tuple[Run, ...]) -> tuple[dict[ExamKey, Evaluation], tuple[str, ...]]:
    """The baseline that the runs' records name, else the one their evaluations were compared with."""
    found: dict[Path, None] = {}
    gone = []
    for run in runs:
        name = run.record.baseline_evaluation
        places = _places(run, name) if name else _compared(run)
        found |= {place.resolve(): None for place in places[:1]}
        if name and not places and name not in gone:
            gone.append(name)
    if len(found) > 1:
        raise UserError(
            "the runs name different evaluations of the model before tuning ("
            + ", ".join(map(str, found))
            + "): choose one with --baseline, or make one report for each"
        )
    return next((read_evaluations(place) for place in found), {}), tuple(gone)


def _places(run: Run, name: str) -> list[Path]:
    """Where a recorded path leads: as written, else seen from the run folder or beside it."""
    return [p for p in (Path(name), run.folder / name, run.folder.parent / name) if result_files(p)]


def _compared(run: Run) -> list[Path]:
    """First results of the run's comparison.json files, where they scored the very weights the run started from."""
    places = []
    for evaluation in run.evaluations.values():
        path = evaluation.folder / "comparison.json"
        found = _places(run, read_record(Comparison, path).a) if path.is_file() else []
        places += [p for p in found[:1] if _scored(p) == identity_hash(run.record.model) is not None]
    return places


def _scored(folder: Path) -> str | None:
    return identity_hash(read_result(result_files(folder)[0]).model)


def identity_hash(identity: dict) -> str | None:
    """The hash of the weights in a model's identity."""
    value = identity.get("weights_sha256")
    return value if isinstance(value, str) else None


def _distinct(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    labels = [run.label for run in runs]
    names = [run.folder.resolve().name for run in runs]
    unique = len(set(names)) == len(names)
    return tuple(
        replace(run, label=f"{run.label} · {name if unique else run.folder}") if labels.count(run.label) > 1 else run
        for run, name in zip(runs, names)
    )

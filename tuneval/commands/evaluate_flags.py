"""What the flags of `evaluate` show by themselves."""

from __future__ import annotations

from pathlib import Path

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import EvaluateConfig
from tuneval.errors import Problems, UserError
from tuneval.evaluation.catalogue import ALL, HARNESS, find_styles
from tuneval.evaluation.contamination import check_training_data
from tuneval.evaluation.exam import Exam
from tuneval.evaluation.styles import Style, check_shots
from tuneval.evaluation.tasks import Task, find_task, load_exam


def check(config: EvaluateConfig) -> None:
    """Raise one UserError for all that is wrong."""
    if config.load is None:
        _check_comparison(config)
        return
    if not config.task.startswith(HARNESS):
        task, styles = chosen(config)
        exams_of(config, task, styles)
        output_of(config, task, styles)
    check_there(config.load)


def chosen(config: EvaluateConfig) -> tuple[Task, list[Style]]:
    """The exam and the styles that the flags name. Raises one UserError where they contradict each other."""
    task = find_task(config.task)
    problems = Problems()
    problems.check(config.task_data_path, "--task-data-path: give the exam's folder or zip")
    splits = ", ".join(task.layout.files)
    problems.check(config.split in (None, *task.layout.files), f"--split {config.split}: {task.name} has {splits}")
    problems.check(config.limit is None or config.limit > 0, f"--limit {config.limit}: must be at least 1")
    problems.check(config.batch_tokens > 0, f"--batch-tokens {config.batch_tokens}: must be positive; 4096 is usual")
    problems.check(
        config.subjects is None or subjects_of(config),
        f"--subjects {config.subjects!r}: names none; leave it out for all",
    )
    problems.check(config.noise_questions >= 0, f"--noise-questions {config.noise_questions}: must be 0 or more")
    problems.check(
        config.max_new_tokens is None or config.max_new_tokens > 0,
        f"--max-new-tokens {config.max_new_tokens}: must be at least 1",
    )
    problems.check(
        len(config.compare) <= 1,
        f"--compare: {len(config.compare)} results beside --load; give one earlier result, or two without --load",
    )
    problems.raise_if_any()
    if config.train_data is not None:
        check_training_data(config.train_data)
    styles = find_styles(task, config.style, chat=not config.no_chat_template)
    problems.check(
        not (config.compare and len(styles) > 1), f"--compare: needs one --style, {len(styles)} are asked for"
    )
    problems.raise_if_any()
    return task, styles


def exams_of(config: EvaluateConfig, task: Task, styles: list[Style]) -> list[tuple[Style, int, Exam]]:
    """Each style with its number of worked examples and the questions."""
    exams: dict[int, Exam] = {}
    found, split = [], config.split or task.split
    for style in styles:
        shots = style.shots if config.shots is None else config.shots
        if config.style == ALL:
            shots = min(shots, style.max_shots)
        check_shots(style, shots, split)
        if shots not in exams:
            exams[shots] = load_exam(task, config.task_data_path, split, subjects_of(config), config.limit, shots)
        found.append((style, shots, exams[shots]))
    return found


def output_of(config: EvaluateConfig, task: Task, styles: list[Style]) -> Path:
    """`--output`, or for a run folder RUN/evaluation/TASK-STYLE, with what is not the usual setting behind it."""
    output = config.output or _usual_output(config, task, styles)
    _check_output(output, config.compare)
    return output


def _usual_output(config: EvaluateConfig, task: Task, styles: list[Style]) -> Path:
    if not (config.load / "metrics.jsonl").is_file():
        raise UserError(f"--output: give a folder for the result ({config.load} is not a run folder)")
    split = config.split or task.split
    unusual = [split] if split != task.split else []
    if len(styles) > 1:
        return config.load / "evaluation" / "-".join([task.name, "matrix", *unusual])
    style = styles[0]
    unusual += [f"{config.shots}shot"] if config.shots not in (None, style.shots) else []
    return config.load / "evaluation" / "-".join([task.name, style.name, *unusual])


def subjects_of(config: EvaluateConfig) -> tuple[str, ...]:
    """The names in `--subjects`."""
    return tuple(s.strip() for s in (config.subjects or "").split(",") if s.strip())


def _check_comparison(config: EvaluateConfig) -> None:
    if len(config.compare) != 2:
        raise UserError(
            f"--load is missing and --compare names {len(config.compare)} results: give --load MODEL to score a model, "
            "or --compare BEFORE AFTER to compare two results"
        )
    names = ("lora_load", "task_data_path", "subjects", "limit", "split", "style", "shots", "prompt_type", "train_data")
    unused = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) is not None]
    if unused:
        raise UserError(f"{', '.join(unused)}: nothing is scored without --load; give --load, or leave it out")


def _check_output(output: Path, compare: tuple[Path, ...]) -> None:
    """Before an hour of scoring: whether the result can be written, and not over the one to compare with."""
    problems = Problems()
    there = next(p for p in (output, *output.absolute().parents) if p.exists() or p.is_symlink())
    problems.check(there.is_dir(), f"--output {output}: {there} is a file; give a folder")
    for earlier in compare:
        folder = earlier.parent if earlier.name == "results.json" else earlier
        problems.check(
            folder.resolve() != output.resolve(),
            f"--compare {earlier}: this call's result would take its place; give another --output",
        )
    problems.raise_if_any()

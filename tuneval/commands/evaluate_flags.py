"""What the flags of `evaluate` show by themselves."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from tuneval.checkpoints.paths import check_there
from tuneval.config.schema import EvaluateConfig
from tuneval.data.template import check_prompt_type
from tuneval.errors import Problems, UserError
from tuneval.evaluation.catalogue import ALL, HARNESS, find_styles
from tuneval.evaluation.contamination import check_training_data
from tuneval.evaluation.exam import Exam
from tuneval.evaluation.styles import Style, check_explained, check_shots
from tuneval.evaluation.tasks import Task, find_task, load_exam
from tuneval.parallel.sizes import check_sizes
from tuneval.report.records import result_folder

HARNESS_STYLES = ("plain", "chat")
"""How lm-evaluation-harness asks; the first is the usual one."""


def check(config: EvaluateConfig) -> None:
    """Raise one UserError for all that is wrong."""
    if config.load is None:
        _check_comparison(config)
        return
    if config.task.startswith(HARNESS):
        harness_style(config)
        output_of(config, harness_name(config))
    else:
        task, styles = chosen(config)
        exams_of(config, task, styles)
        output_of(config, result_name(config, task, styles))
    check_there(config.load, config.lora_load)


def chosen(config: EvaluateConfig) -> tuple[Task, list[Style]]:
    """The exam and the styles that the flags name. Raises one UserError where they contradict each other."""
    task = find_task(config.task)
    problems = Problems()
    problems.check(config.task_data_path, "--task-data-path: give the exam's folder or zip")
    splits = ", ".join(task.layout.files)
    problems.check(config.split in (None, *task.layout.files), f"--split {config.split}: {task.name} has {splits}")
    _check_amounts(config, problems)
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
    problems.raise_if_any()
    if config.train_data is not None:
        check_training_data(config.train_data)
    styles = find_styles(task, config.style, chat=not config.no_chat_template)
    problems.check(
        not (config.compare and len(styles) > 1), f"--compare: needs one --style, {len(styles)} are asked for"
    )
    problems.raise_if_any()
    return task, styles


def harness_style(config: EvaluateConfig) -> str:
    """The style of a task of lm-evaluation-harness. Raises one UserError for what else is wrong with its flags."""
    style, problems = config.style or HARNESS_STYLES[0], Problems()
    problems.check(style in HARNESS_STYLES, f"--style {style}: {config.task} takes {' or '.join(HARNESS_STYLES)}")
    problems.check(config.shots is None or config.shots >= 0, f"--shots {config.shots}: must be 0 or more")
    _check_amounts(config, problems)
    problems.raise_if_any()
    return style


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
        check_explained(style, shots, exams[shots])
        found.append((style, shots, exams[shots]))
    return found


def output_of(config: EvaluateConfig, name: str) -> Path:
    """`--output`, or for a run folder RUN/evaluation/NAME."""
    output = config.output
    if output is None and not is_run(config.load):
        raise UserError(f"--output: give a folder for the result ({config.load} is not a run folder)")
    output = output or config.load / "evaluation" / name
    _check_output(output, config.compare)
    return output


def is_run(folder: Path) -> bool:
    """Whether results may go below a folder: it holds a training's record."""
    return (folder / "metrics.jsonl").is_file()


def result_name(config: EvaluateConfig, task: Task, styles: list[Style]) -> str:
    """TASK-STYLE, with what is not the usual setting behind it."""
    split = config.split or task.split
    unusual = [split] if split != task.split else []
    if len(styles) > 1:
        return "-".join([task.name, "matrix", *unusual])
    style = styles[0]
    unusual += [f"{config.shots}shot"] if config.shots not in (None, style.shots) else []
    return "-".join([task.name, style.name, *unusual])


def harness_name(config: EvaluateConfig) -> str:
    """The same for a task of lm-evaluation-harness."""
    return f"{config.task.replace(':', '-')}-{config.style or HARNESS_STYLES[0]}"


def subjects_of(config: EvaluateConfig) -> tuple[str, ...]:
    """The names in `--subjects`."""
    return tuple(s.strip() for s in (config.subjects or "").split(",") if s.strip())


def _check_amounts(config: EvaluateConfig, problems: Problems) -> None:
    """What every task takes: how many questions, how many earlier results, which template, how many processes."""
    problems.check(config.limit is None or config.limit > 0, f"--limit {config.limit}: must be at least 1")
    problems.check(
        len(config.compare) <= 1,
        f"--compare: {len(config.compare)} results beside --load; give one earlier result, or two without --load",
    )
    problems.attempt(lambda: check_prompt_type(config.prompt_type))
    check_sizes(config.shard, problems)


def _check_comparison(config: EvaluateConfig) -> None:
    if len(config.compare) != 2:
        raise UserError(
            f"--load is missing and --compare names {len(config.compare)} results: give --load MODEL to score a model, "
            "or --compare BEFORE AFTER to compare two results"
        )
    own = ("compare", "output", "shard", "launch")
    unused = [f.name for f in fields(config) if f.name not in own and getattr(config, f.name) != f.default]
    if unused:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise UserError(f"{flags}: nothing is scored without --load; give --load, or leave it out")
    before, after = config.compare
    if result_folder(before).resolve() == result_folder(after).resolve():
        raise UserError(f"--compare {before} {after}: one result twice; give two")


def _check_output(output: Path, compare: tuple[Path, ...]) -> None:
    """Before an hour of scoring: whether the result can be written, and not over the one to compare with."""
    problems = Problems()
    there = next(p for p in (output, *output.absolute().parents) if p.exists() or p.is_symlink())
    problems.check(there.is_dir(), f"--output {output}: {there} is a file; give a folder")
    for earlier in compare:
        problems.check(
            result_folder(earlier).resolve() != output.resolve(),
            f"--compare {earlier}: this call's result would take its place; give another --output",
        )
    problems.raise_if_any()

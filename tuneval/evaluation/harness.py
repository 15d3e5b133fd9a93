"""lm-evaluation-harness with a loaded model: any of its tasks, or task files of the user's own. Offline; no file runs code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuneval import runtime
from tuneval.checkpoints.load import Loaded
from tuneval.errors import UserError
from tuneval.evaluation.catalogue import HARNESS
from tuneval.parallel.mesh import Mesh

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class HarnessRow:
    """One question."""

    subject: str
    id: str
    answer: str
    prediction: str | None
    correct: bool
    scores: dict[str, float] = field(default_factory=dict)
    response: str | None = None
    prompt_sha256: str


@dataclass(frozen=True, kw_only=True)
class HarnessRun:
    """What the harness found."""

    results: dict[str, Any]
    """Its own record, less the questions: figures, versions, shots."""
    metric: str | None
    """The metric that says of each question whether it is right; None: the task has none."""
    rows: list[HarnessRow]
    """The questions by that metric; [] where there is none."""
    shots: int
    chance: float


def run_harness(
    loaded: Loaded, name: str, folder: Path | None, shots: int | None, chat: bool, limit: int | None
) -> HarnessRun:
    """Evaluate a model on one of the harness's tasks.

    Args:
        loaded: the model.
        name: of the task or group, as the harness knows it.
        folder: task files of the user's own (YAML); None: the harness's alone.
        shots: worked examples; None: as the task says.
        chat: whether questions go through the tokenizer's chat template, worked examples as turns.
        limit: at most this many questions a task.

    Raises:
        UserError: the harness is not installed, does not know the task, or its data is not on this machine; task files
            that call Python.
    """
    check_can_run(name, folder)
    with _offline():
        tasks = import_module("lm_eval.tasks")
        manager = tasks.TaskManager(include_path=None if folder is None else str(folder))
        if name not in manager.all_tasks:
            raise UserError(
                f"--task {HARNESS}{name}: lm-evaluation-harness knows no such task; `lm-eval ls tasks` lists them, and "
                "--task-data-path names a folder with task files of your own"
            )
        try:
            found = import_module("lm_eval.evaluator").simple_evaluate(
                model=_model(loaded),
                tasks=[name],
                num_fewshot=shots,
                limit=limit,
                task_manager=manager,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                bootstrap_iters=0,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise UserError(
                f"--task {HARNESS}{name}: its data is not on this machine ({str(error).splitlines()[0]}). The network is not "
                "used here: load the data set once with `datasets`, or name local files in task files of your own "
                "(--task-data-path)"
            ) from None
    return loaded.mesh.first(_run(found) if runtime.is_main() else None)  # it gives its figures to the first alone


def check_can_run(name: str, folder: Path | None) -> None:
    """Raise a UserError where the harness is not there, or task files of the user's own call Python."""
    if find_spec("lm_eval") is None:
        raise UserError(f"--task {HARNESS}{name}: needs lm-evaluation-harness; pip install 'tuneval[lm-eval]'")
    if folder is not None:
        _check_task_files(folder)


def _model(loaded: Loaded) -> Any:
    models = import_module("lm_eval.models.huggingface")
    model = models.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=BATCH)
    if loaded.mesh.layout.data > 1:
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(model, name, partial(_divided, loaded.mesh, getattr(model, name)))
    return model


def _divided(mesh: Mesh, answer: Callable[..., list], requests: list, **options: Any) -> list:
    """The harness's requests, each question's by one of the copies of the model; it gets all answers on every process."""
    mine = [i for i, request in enumerate(requests) if request.doc_id % mesh.layout.data == mesh.dp_rank]
    found = answer([requests[i] for i in mine], **options) if mine else []
    answers = {i: one for part in mesh.gather(dict(zip(mine, found, strict=True))) for i, one in part.items()}
    return [answers[i] for i in range(len(requests))]


def _check_task_files(folder: Path) -> None:
    """Task files may hold data, not call Python: `!function` imports a file beside them."""
    if not folder.is_dir():
        raise UserError(f"--task-data-path {folder}: no such folder; give one with lm-evaluation-harness task files")
    folder = folder.resolve()
    waiting = [p for p in folder.rglob("*") if p.name.lower().endswith((".yaml", ".yml")) and p.is_file()]
    judged: set[Path] = set()
    calling = []
    while waiting:
        path = waiting.pop()
        if path in judged:
            continue
        judged.add(path)
        values = _task_values(path)
        if values is None or any(_is_script(metric) for metric in _metrics(values)):
            calling.append(str(path))
        elif isinstance(values, dict) and "include" in values:
            waiting += _included(folder, path, values["include"])
    if calling:
        raise UserError(
            f"{', '.join(sorted(calling))}: calls Python (!function, trust_remote_code, a metric that is a file), which is never run "
            "from a data folder; write the task with templates alone"
        )


def _task_values(path: Path) -> Any:
    """A task file's values; None where it calls Python. Parsed as the harness does, as a tag has several spellings."""
    import yaml

    loader, data = getattr(yaml, "CSafeLoader", yaml.SafeLoader), path.read_bytes()
    try:
        if any("trust_remote_code" in getattr(event, "value", "") for event in yaml.parse(data, loader)):
            return None
        return yaml.load(data, loader) or {}  # refuses every tag that is not plain data
    except yaml.constructor.ConstructorError as error:
        if "the tag" in str(error.problem):
            return None
        raise UserError(f"{path}: not a task file ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({error})") from None


def _metrics(values: Any) -> Iterator[str]:
    """The name of each metric, however deep."""
    if isinstance(values, dict) and isinstance(values.get("metric"), str):
        yield values["metric"]
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _metrics(value)


def _is_script(metric: str) -> bool:
    """Whether the harness, which asks `evaluate` for a metric that it has not itself, would find a file to run."""
    return "/" in metric or "\\" in metric or Path(metric).exists() or Path(f"{metric}.py").exists()


def _included(folder: Path, path: Path, names: Any) -> list[Path]:
    """Files of the folder that a task file includes, wherever a version of the harness looks for them."""
    found = []
    for name in names if isinstance(names, list) else [names]:
        for place in (path.parent, path.resolve().parent, Path()):
            file = place / str(name)
            if not file.is_file():
                continue
            if not file.resolve().is_relative_to(folder):
                raise UserError(f"{path}: includes {name}, which lies outside {folder}; copy it into that folder")
            found.append(file.parent.resolve() / file.name)
    return found


@contextmanager
def _offline() -> Iterator[None]:
    """Within: the hub is not asked, and templates of task files can't reach into Python."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    hub, datasets = import_module("huggingface_hub.constants"), import_module("datasets.config")
    utils = import_module("lm_eval.utils")
    before = hub.HF_HUB_OFFLINE, datasets.HF_HUB_OFFLINE, utils.env, os.environ.get("HF_HUB_OFFLINE")
    sandbox = ImmutableSandboxedEnvironment(
        loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=utils.env.keep_trailing_newline
    )
    sandbox.filters.update(utils.env.filters)
    hub.HF_HUB_OFFLINE = datasets.HF_HUB_OFFLINE = True
    utils.env = sandbox
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.HF_HUB_OFFLINE, utils.env, variable = before
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable


def _run(found: dict[str, Any]) -> HarnessRun:
    samples: dict[str, list[dict]] = found["samples"]
    metric = _right_or_wrong(samples)
    first = next(iter(samples))
    rows, chances = [], []
    for task, questions in samples.items() if metric else ():
        kept = questions[0].get("filter")
        for sample in questions:
            if sample.get("filter") == kept:
                row, choices = _row(task, sample, metric)
                rows.append(row)
                chances.append(1 / choices if choices else 0.0)
    return HarnessRun(
        results={
            k: v for k, v in found.items() if k in ("results", "groups", "versions", "n-shot", "higher_is_better")
        },
        metric=metric,
        rows=rows,
        shots=int(found["n-shot"][first]),
        chance=sum(chances) / len(chances) if chances else 0.0,
    )


def _right_or_wrong(samples: dict[str, list[dict]]) -> str | None:
    """The first metric of all questions whose values are 0 and 1 alone; `acc` and `exact_match` before others."""
    rows = [s for questions in samples.values() for s in questions]
    names = [n for n in rows[0].get("metrics", []) if all(s.get(n) in (0, 1, True, False) for s in rows)]
    return next((n for n in ("acc", "exact_match") if n in names), names[0] if names else None)


def _row(task: str, sample: dict, metric: str) -> tuple[HarnessRow, int]:
    """A question, and how many choices it has (0: text is generated)."""
    answers = sample["filtered_resps"]
    chosen = all(isinstance(a, (list, tuple)) and len(a) == 2 and isinstance(a[1], (bool, str)) for a in answers)
    scores = {str(i): float(a[0]) for i, a in enumerate(answers)} if chosen and len(answers) > 1 else {}
    row = HarnessRow(
        subject=task,
        id=str(sample["doc_id"]),
        answer=_label(sample) if scores else str(sample["target"]),
        prediction=max(scores, key=scores.__getitem__) if scores else str(answers[0]),
        correct=bool(sample[metric]),
        scores=scores,
        response=None if scores else str(sample["resps"][0][0]),
        prompt_sha256=sample["prompt_hash"],
    )
    return row, len(scores)


def _label(sample: dict) -> str:
    """Number of the right choice; the harness gives the number or the choice's text."""
    texts = [str(continuation).strip() for _, continuation in sample["arguments"]]
    target = str(sample["target"])
    return str(texts.index(target)) if target in texts else target

"""`tuneval quickstart`: the whole way, every step for real, through the commands a user would type.

Each step prints the command it stands for and calls that command's own function, so what it shows is what the commands
do. A step that is done is not done again: `OUT/quickstart.json` records it; a step that was cut off starts over.
"""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from tuneval import console
from tuneval.commands import quickstart_inputs
from tuneval.commands.quickstart_inputs import Inputs
from tuneval.config import flags, schema
from tuneval.config.schema import QuickstartConfig
from tuneval.errors import UserError
from tuneval.files import read_json, write_json
from tuneval.report.records import Comparison, EvalResult, read_record

RECORD = "quickstart.json"
METHODS = {"full": "full SFT", "lora": "LoRA SFT"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command line of the way."""

    words: tuple[str, ...]
    """After `tuneval`."""
    says: str | None = None
    """What is typed into it, through a pipe."""

    def __str__(self) -> str:
        line = shlex.join(("tuneval", *self.words))
        return f"echo {shlex.quote(self.says)} | {line}" if self.says else line


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of the way."""

    title: str
    why: str
    """A line for the newcomer."""
    commands: tuple[Command, ...]


def main(parsed: flags.Parsed) -> int:
    config: QuickstartConfig = parsed.config
    quickstart_inputs.check(config)
    progress = Progress(config.out, config)
    inputs = quickstart_inputs.prepare(config)
    steps = plan(config, inputs)
    for number, step in enumerate(steps, 1):
        console.out.print(f"\n[bold]{number}/{len(steps)} {step.title}[/]  [dim]{step.why}[/]")
        progress.run(step)
    _summary(config, inputs, progress)
    return 0


def plan(config: QuickstartConfig, inputs: Inputs) -> list[Step]:
    """Every step, in order, with paths below `--out`."""
    return [*_proofs(config.out, inputs), *_before(config.out, inputs), *_after(config.out, inputs), _report(config)]


def _proofs(out: Path, inputs: Inputs) -> list[Step]:
    base, mcore, back = inputs.model, out / "mcore", out / "back"
    layout = ("--target-tensor-parallel-size", "2", "--target-pipeline-parallel-size", "2")
    return [
        Step(
            title="convert",
            why="Hugging Face -> Megatron at TP 2 x PP 2, and back",
            commands=(
                _command("convert", "--load", base, "--save", mcore, "--to", "mcore", *layout),
                _command("convert", "--load", mcore, "--save", back, "--to", "hf"),
            ),
        ),
        Step(
            title="verify",
            why="every tensor bit for bit, and the logits",
            commands=(_command("verify", "--a", base, "--b", mcore), _command("verify", "--a", base, "--b", back)),
        ),
    ]


def _before(out: Path, inputs: Inputs) -> list[Step]:
    return [
        Step(
            title="preprocess",
            why="instruction records -> tokens; only answers are trained",
            commands=(
                _command(
                    *("preprocess", "--input", inputs.data, "--tokenizer-name-or-path", inputs.model),
                    *("--output-prefix", out / "data" / "records", "--seq-length", inputs.recipe.seq_length),
                ),
            ),
        ),
        Step(
            title="chat before",
            why="the model as it comes",
            commands=(_chat(inputs.model, inputs),),
        ),
        Step(
            title="evaluate before",
            why="the exam's questions are about things the tuning records never name"
            if inputs.embedded
            else "the exam",
            commands=(_command("evaluate", "--load", inputs.model, *_exam(inputs), "--output", out / "before"),),
        ),
    ]


def _after(out: Path, inputs: Inputs) -> list[Step]:
    data, recipe = out / "data" / "records", inputs.recipe
    common = ("--load", inputs.model, "--data-path", data, "--seq-length", recipe.seq_length, *recipe.common)
    tuned = [
        Step(
            title=f"tune {name}",
            why=METHODS[name],
            commands=(_command("tune", *common, *recipe.of[name], "--save", out / name),),
        )
        for name in METHODS
    ]
    scored = [
        Step(
            title=f"evaluate {name}",
            why=f"{METHODS[name]}: the same questions again, and a paired test",
            commands=(
                _command(
                    *("evaluate", "--load", out / name, *_exam(inputs)),
                    *("--output", _evaluation(out, name), "--compare", out / "before"),
                ),
            ),
        )
        for name in METHODS
    ]
    questions = ("--input", inputs.prompts, "--greedy", "--max-new-tokens", recipe.answer_tokens)
    first = out / "answers.jsonl"
    answers = (
        _command("generate", "--load", inputs.model, *questions, "--output", first),
        *(_command("generate", "--load", out / name, *questions, "--before", first) for name in METHODS),
    )
    return [
        *tuned,
        Step(title="chat after", why="the same turn", commands=tuple(_chat(out / name, inputs) for name in METHODS)),
        *scored,
        Step(
            title="answers before and after",
            why="the same prompts to all three models, for the report",
            commands=answers,
        ),
    ]


def _report(config: QuickstartConfig) -> Step:
    out = config.out
    runs = [out / name for name in METHODS]
    page = ("--baseline", out / "before", "--output", out / "report.html", "--lang", config.lang)
    return Step(title="report", why="one page to hand in", commands=(_command("report", "--runs", *runs, *page),))


def _command(*words: object) -> Command:
    return Command(words=tuple(str(word) for word in words))


def _chat(model: Path, inputs: Inputs) -> Command:
    words = ("chat", "--load", str(model), "--greedy", "--max-new-tokens", str(inputs.recipe.answer_tokens))
    return Command(words=words, says=inputs.chat_turn)


def _exam(inputs: Inputs) -> tuple[object, ...]:
    return ("--task-data-path", inputs.exam, "--shots", inputs.recipe.shots)


def _evaluation(out: Path, name: str) -> Path:
    return out / name / "evaluation" / "ceval-official"


class Progress:
    """What is done of the way, in OUT/quickstart.json.

    Raises:
        UserError: `out` holds something else, or a quickstart of other inputs.
    """

    def __init__(self, out: Path, config: QuickstartConfig) -> None:
        self._file = out / RECORD
        inputs = {k: v for k, v in flags.to_dict(config).items() if k in ("model", "data", "exam")}
        if self._file.is_file():
            self.record: dict[str, Any] = read_json(self._file)
            if self.record["inputs"] != inputs:
                raise UserError(
                    f"--out {out}: holds a quickstart of {self.record['inputs']}, asked for is {inputs}. "
                    "Choose another --out, or remove the folder"
                )
            console.note(f"{out}: going on with the quickstart that it holds; remove the folder to start over")
            return
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out}: holds other files. Choose another --out, or remove the folder")
        self.record = {"inputs": inputs, "steps": {}}
        write_json(self._file, self.record)

    @property
    def seconds(self) -> dict[str, float]:
        """Step -> how long it took."""
        return {title: step["seconds"] for title, step in self.record["steps"].items()}

    def run(self, step: Step) -> None:
        """Run the step's commands, unless the same were run before."""
        lines = [str(command) for command in step.commands]
        done = self.record["steps"].get(step.title)
        if done is not None and done["commands"] == lines:
            for line in lines:
                console.out.print(f"[dim]done before ({done['seconds']:.1f} s):[/] ", end="")
                console.out.print(line, markup=False)
            return
        started = time.monotonic()
        for command in step.commands:
            console.out.print(f"$ {command}", markup=False, style="cyan")
            run(command)
        self.record["steps"][step.title] = {"commands": lines, "seconds": time.monotonic() - started}
        write_json(self._file, self.record)


def run(command: Command) -> None:
    """Run one command in this process, as if typed.

    Raises:
        UserError: what the command raises, or that it reported a failure.
        SystemExit: it was stopped by Ctrl-C or SIGTERM, and has said so.
    """
    name, *words = command.words
    parsed = flags.parse(getattr(schema, f"{name.capitalize()}Config"), words, program=f"tuneval {name}")
    with _as_typed(command):
        status = import_module(f"tuneval.commands.{name}").main(parsed) or 0
    if status in (130, 143):
        sys.exit(status)
    if status:
        raise UserError(f"this step failed (status {status}): {command}")


@contextmanager
def _as_typed(command: Command) -> Iterator[None]:
    """Let the command find its own words in sys.argv (records keep them), and its input on sys.stdin."""
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["tuneval", *command.words], io.StringIO(f"{command.says}\n" if command.says else "")
    try:
        yield
    finally:
        sys.argv, sys.stdin = before


def _summary(config: QuickstartConfig, inputs: Inputs, progress: Progress) -> None:
    """Scores, verdicts, seconds, the report's path, and what to type next."""
    out = config.out
    console.out.print()
    scores = Table("model", "score", "95% interval", "before -> after", title="Exam", title_justify="left")
    scores.add_row("before", *_score(out / "before"), "")
    for name, words in METHODS.items():
        comparison = read_record(Comparison, _evaluation(out, name) / "comparison.json")
        scores.add_row(words, *_score(_evaluation(out, name)), comparison.verdict)
    console.out.print(scores)
    times = ", ".join(f"{title} {seconds:.0f} s" for title, seconds in progress.seconds.items() if seconds >= 0.5)
    console.out.print(f"Time: {sum(progress.seconds.values()):.0f} s ({times})", markup=False)
    console.out.print(f"\n[bold]Report:[/] {escape(str(out / 'report.html'))}")
    console.out.print("[bold]Next:[/] ", end="")
    console.out.print(inputs.next_command, markup=False)


def _score(folder: Path) -> tuple[str, str]:
    micro = read_record(EvalResult, folder / "results.json").micro
    figures = f"{micro['accuracy']:.1%} ({micro['correct']} of {micro['n']})"
    return figures, f"{micro['low']:.1%} to {micro['high']:.1%}"

"""Evaluation and generation at two processes, for test_answers.py: `torchrun ... answer_cases.py FOLDER`.

One job runs every case; process 0 keeps what each printed in FOLDER/NAME/printed.txt.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tuneval import console, runtime
from tuneval.config import flags, schema
from tuneval.model.loss import VocabularyShard
from tuneval.parallel import tensor
from tuneval.parallel.peers import joined

EXAM = ("--task-data-path", "exam", "--shots", "2", "--dtype", "fp32", "--batch-tokens", "600")
HARNESS = ("--task", "lm_eval:toy_ceval", "--task-data-path", "own", "--shots", "2", "--dtype", "fp32")
GREEDY = ("--dtype", "fp32", "--greedy", "--max-new-tokens", "7")
FILE = ("--input", "prompts.jsonl", "--batch-size", "2")
PERPLEXITY, GENERATION = ("--style", "oc_ppl"), ("--style", "oc_gen", "--max-new-tokens", "6", "--allow-unparsed")
LINES = "two plus two?\nand 猫?\nclear\nthree?\nq\nnever\n"


@dataclass(frozen=True)
class Case:
    command: str
    words: tuple[str, ...]
    tp: int = 2
    """Tensor-parallel processes of the two."""
    model: str = "model"
    broken: str = ""
    """What is done wrong on purpose."""

    def parsed(self, folder: Path, output: Path, tp: int) -> flags.Parsed:
        """The command line, with its names of files in `folder`, and its results in `output`."""
        words = [str(folder / w) if (folder / w).exists() else w for w in self.words]
        words += ["--load", str(folder / self.model), "--tensor-model-parallel-size", str(tp)]
        if self.command == "evaluate":
            words += ["--output", str(output)]
        if "--input" in words:
            words += ["--output", str(output / "answers.jsonl")]
        return flags.parse(getattr(schema, f"{self.command.capitalize()}Config"), words, self.command)


CASES = {
    "letters": Case("evaluate", EXAM),
    "letters bf16": Case("evaluate", (*EXAM, "--dtype", "bf16")),
    "perplexity": Case("evaluate", (*EXAM, *PERPLEXITY), model="tied"),
    "replies": Case("evaluate", (*EXAM, *GENERATION)),
    "replies of half heads": Case("evaluate", (*EXAM, *GENERATION), model="odd"),
    "perplexity of half heads": Case("evaluate", (*EXAM, *PERPLEXITY), model="odd"),
    "adapter": Case("evaluate", EXAM, model="run"),
    "resumed": Case("evaluate", EXAM),
    "harness": Case("evaluate", HARNESS),
    "several styles": Case("evaluate", (*EXAM, "--style", "official,lm_eval")),
    "letters dp": Case("evaluate", EXAM, tp=1),
    "perplexity dp": Case("evaluate", (*EXAM, *PERPLEXITY), tp=1),
    "replies dp": Case("evaluate", (*EXAM, *GENERATION), tp=1),
    "resumed dp": Case("evaluate", EXAM, tp=1),
    "harness dp": Case("evaluate", HARNESS, tp=1),
    "prompt": Case("generate", (*GREEDY, "--prompt", "two plus two?")),
    "prompt of an adapter": Case("generate", (*GREEDY, "--prompt", "two plus two?"), model="run"),
    "file": Case("generate", (*GREEDY, *FILE), model="tied"),
    "file of half heads": Case("generate", (*GREEDY, *FILE), model="odd"),
    "sampled": Case("generate", ("--dtype", "fp32", "--max-new-tokens", "7", *FILE)),
    "prompt dp": Case("generate", (*GREEDY, "--prompt", "two plus two?"), tp=1),
    "file dp": Case("generate", (*GREEDY, *FILE), tp=1),
    "tasks": Case("inference", ("--task", "greedy", "do_sample", "beam_search", "--max-new-tokens", "7")),
    "talk": Case("inference", ("--task", "chat", "--hf-chat-template", "--max-new-tokens", "7")),
    "talk dp": Case("inference", ("--task", "chat", "--hf-chat-template", "--max-new-tokens", "7"), tp=1),
}
BROKEN = {
    "letters of other words": Case("evaluate", EXAM, broken="words of another process"),
    "perplexity of some words": Case("evaluate", (*EXAM, *PERPLEXITY), model="tied", broken="words of another process"),
    "shares not summed": Case("generate", (*GREEDY, *FILE), broken="shares not summed"),
}
"""Each goes wrong in one place, so that a comparison with one process must fail."""
CASES |= BROKEN
if find_spec("lm_eval") is None:  # an optional extra: where it is missing, its cases are not launched
    CASES = {name: case for name, case in CASES.items() if case.words != HARNESS}


@contextmanager
def replaced(owner: object, name: str, wrong: object) -> Iterator[None]:
    right = getattr(owner, name)
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


def broken(what: str) -> AbstractContextManager:
    """Within, one thing is done wrongly; nothing where `what` is empty."""
    find = VocabularyShard.find
    return {
        "": nullcontext,
        "words of another process": lambda: replaced(VocabularyShard, "find", lambda self, ids: find(self, ids + 1)),
        "shares not summed": lambda: replaced(tensor, "_leave", lambda share, mesh, outside: share),
    }[what]()


def printed(case: Case, folder: Path, output: Path, tp: int) -> str:
    """What this process writes to standard output."""
    said, parsed = io.StringIO(), case.parsed(folder, output, tp)
    before, sys.stdin = sys.stdin, io.StringIO(LINES if runtime.is_main() else "not for me\n")
    try:
        with redirect_stdout(said):
            import_module(f"tuneval.commands.{case.command}").main(parsed)
    finally:
        sys.stdin = before
    return said.getvalue()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    runtime.prepare()
    with joined(2.0):
        console.quiet(not runtime.is_main())
        for name in sys.argv[2].split(",") if len(sys.argv) > 2 else CASES:
            case, output = CASES[name], folder / name
            with broken(case.broken):
                said = printed(case, folder, output, case.tp)
            (output / f"printed{runtime.rank()}.txt").write_text(said, encoding="utf-8")

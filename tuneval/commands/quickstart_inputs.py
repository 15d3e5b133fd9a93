"""What quickstart works on: the embedded tiny model, records and exam, or the user's own; and the settings that fit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from tuneval.config.schema import QuickstartConfig
from tuneval.errors import Problems
from tuneval.files import atomic_file, atomic_folder, write_jsonl

CHAT_TURN = "猫头鹰属于哪一类动物？"
PROMPTS = (
    CHAT_TURN,
    "希腊的首都是哪一座城市？",
    "李清照生活在哪一个朝代？",
    "你好，你是谁？",
)
REAL_CHAT_TURN = "用一句话介绍你自己。"
REAL_PROMPTS = (REAL_CHAT_TURN, "保持健康的三个提示。", "解释什么是光合作用。")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of tuning, scoring and answering."""

    seq_length: int
    shots: int
    answer_tokens: int
    common: tuple[str, ...]
    """Flags of both tunings."""
    of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """`full`, `lora` -> their own flags."""


TINY = Recipe(
    seq_length=512,
    shots=0,
    answer_tokens=32,
    common=("--fp32", "--global-batch-size", "16", "--eval-interval", "40", "--lr-warmup-iters", "5"),
    of={
        "full": ("--lr", "5e-4", "--train-iters", "160"),
        "lora": ("--lr", "3e-3", "--train-iters", "160", "--lora-r", "16"),
    },
)
"""The embedded model has a million parameters and little to lose: rates are far above those of a real model."""
REAL = Recipe(
    seq_length=1024,
    shots=5,
    answer_tokens=128,
    common=("--global-batch-size", "16", "--train-iters", "30", "--lr-warmup-iters", "3"),
    of={"full": ("--lr", "1e-5"), "lora": ("--lr", "1e-4", "--lora-r", "8", "--lora-alpha", "16")},
)
"""Long enough to see everything work; for a result, tune longer."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Paths to start from, and what fits them."""

    model: Path
    data: Path
    exam: Path
    prompts: Path
    """JSON lines with `prompt` each, answered before and after."""
    chat_turn: str
    recipe: Recipe
    embedded: bool
    """Model, records and exam are all the embedded ones."""
    next_command: str


def prepare(config: QuickstartConfig) -> Inputs:
    """Check what the user gave; copy what is embedded into `--out`, so that the commands shown work as they stand.

    Args:
        config: checked.
    """
    out, tiny = config.out, config.model is None
    prompts = out / "prompts.jsonl"
    write_jsonl(prompts, [{"prompt": prompt} for prompt in (PROMPTS if tiny else REAL_PROMPTS)])
    return Inputs(
        model=config.model or _copy("model", out / "base"),
        data=config.data or _copy("records.jsonl", out / "records.jsonl"),
        exam=config.exam or _copy("exam", out / "exam"),
        prompts=prompts,
        chat_turn=CHAT_TURN if tiny else REAL_CHAT_TURN,
        recipe=TINY if tiny else REAL,
        embedded=not (config.model or config.data or config.exam),
        next_command=_next(config),
    )


def check(config: QuickstartConfig) -> None:
    """Raise one UserError that names every given path that does not exist."""
    problems = Problems()
    for flag, path, what in (
        ("--model", config.model, "a Hugging Face folder (`tuneval download` fetches one)"),
        ("--data", config.data, "a file of instruction records"),
        ("--exam", config.exam, "an exam folder or zip in C-Eval's layout"),
    ):
        problems.check(path is None or path.exists(), f"{flag} {path}: does not exist. Give {what}")
    problems.raise_if_any()


def _copy(name: str, to: Path) -> Path:
    """An embedded file or folder, whole or absent."""
    if to.exists():
        return to
    with resources.as_file(resources.files("tuneval.assets") / name) as source:
        if source.is_dir():
            with atomic_folder(to) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            with atomic_file(to, "wb") as file:
                file.write(source.read_bytes())
    return to


def _next(config: QuickstartConfig) -> str:
    if config.model is not None:
        return f"tuneval tune --load {config.model} --data-path {config.out / 'data' / 'records'} --save run --lora-r 8"
    own = "--model Qwen2.5-0.5B-Instruct --data YOUR_RECORDS.json --exam ceval-exam.zip --out first-real-run"
    return f"tuneval download Qwen/Qwen2.5-0.5B-Instruct && tuneval quickstart {own}"

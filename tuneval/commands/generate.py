"""`tuneval generate`: answer one prompt, or every line of a file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuneval import console, runtime
from tuneval.checkpoints.load import Loaded
from tuneval.commands import answer_model
from tuneval.commands.generate_input import earlier_answers, read_input
from tuneval.config.flags import Parsed
from tuneval.config.schema import GenerateConfig
from tuneval.data.records import Message
from tuneval.data.template import Template
from tuneval.errors import Problems, UserError
from tuneval.files import check_writable, write_jsonl
from tuneval.inference.generate import TextStream, choose_template, generate, positions_limit
from tuneval.inference.sampling import acting, without_effect
from tuneval.report.records import SampleAnswer


def main(parsed: Parsed) -> None:
    config: GenerateConfig = parsed.config
    rows, conversations = read_input(config)
    earlier = None if config.before is None else earlier_answers(rows, config)
    output = config.output if earlier is None else config.output or config.load / "samples.jsonl"
    if output is not None:
        check_writable(output)
    settings = _settings(config)
    if notice := without_effect(config.sampling):
        console.note(notice)
    if earlier is not None:
        _warn_of_other_settings(config, settings, earlier[0].get("settings"))
    parts = config.shard.tensor_model_parallel_size
    loaded = answer_model.load(config, parsed.model_facts, None, parts, config.quantize)
    template = None if config.raw else choose_template(loaded, config.prompt_type)
    stops = _stops(loaded, template)
    prompts = [_prompt_ids(messages, loaded, template) for messages in conversations]
    _check_lengths(prompts, loaded)
    if config.input is None:
        if loaded.mesh.dp_rank == 0:  # one copy of the model is enough
            _print_answer(loaded, prompts[0], config, stops)
        return
    answers = answer_all(loaded, prompts, config, stops)
    if not runtime.is_main():
        return
    if earlier is None:
        made = {} if output is None else {"settings": settings}  # for `--before`; on a screen it would be in the way
        _write([{**row, "response": a.text, "stopped": a.stopped, **made} for row, a in zip(rows, answers)], output)
    else:
        _write(_beside(earlier, answers, settings), output)


def _beside(earlier: list[dict[str, Any]], answers: list[Answer], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Each prompt with the answer of before and the one of now, for the report."""
    samples = [
        SampleAnswer(
            prompt=before["prompt"],
            before=before["response"],
            after=answer.text,
            before_stopped=before.get("stopped"),
            after_stopped=answer.stopped,
            settings=settings,
        )
        for before, answer in zip(earlier, answers)
    ]
    return [asdict(sample) for sample in samples]


def _warn_of_other_settings(config: GenerateConfig, settings: dict[str, Any], before: Any) -> None:
    """Answers made in two ways differ by more than the tuning. Files of older versions don't say how they were made."""
    if not isinstance(before, dict):
        return
    names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if names:
        told = "; ".join(
            f"{name} {before.get(name, 'not given')} then, {settings.get(name, 'not given')} now" for name in names
        )
        console.warn(f"--before {config.before}: its answers were made with other settings: {told}")


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    stopped: bool
    """It ended by itself, not at the longest length allowed."""


def answer_all(
    loaded: Loaded, prompts: list[list[int]], config: GenerateConfig, stop_token_ids: tuple[int, ...]
) -> list[Answer]:
    """Answers in the prompts' order, on every process.

    Prompts of like length share a batch, so that little is padded; copies of the model share the batches.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
    mesh, answers = loaded.mesh, {}
    mine = batches[mesh.dp_rank :: mesh.layout.data]
    limit = positions_limit(loaded) or math.inf
    with console.progress_bar("answering", sum(map(len, mine))) as bar:
        for batch in mine:
            tokens = generate(loaded, [prompts[i] for i in batch], config.sampling, stop_token_ids)
            room = min(config.sampling.max_new_tokens, limit - max(len(prompts[i]) for i in batch))
            for i, answer in zip(batch, tokens):
                text = loaded.tokenizer.decode(answer, skip_special_tokens=True)
                answers[i] = Answer(text, stopped=len(answer) < room)
            bar.advance(len(batch))
    everyone = {i: answer for part in mesh.gather(answers) for i, answer in part.items()}
    return [everyone[i] for i in range(len(prompts))]


def _settings(config: GenerateConfig) -> dict[str, Any]:
    """What the answers depend on beside model and prompt."""
    own = {
        "dtype": config.dtype,
        "quantize": config.quantize,
        "raw": config.raw,
        "prompt_type": config.prompt_type,
        "system": config.system,
    }
    return {k: v for k, v in {**own, **acting(config.sampling)}.items() if v is not None and v is not False}


def _prompt_ids(messages: list[Message], loaded: Loaded, template: Template | None) -> list[int]:
    if template is not None:
        return template.prompt_ids(messages)
    ids = loaded.tokenizer(messages[0].content)["input_ids"]
    if not ids:
        raise UserError("--raw: an empty text can't be continued")
    return ids


def _stops(loaded: Loaded, template: Template | None) -> tuple[int, ...]:
    if template is not None:
        return template.stop_token_ids
    eos = loaded.tokenizer.eos_token_id
    return () if eos is None else (eos,)


def _check_lengths(prompts: list[list[int]], loaded: Loaded) -> None:
    """Before an hour of answers, not after it."""
    limit, problems = positions_limit(loaded), Problems()
    for number, prompt in enumerate(prompts, 1):
        problems.check(
            limit is None or len(prompt) < limit,
            f"prompt {number}: {len(prompt)} tokens; the model has {limit} positions, and the answer needs some too",
        )
    problems.raise_if_any()


def _print_answer(loaded: Loaded, prompt: list[int], config: GenerateConfig, stops: tuple[int, ...]) -> None:
    def show(piece: str) -> None:
        if runtime.is_main():
            sys.stdout.write(piece)
            sys.stdout.flush()

    try:
        if config.sampling.num_beams > 1:
            (answer,) = generate(loaded, [prompt], config.sampling, stops)
            show(loaded.tokenizer.decode(answer, skip_special_tokens=True))
        else:
            generate(loaded, [prompt], config.sampling, stops, TextStream(loaded.tokenizer, show, stops))
    finally:
        show("\n")  # what Ctrl-C makes the command line say begins a line


def _write(rows: Iterable[dict[str, Any]], output: Path | None) -> None:
    if output is not None:
        write_jsonl(output, rows)
        console.note(f"wrote {output}")
        return
    for line in _lines(rows):
        sys.stdout.write(line)


def _lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

"""`tuneval inspect`: one sample with its trained parts marked, and what the whole data set is like."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from rich.text import Text

from tuneval.config.flags import Parsed
from tuneval.config.schema import InspectConfig
from tuneval.console import out, track
from tuneval.data.indexed import IndexedDataset, sft_prefix
from tuneval.data.manifest import read_manifest
from tuneval.data.rendering import MASKED
from tuneval.data.tally import digest, length_percentiles
from tuneval.data.tokenizer import load_tokenizer
from tuneval.errors import UserError

OPEN, CLOSE = "⟦", "⟧"
"""Stand around trained text, so that it shows without colour too."""


def main(parsed: Parsed) -> None:
    config: InspectConfig = parsed.config
    input_ids, labels = (IndexedDataset(sft_prefix(config.data_path, c)) for c in ("input_ids", "labels"))
    manifest = read_manifest(config.data_path)
    if not -len(input_ids) <= config.index < len(input_ids):
        raise UserError(f"--index {config.index}: the data set has samples 0 to {len(input_ids) - 1}")
    tokenizer = load_tokenizer(_tokenizer_folder(config, manifest))
    stop = set(manifest["stop_token_ids"] if manifest else [tokenizer.eos_token_id])
    for line in overview(input_ids, labels, manifest, stop):
        out.print(line, markup=False)
    out.print()
    ids, targets = input_ids[config.index], labels[config.index]
    out.print(
        f"sample {config.index}: {len(ids)} tokens, {np.count_nonzero(targets != MASKED)} trained {OPEN}so{CLOSE}"
    )
    out.print(marked(ids, targets, tokenizer))
    out.print()
    out.print(f"end-of-turn token: {end_of_turn(ids, targets, stop, tokenizer)}", markup=False)


def overview(
    input_ids: IndexedDataset, labels: IndexedDataset, manifest: dict[str, Any] | None, stop: set[int]
) -> list[str]:
    """Counts over the whole data set, one line each."""
    total, trained = len(input_ids.tokens), int(np.count_nonzero(labels.tokens != MASKED))
    lengths = ", ".join(f"{k} {v}" for k, v in length_percentiles(input_ids.lengths).items())
    ending, answers = answers_with_end(labels.tokens, stop)
    lines = [
        f"{len(input_ids)} samples, {total} tokens, {trained} trained ({trained / max(total, 1):.1%})",
        f"lengths in tokens: {lengths}",
        f"end-of-turn token trained in {ending} of {answers} answers",
        f"duplicates: {duplicates(input_ids)} samples repeat an earlier one",
    ]
    if manifest is None:
        return [*lines, "truncation: unknown (no manifest: these files were not written by tuneval)"]
    cut = "cut" if manifest["packed"] == "neat-pack" else "left out"
    limit = manifest.get("seq_length")
    skipped = "; ".join(f"{n} {reason}" for reason, n in manifest["skipped"].items()) or "none"
    return [
        *lines,
        f"truncation: {manifest['over_long']} over-long samples {cut} ({f'--seq-length {limit}' if limit else 'no --seq-length'})",
        f"rows left out: {skipped} (of {manifest['input'].get('rows')})",
        f"template {manifest['prompt_type']} ({manifest['template_fingerprint'][:12]}), packed: {manifest['packed']}",
    ]


def marked(ids: np.ndarray, labels: np.ndarray, tokenizer: Any) -> Text:
    """The sample decoded: masked text dim, trained text green between brackets."""
    text = Text()
    for start, end, trained in runs(labels):
        part = tokenizer.decode(ids[start:end].tolist())
        text.append(f"{OPEN}{part}{CLOSE}" if trained else part, style="bold green" if trained else "dim")
    return text


def runs(labels: np.ndarray) -> list[tuple[int, int, bool]]:
    """Stretches (start, end, trained) of tokens with the same fate."""
    trained = labels != MASKED
    edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(labels)]
    return [(a, b, bool(trained[a])) for a, b in pairwise(edges) if a < b]


def end_of_turn(ids: np.ndarray, labels: np.ndarray, stop: set[int], tokenizer: Any) -> str:
    """Whether each answer of the sample trains its end."""
    answers = [(a, b) for a, b, trained in runs(labels) if trained]
    if not answers:
        return "no answer is trained in this sample"
    last = ([int(token) for token in ids[max(a, b - 2) : b] if int(token) in stop] for a, b in answers)
    ending = [stops[0] for stops in last if stops]  # one an answer: --append-eod trains another behind it
    token = tokenizer.convert_ids_to_tokens(ending[0] if ending else min(stop))
    verdict = "trained" if len(ending) == len(answers) else "NOT TRAINED, the model won't learn to stop:"
    return f"{token} {verdict} in {len(ending)} of {len(answers)} answers"


def answers_with_end(labels: np.ndarray, stop: set[int]) -> tuple[int, int]:
    """(answers that train an end-of-turn token last or, before a line break, last but one; answers).

    Args:
        labels: [tokens] of all samples.
    """
    trained = np.concatenate([np.asarray(labels) != MASKED, [False]])
    last = np.flatnonzero(trained[:-1] & ~trained[1:])
    stops = list(stop)
    ends = np.isin(labels[last], stops) | np.isin(labels[np.maximum(last - 1, 0)], stops)
    return int(np.count_nonzero(ends)), len(last)


def duplicates(input_ids: IndexedDataset) -> int:
    """Samples whose tokens an earlier one has."""
    hashes = {digest(input_ids[i]) for i in track(range(len(input_ids)), "duplicates")}
    return len(input_ids) - len(hashes)


def _tokenizer_folder(config: InspectConfig, manifest: dict[str, Any] | None) -> str:
    folder = config.tokenizer_name_or_path or (manifest["tokenizer"].get("path") if manifest else None)
    if folder is None:
        raise UserError(f"{config.data_path}: no manifest names the tokenizer; give --tokenizer-name-or-path")
    return folder

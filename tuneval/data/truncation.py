"""Cutting a conversation that is too long, turn by turn, as MindSpeed-LLM cuts it: every turn keeps its head."""

from __future__ import annotations

import numpy as np

from tuneval.data.rendering import MASKED


def truncate_turns(turns: list[tuple[int, int]], room: int) -> list[tuple[int, int]]:
    """How many tokens of each turn's source (masked) and target (trained) stay within `room`.

    Per turn: a short target (twice it is below the room) costs the source its tail; else a short source costs the
    target its tail; else both shrink in proportion. Turns without room are dropped.

    >>> truncate_turns([(80, 30)], 100), truncate_turns([(30, 80)], 100), truncate_turns([(100, 100)], 100)
    ([(70, 30)], [(30, 70)], [(50, 50)])

    Source: reference 4.4, golden values of its section 9.
    """
    kept = []
    for source, target in turns:
        if room <= 0:
            break
        if 2 * target < room:
            most = room
        elif 2 * source < room:
            most = room - source
        else:
            most = int(room * (target / (source + target)))
        target = min(most, target)
        source = min(max(room - target, 0), source)
        kept.append((source, target))
        room -= source + target
    return kept


def kept_positions(labels: np.ndarray, room: int) -> np.ndarray:
    """Positions of a conversation that stay when it is cut to `room` tokens, rising.

    Args:
        labels: [length], `MASKED` on the sources; a turn is a run of those and the run of trained tokens after it.
        room: tokens.

    Returns:
        [at most room] int64
    """
    if len(labels) <= room:
        return np.arange(len(labels))
    trained = labels != MASKED
    edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(labels)]
    if trained[0]:  # a conversation that starts with a target: its first source is empty
        edges.insert(0, 0)
    if len(edges) % 2 == 0:  # a source without a target at the end
        edges.append(len(labels))
    turns = list(zip(edges[:-1:2], edges[1::2], edges[2::2], strict=True))
    kept = truncate_turns([(middle - start, end - middle) for start, middle, end in turns], room)
    pieces = []
    for (start, middle, _), (source, target) in zip(turns, kept):
        pieces += [np.arange(start, start + source), np.arange(middle, middle + target)]
    return np.concatenate(pieces)

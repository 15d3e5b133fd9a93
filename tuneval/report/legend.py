"""How a series is marked everywhere in the page: the model before tuning is 0, then the runs in their order."""

from __future__ import annotations

from tuneval.report.document import Key
from tuneval.report.plots import MARKER_SIGNS, RUN_COLOURS


def legend_key(label: str, i: int) -> Key:
    """Colour and marker of series `i`; both come again after the last, with the label to tell them apart."""
    return Key(label=label, colour=i % len(RUN_COLOURS), sign=MARKER_SIGNS[i % len(MARKER_SIGNS)])

"""Draws docs/images/schedule-*.svg: what each pipeline stage does when, by the timetable that `tuneval plan` uses."""

from __future__ import annotations

from pathlib import Path

from tuneval.parallel.mesh import Layout
from tuneval.parallel.schedules import Action, Timetable, timetable

FOLDER = Path(__file__).parent.parent / "docs" / "images"
STAGES, MICRO_BATCHES = 4, 8
UNIT, ROW, LEFT, TOP = 24, 30, 64, 8
"""Pixels of one forward pass and of a stage's row; of the margins."""
COLOURS = {"F": ("#9ec5f4", "#4a90e2"), "B": ("#b9dfb0", "#57a64a")}
"""Of a forward and a backward pass through the first and the second chunk of a stage."""


def main() -> None:
    drawn = {"gpipe": ("gpipe", 1), "1f1b": ("1f1b", 1), "interleaved": ("1f1b", 2)}
    for name, (schedule, chunks) in drawn.items():
        layers = tuple((chunk,) for chunk in range(STAGES * chunks))
        table = timetable(
            Layout(pipeline=STAGES, layers=layers, schedule=schedule), MICRO_BATCHES, 1 / chunks, 2 / chunks
        )
        (FOLDER / f"schedule-{name}.svg").write_text(picture(table), encoding="utf-8")
        print(f"{name}: bubble {table.bubble:.1%}, in flight {table.in_flight}")


def picture(table: Timetable) -> str:
    width, height = LEFT + UNIT * 34 + 8, TOP + ROW * STAGES + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for stage, spans in enumerate(table.spans):
        y = TOP + ROW * stage
        parts.append(f'<text x="{LEFT / 2}" y="{y + ROW / 2 + 4}" fill="#333333">PP {stage}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{UNIT * table.duration}" height="{ROW - 4}" fill="#ececec"/>')
        parts += [cell(action, begin, end, y) for action, begin, end in spans]
    return "\n".join([*parts, "</svg>", ""])


def cell(action: Action, begin: float, end: float, y: int) -> str:
    x, width = LEFT + UNIT * begin, UNIT * (end - begin)
    colour = COLOURS[action.kind][action.chunk // STAGES]
    return (
        f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{ROW - 4}" fill="{colour}" stroke="#ffffff"/>'
        f'<text x="{x + width / 2:g}" y="{y + ROW / 2 + 2:g}" fill="#1b1b1b">{action.micro_batch + 1}</text>'
    )


if __name__ == "__main__":
    main()

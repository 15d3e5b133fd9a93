"""Every style by task and name."""

from __future__ import annotations

import difflib

from tuneval.errors import UserError
from tuneval.evaluation.ceval_styles import CEVAL_STYLES
from tuneval.evaluation.further_styles import FURTHER_STYLES
from tuneval.evaluation.styles import Style
from tuneval.evaluation.tasks import Task

STYLES = {(style.task, style.name): style for style in (*CEVAL_STYLES, *FURTHER_STYLES)}
HARNESS = "lm_eval:"
"""Before the name of a task of lm-evaluation-harness in `--task`."""
ALL = "all"
"""`--style all`: every style of a task that reads scores; the others generate text, which takes far longer."""


def styles_of(task: str) -> dict[str, Style]:
    """Name -> style of a task."""
    return {name: style for (owner, name), style in STYLES.items() if owner == task}


def find_styles(task: Task, wanted: str | None, chat: bool) -> list[Style]:
    """The styles a user asks for.

    Args:
        task: the exam.
        wanted: a name, several by commas, `all`, or None for the task's usual one.
        chat: whether the model's chat template may be used; without, `all` leaves out styles that need one.

    Raises:
        UserError: unknown; names the nearest and all known ones.
    """
    known = styles_of(task.name)
    if wanted == ALL:
        scored = [s for s in known.values() if s.decision.kind != "reply" and (chat or not s.needs_chat_template)]
        if not scored:
            raise UserError(
                f"--style all: means those that read scores, and {task.name} has none; give {', '.join(known)}"
            )
        return scored
    found = []
    for name in dict.fromkeys(n.strip() for n in (wanted or task.style).split(",")):
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise UserError(f"--style {name}: unknown; {hint}known for {task.name} are {', '.join([*known, ALL])}")
        found.append(known[name])
    return found

"""An exam in pieces: what is kept when a run is killed, and what ranks divide among themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tuneval.evaluation.exam import Exam
from tuneval.parallel.mesh import Mesh

UNIT_QUESTIONS = 256
"""A subject of more questions is divided: a killed run loses at most one piece."""


@dataclass(frozen=True)
class Unit:
    """Questions [start, stop) of a subject."""

    subject: str
    start: int
    stop: int


@dataclass(frozen=True)
class Ranks:
    """Copies of a model that each score a part of an exam; a copy is one process, or several that share it."""

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = lambda own: [own]
    """A value of this rank -> the values of all ranks, on every rank, in their order."""
    first: Callable[[Any], Any] = lambda value: value
    """A value of the first process -> the same on every process."""
    leads: bool = True
    """Whether this process is the first of its copy: the one that writes down what the copy has found."""

    @classmethod
    def of(cls, mesh: Mesh) -> Ranks:
        """The copies of a mesh: its data-parallel processes."""
        return cls(mesh.dp_rank, mesh.layout.data, mesh.gather, mesh.first, mesh.tp_rank == 0)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the result."""
        return self.rank == 0 and self.leads


ALONE = Ranks()


def units(exam: Exam) -> list[Unit]:
    """The pieces of an exam, in its order."""
    return [
        Unit(subject, start, min(start + UNIT_QUESTIONS, len(questions)))
        for subject, questions in exam.questions.items()
        for start in range(0, len(questions), UNIT_QUESTIONS)
    ]

"""The processes that rehearse."""

from __future__ import annotations

import signal
from multiprocessing import Pipe

import pytest

from tuneval.errors import UserError
from tuneval.planning import rehearsal
from tuneval.planning.rehearsal import Rehearsals


class Deadly:
    """Kills the process that it is sent to."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_process_that_is_killed_is_not_waited_for():
    with pytest.raises(UserError, match="status -9: killed, or out of memory"):
        Rehearsals().run([Deadly()])


class Unsendable(Exception):
    """Like what torch raises: it holds what can't be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.held = lambda: None


def test_ctrl_c_is_the_parents_to_handle_and_an_error_keeps_its_text(monkeypatch):
    def fail(part: object) -> None:
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        raise Unsendable("it is odd")

    monkeypatch.setattr(rehearsal, "rehearse", fail)
    before = signal.getsignal(signal.SIGINT)
    receiver, sender = Pipe(duplex=False)
    try:
        rehearsal._rehearse(None, sender)
    finally:
        signal.signal(signal.SIGINT, before)
    assert str(receiver.recv()) == "Unsendable: it is odd"

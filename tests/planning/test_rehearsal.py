"""The processes that rehearse."""

from __future__ import annotations

import signal

import pytest

from tuneval.errors import UserError
from tuneval.planning.rehearsal import Rehearsals


class Deadly:
    """Kills the process that it is sent to."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGKILL,)


def test_a_process_that_is_killed_is_not_waited_for():
    with Rehearsals() as rehearsals, pytest.raises(UserError, match="status -9: killed, or out of memory"):
        rehearsals.run([Deadly()])


def test_ctrl_c_is_the_parents_to_handle():
    with Rehearsals() as rehearsals:
        assert rehearsals._pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN

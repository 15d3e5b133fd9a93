"""The processes that rehearse."""

from __future__ import annotations

import signal

from tuneval.planning.rehearsal import Rehearsals


def test_ctrl_c_is_the_parents_to_handle():
    with Rehearsals() as rehearsals:
        assert rehearsals._pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN

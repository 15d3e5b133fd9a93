"""Child processes that don't outlive us."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any


def own_session() -> dict[str, Any]:
    """Arguments of `subprocess.Popen`: a session of its own, so that Ctrl-C reaches us alone, and SIGTERM when we die.

    A tuning that gets SIGTERM saves and leaves, instead of running on alone after its sweep was killed.
    """
    return {"start_new_session": True, "preexec_fn": _die_with_parent if sys.platform == "linux" else None}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h

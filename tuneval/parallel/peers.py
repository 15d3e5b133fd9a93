"""The processes of one job: how they meet, how each learns that another has failed, and who says so."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from tuneval import runtime
from tuneval.errors import UserError, tell, tell_torchrun

MEETING_MINUTES, WAITING_MINUTES = 2.0, 10.0
"""Defaults of `--distributed-timeout-minutes`: until all processes have met, and for one collective after that."""
OWN_ERROR, BAD_INPUT, LOST_A_PEER = 1, 2, 75
"""Exit statuses: this process failed; the user's input can't be used; another process failed first."""
REPORTS_FOR_US = "TUNEVAL_LAUNCHER"
"""Environment variable: our own launcher started this process, and prints what its error file says."""

_LOOK_SECONDS, _GRACE_SECONDS = 1.0, 6.0
_TRAFFIC = ("gloo", "NCCL", "HCCL", "closed by peer", "reset by peer", "Broken pipe", "Socket", "Timed out", "timeout")


@contextmanager
def joined(timeout_minutes: float | None) -> Iterator[None]:
    """Meet the other processes of this job, for the time of a command; nothing where there is one process.

    An error inside ends this process at once, so that the others learn of it within seconds; it is printed once, by
    the process that failed first (or by our launcher), not by every process that it stopped.

    Args:
        timeout_minutes: longest wait for another process. None: `MEETING_MINUTES`, then `WAITING_MINUTES`.

    Raises:
        UserError: some process did not come in time; it is named, with what to look at.
    """
    if runtime.world_size() == 1:
        yield
        return
    peers = None
    try:
        peers = Peers(timeout_minutes)
        yield
        peers.leave()
    except BaseException as error:
        _end(error, peers)


class Peers:
    """This process among the others.

    Meets them, makes the default process group, and looks once a second (in a thread, so also while this process is
    stuck in a collective) whether one of them has failed. Processes of the same machine watch each other; word of a
    failure goes to other machines through the store.
    """

    def __init__(self, timeout_minutes: float | None) -> None:
        self.rank, self.world_size = runtime.rank(), runtime.world_size()
        self.host, self._parent = socket.gethostname(), os.getppid()
        self._store = dist.PrefixStore("tuneval", _meeting_point(timeout_minutes or MEETING_MINUTES))
        self._neighbours = self._check_in(timeout_minutes or MEETING_MINUTES)
        runtime.select_accelerator()
        dist.init_process_group(
            runtime.communication_backend(),
            store=dist.PrefixStore("group", self._store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(minutes=timeout_minutes or WAITING_MINUTES),
        )
        self._leaving = threading.Event()
        self._line = _second_connection(self._store)
        self._watcher = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._watcher.start()

    def leave(self) -> None:
        """Part from the others after success. Process 0 stays until all have left where it keeps the store itself."""
        self._store.set(f"left/{self.rank}", "1")
        self._leaving.set()
        # A daemon thread that waits for the store when Python ends is unwound through C++, which aborts the process.
        self._watcher.join(_GRACE_SECONDS)
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            self._store.wait([f"left/{r}" for r in range(self.world_size)], timedelta(minutes=WAITING_MINUTES))
        dist.destroy_process_group()

    def claim(self, cause: str) -> bool:
        """Whether this process is the first to tell of a failure; `cause` is what the others will know of it."""
        try:
            first = self._line.add("failures", 1) == 1
            if first:
                self._line.set("failure", cause)
        except RuntimeError:  # the store is gone with the machine that kept it
            return True
        return first

    def failure(self) -> str | None:
        """What is known of a failure, of whichever process."""
        try:
            return self._line.get("failure").decode() if self._line.check(["failure"]) else None
        except RuntimeError:
            return "the process that holds the job together has ended"

    def wait_for_cause(self) -> str | None:
        """The failure behind a broken connection: whoever failed says so within seconds, if it still can."""
        end = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < end:
            cause = self.failure() or self._dead_neighbour()
            if cause is not None:
                return cause
            time.sleep(0.2)
        return None

    def _check_in(self, minutes: float) -> dict[int, int]:
        """Say that this process is here, wait for all. Returns rank -> process id of the others on this machine."""
        keys = [f"here/{r}" for r in range(self.world_size)]
        self._store.set(keys[self.rank], f"{os.getpid()} {self.host}")
        try:
            self._store.wait(keys, timedelta(minutes=minutes))
        except RuntimeError:
            missing = [r for r, key in enumerate(keys) if not self._store.check([key])]
            raise _missing(f"rank {', '.join(map(str, missing))} of {self.world_size}", minutes) from None
        places = {r: self._store.get(key).decode().split(" ", 1) for r, key in enumerate(keys)}
        return {r: int(pid) for r, (pid, host) in places.items() if host == self.host and r != self.rank}

    def _watch(self) -> None:
        while not self._leaving.wait(_LOOK_SECONDS):
            if os.getppid() != self._parent:  # torchrun was killed: save and leave, as it would have asked
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)
            cause = self.failure() or self._dead_neighbour()
            if cause is None or self._leaving.wait(_LOOK_SECONDS):  # leave the main thread time to say it itself
                continue
            _end(LostPeer(cause), self)

    def _dead_neighbour(self) -> str | None:
        for rank, pid in self._neighbours.items():
            if not _alive(pid) and not self._has_left(rank):
                return f"rank {rank} (process {pid} on {self.host}) ended without a word: killed, or out of memory"
        return None

    def _has_left(self, rank: int) -> bool:
        try:
            return self._line.check([f"left/{rank}"])
        except RuntimeError:
            return False


class LostPeer(RuntimeError):
    """Another process of the job has failed."""


def _meeting_point(minutes: float) -> dist.Store:
    """The store that torchrun keeps, or that process 0 keeps where a scheduler set the variables."""
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=minutes))))
    except dist.DistError as error:
        raise _missing(
            f"some of the {runtime.world_size()} processes", minutes, str(error).partition("\n")[0].rstrip(".")
        ) from None
    return store


def _missing(who: str, minutes: float, detail: str = "") -> UserError:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return UserError(
        f"{who} did not come within {minutes:g} minutes{f' ({detail})' if detail else ''}. Start the same command on every "
        f"machine (--nnodes, another --node-rank on each), see that each can reach {where} (--master-addr, --master-port, "
        "firewall), or allow more time with --distributed-timeout-minutes"
    )


def _second_connection(store: dist.Store) -> dist.Store:
    """A connection of the watching thread's own, so that it does not wait behind a waiting main thread."""
    return store.clone() if hasattr(store, "clone") else store


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end(error: BaseException, peers: Peers | None) -> NoReturn:
    """End this process after an error, at once: a clean end would wait for the others, who wait for this one."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        _exit(130 if isinstance(error, KeyboardInterrupt) else _status(error.code))
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        error = UserError(tell(error))
    if peers is not None and _is_traffic(error):
        cause = peers.wait_for_cause()
        error = LostPeer(cause) if cause is not None else error
    if isinstance(error, LostPeer):
        time.sleep(_LOOK_SECONDS)  # torchrun takes the first process that it sees end for the cause
    first = peers.claim(_summary(error)) if peers is not None else runtime.local_rank() == 0
    if os.environ.get(REPORTS_FOR_US):
        get_error_handler().record_exception(error)
    else:
        tell_torchrun(_report(error).rstrip())
        sys.stderr.write(_report(error) if first else "")
    _exit(LOST_A_PEER if isinstance(error, LostPeer) else BAD_INPUT if isinstance(error, UserError) else OWN_ERROR)


def _status(code: object) -> int:
    """The exit status of a SystemExit, as Python takes it: a text is printed and means failure."""
    if code is None or isinstance(code, int):
        return int(code or 0)
    sys.stderr.write(f"{code}\n")
    return OWN_ERROR


def _is_traffic(error: BaseException) -> bool:
    """Whether an error may be another process's: a broken connection, or too long a wait."""
    error = _root(error)
    return isinstance(error, dist.DistError | ConnectionError | TimeoutError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _TRAFFIC)
    )


def _root(error: BaseException) -> BaseException:
    """What an error was raised from: torch's pipeline wraps whatever happens in a stage."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _summary(error: BaseException) -> str:
    """One line for the processes of other machines."""
    if isinstance(error, LostPeer):
        return str(error)
    error = _root(error)
    return f"rank {runtime.rank()} failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _report(error: BaseException) -> str:
    """What the user reads."""
    if isinstance(error, UserError | LostPeer):
        return f"tuneval: {error}\n"
    return f"tuneval: rank {runtime.rank()} failed\n{''.join(traceback.format_exception(error))}"


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

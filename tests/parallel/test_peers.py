"""A process that fails: the others end within seconds, and the reason is told once. Real torchrun on gloo."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from tuneval.parallel import peers

WORKER = Path(__file__).parent / "peers_worker.py"


def job(what: str, processes: int = 2) -> tuple[int, str]:
    """Exit status, and what the job printed (torchrun's own account left out)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOGLEVEL": "CRITICAL", "TORCH_CPP_LOG_LEVEL": "FATAL"}
    done = subprocess.run([*command, str(WORKER), what], capture_output=True, text=True, timeout=300, env=environment)
    said = done.stderr.partition("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")[0]
    return done.returncode, done.stdout + said


def test_a_job_that_goes_well_says_nothing():
    status, said = job("well", processes=3)
    assert (status, said) == (0, "")


def test_an_exception_is_told_once_with_its_rank():
    status, said = job("raise", processes=3)
    assert status == 1
    assert said.count("ArithmeticError: weights are odd") == 1
    assert said.startswith("tuneval: rank 1 failed\nTraceback")
    assert "closed by peer" not in said


def test_an_error_of_all_is_told_once():
    status, said = job("all")
    assert status == 1
    assert said.count("tuneval: --lr x: give a number") == 1


def test_a_killed_process_ends_a_job_that_waits_in_no_collective():
    status, killed_at = job("kill", processes=3)
    assert status == 1
    assert time.time() - float(killed_at.split()[0]) < 20, "torchrun alone takes 30 seconds, the others sleep for 60"


def test_a_broken_connection_within_a_stage_is_the_killed_process_fault():
    status, said = job("stage", processes=3)
    assert status == 1
    assert re.search(r"tuneval: rank 1 \(process \d+ on .*\) ended without a word: killed, or out of memory\n", said)
    assert "[Stage 1]" not in said


class Ended(BaseException):
    """In place of the end of this process."""


@pytest.fixture
def end(monkeypatch):
    """The exit status of an error in a process whose peers have failed (`cause`) or not."""

    def leave(status: int) -> NoReturn:
        raise Ended(status)

    def end(error: BaseException, cause: str | None = None) -> int:
        others = SimpleNamespace(wait_for_cause=lambda: cause, claim=lambda summary: True)
        with pytest.raises(Ended) as ended:
            peers._end(error, others)
        return ended.value.args[0]

    monkeypatch.setattr(peers, "_exit", leave)
    monkeypatch.setattr(peers, "_LOOK_SECONDS", 0.0)
    monkeypatch.delenv(peers.REPORTS_FOR_US, raising=False)
    return end


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), TimeoutError("timed out")])
def test_a_broken_connection_is_traffic_not_bad_input(end, capsys, error):
    assert end(error, "rank 1 failed: it is odd") == peers.LOST_A_PEER
    assert capsys.readouterr().err == "tuneval: rank 1 failed: it is odd\n"
    assert end(error) == peers.OWN_ERROR


def test_what_the_operating_system_refuses_is_bad_input(end, capsys):
    assert end(PermissionError(13, "Permission denied", "/x"), "rank 1 failed") == peers.BAD_INPUT
    assert capsys.readouterr().err.startswith("tuneval: /x: Permission denied")


@pytest.mark.parametrize("code, status, said", [("text", 1, "text\n"), (None, 0, ""), (0, 0, ""), (3, 3, "")])
def test_an_exit_keeps_its_status(end, capsys, code, status, said):
    assert (end(SystemExit(code)), capsys.readouterr().err) == (status, said)


@pytest.mark.parametrize(("rank", "detail"), [("0", "1/2 clients joined"), ("1", "timed out")])
def test_a_process_that_never_comes_is_told_with_advice(rank, detail):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    script = "from tuneval.parallel.peers import joined\nwith joined(0.03): pass"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 2
    assert re.search(rf"some of the 2 processes did not come within 0.03 minutes \(.*{detail}", done.stderr)
    assert "--node-rank" in done.stderr and "--distributed-timeout-minutes" in done.stderr

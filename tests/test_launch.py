"""`--nproc-per-node` and `--nnodes` as their user meets them: real processes, two "machines" on this one, kills, refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import tiny_model
from token_files import sample, write

LENGTHS = (5, 9, 3, 7, 12, 4, 6, 8, 11, 10, 4, 13, 30, 2, 9, 21)
TP2, PP2 = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ENDLESS = ("--train-iters", "1000000", "--save-interval", "1000000", "--eval-interval", "1000000")
POSTTRAIN = [str(Path(__file__).parent.parent / "posttrain_gpt.py"), "--finetune", "--stage", "sft"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    tiny_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write(folder / "data", [sample(i, n, prompt=1) for i, n in enumerate(LENGTHS)])
    return folder


def arguments(folder: Path, run: Path, *more: str) -> list[str]:
    paths = ["--load", str(folder / "model"), "--data-path", str(folder / "data"), "--save", str(run)]
    sizes = "--fp32 --lr 1e-3 --global-batch-size 4 --micro-batch-size 1 --split 100,0,0 --train-iters 4"
    return [*paths, *sizes.split(), *more]


def tune(folder: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tuneval", "tune", *arguments(folder, run, *more)]


def machine(number: int, port: int, minutes: float = 1.0) -> list[str]:
    words = f"--nproc-per-node 2 --nnodes 2 --node-rank {number} --master-addr 127.0.0.1 --master-port {port}"
    return [*words.split(), "--distributed-timeout-minutes", str(minutes)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@contextmanager
def started(*commands: list[str]) -> Iterator[list[subprocess.Popen]]:
    pipe = subprocess.PIPE
    jobs = [subprocess.Popen(c, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT) for c in commands]
    try:
        yield jobs
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def ended(jobs: list[subprocess.Popen], seconds: float = 200) -> list[tuple[int, str, str]]:
    """Status, output and errors of each."""
    said = [job.communicate(timeout=seconds) for job in jobs]
    return [(job.returncode, *each) for job, each in zip(jobs, said)]


def run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    return done.returncode, done.stderr


def curve(run_folder: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows]


def check_equal(many: Path, one: Path) -> None:
    assert len(curve(many)) == len(curve(one)) == 4
    for ours, expected in zip(curve(many), curve(one)):
        assert ours == pytest.approx(expected, rel=1e-5)


def wait_for_steps(run_folder: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not (run_folder / "metrics.jsonl").is_file() or not (run_folder / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < end, "no step was made"
        time.sleep(0.2)


def children(job: subprocess.Popen) -> list[int]:
    """Processes that a launcher has started, by rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True, check=True)
    return sorted(map(int, listed.stdout.split()))


@pytest.fixture(scope="module")
def one(folder) -> Path:
    assert run(tune(folder, folder / "one"))[0] == 0
    return folder / "one"


def test_two_machines(folder, one):
    port = free_port()
    with started(*(tune(folder, folder / "two", *machine(n, port), *TP2, *PP2) for n in (1, 0))) as jobs:
        (status1, out1, _), (status0, out0, _) = ended(jobs)
    assert (status0, status1) == (0, 0)
    assert "finished: " in out0 and out1 == ""
    check_equal(folder / "two", one)


def test_a_torchrun_of_the_users_own(folder):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert run([sys.executable, *POSTTRAIN, *arguments(folder, folder / "entry one")])[0] == 0
    assert run([*torchrun, *POSTTRAIN, *arguments(folder, folder / "entry two", *TP2)])[0] == 0
    check_equal(folder / "entry two", folder / "entry one")


def test_every_size_that_does_not_fit_is_told_once_and_at_once(folder):
    sizes = ["--tensor-model-parallel-size", "8", "--pipeline-model-parallel-size", "3", "--nproc-per-node", "2"]
    status, errors = run(tune(folder, folder / "bad", *sizes, "--global-batch-size", "90"))
    assert status == 2 and not (folder / "bad").exists()
    assert errors.count("problems:") == 1 and "loading" not in errors
    for said in (
        "the model has 6 attention heads, so some processes would have none. Choose 6 or fewer",
        "the model has 4 layers, 4 % 3 = 1. Choose 1, 2 or 4, or add --num-layer-list 2,1,1",
        "needs 24 processes or a multiple; there are 2 processes. Start 24, 2 x 24",
        "--global-batch-size 90: the training split has 16 samples",
    ):
        assert errors.count(said) == 1


def test_a_killed_process_ends_the_job_and_is_named(folder):
    with started(tune(folder, folder / "killed", "--nproc-per-node", "2", *PP2, *ENDLESS)) as (job,):
        wait_for_steps(folder / "killed")
        rank_1 = children(job)[1]
        os.kill(rank_1, signal.SIGKILL)
        since = time.monotonic()
        ((status, _, errors),) = ended([job], 60)
    assert time.monotonic() - since < 20
    assert status == 1
    assert f"tuneval tune: rank 1 (process {rank_1}) was killed by SIGKILL (kill -9, or the machine ran out" in errors
    assert "Traceback" not in errors


def test_a_process_killed_on_another_machine_is_named_on_both(folder):
    port = free_port()
    commands = [tune(folder, folder / "lost", *machine(n, port), *TP2, *PP2, *ENDLESS) for n in (0, 1)]
    with started(*commands) as jobs:
        wait_for_steps(folder / "lost")
        rank_2 = children(jobs[1])[0]
        os.kill(rank_2, signal.SIGKILL)
        since = time.monotonic()
        results = ended(jobs, 60)
    assert time.monotonic() - since < 30
    for status, _, errors in results:
        assert status == 1
        assert f"tuneval tune: rank 2 (process {rank_2}" in errors and "Traceback" not in errors


@pytest.mark.parametrize("present", [0, 1])
def test_a_machine_that_never_comes_is_told_with_advice(present, folder):
    since = time.monotonic()
    port = free_port()
    status, errors = run(tune(folder, folder / "alone", *machine(present, port, minutes=0.1), *TP2, *PP2))
    assert time.monotonic() - since < 60
    assert status == 2
    assert re.search(
        r"--nnodes 2: not every machine came in time .*another --node-rank, see that each can reach", errors
    )
    assert f"127.0.0.1:{port} (--master-addr, --master-port, firewall)" in errors
    assert not (folder / "alone").exists()


def test_a_stopped_job_saves_and_goes_on_on_one_process(folder):
    """SIGTERM, as schedulers send it, to the launcher. The rate falls to zero: many steps later nothing has drifted."""
    settings = ("--lr-decay-style", "linear", "--lr-decay-iters", "12", "--min-lr", "0", "--save-interval", "1000000")
    endless = (*settings, *ENDLESS)
    with started(tune(folder, folder / "stopped", "--nproc-per-node", "2", *TP2, *endless)) as (job,):
        wait_for_steps(folder / "stopped")
        job.terminate()
        ((status, output, _),) = ended([job], 60)
    assert status == 143
    step = int(re.search(r"left after step (\d+) of 1000000, its state is saved", output).group(1))
    assert run(tune(folder, folder / "stopped", *settings, "--train-iters", str(step + 3)))[0] == 0
    assert run(tune(folder, folder / "unbroken", *settings, "--train-iters", str(step + 3)))[0] == 0
    assert len(curve(folder / "stopped")) == step + 3
    for ours, expected in zip(curve(folder / "stopped"), curve(folder / "unbroken")):
        assert ours == pytest.approx(expected, rel=1e-5)

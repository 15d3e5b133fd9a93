"""Starts torchrun for a command that asks for several processes, and says in one place how they ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneval.config.schema import LaunchConfig
from tuneval.cores import usable_cores
from tuneval.errors import Problems, UserError

DEFAULT_PORT = 29500
"""Of machine 0 where there are several; torchrun's own."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def is_needed(config: LaunchConfig | None) -> bool:
    """Whether a command must start processes: several are asked for, and this is not one of them."""
    return config is not None and "RANK" not in os.environ and (config.nproc_per_node or 1) * config.nnodes > 1


def check_flags(config: LaunchConfig, problems: Problems) -> None:
    """Add what can't be started anywhere, or contradicts the torchrun that started this process; without torch."""
    nproc, nnodes = config.nproc_per_node, config.nnodes
    problems.check(nproc is None or nproc >= 1, f"--nproc-per-node {nproc}: must be at least 1")
    problems.check(nnodes >= 1, f"--nnodes {nnodes}: must be at least 1")
    problems.check(
        0 <= config.node_rank < nnodes or nnodes < 1,
        f"--node-rank {config.node_rank}: with --nnodes {nnodes} it is from 0 to {nnodes - 1}",
    )
    minutes = config.distributed_timeout_minutes
    problems.check(minutes is None or minutes > 0, f"--distributed-timeout-minutes {minutes}: must be above 0")
    started = _started_here(config)
    problems.check(
        nproc is None or "RANK" not in os.environ or nproc == started,
        f"--nproc-per-node {nproc}: torchrun started {started} processes here; give the same, or leave one of them out",
    )


def check_machine(config: LaunchConfig, problems: Problems) -> None:
    """Add what this machine has too few accelerators for."""
    from tuneval import runtime

    there, wanted = runtime.accelerator_count(), config.nproc_per_node or _started_here(config)
    problems.check(
        there is None or wanted <= there,
        f"--nproc-per-node {wanted}: this machine has {there} accelerators. Give at most {there}",
    )


def _started_here(config: LaunchConfig) -> int:
    """Processes that torchrun started on this machine, or will."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", config.nproc_per_node or 1))


def launch(command: str, arguments: list[str], config: LaunchConfig) -> int:
    """Run `tuneval COMMAND ARGUMENTS` in `nproc_per_node` processes here, under torchrun's agent.

    Returns:
        The exit status: 0 where every process ended well, 2 for bad input, 1 for another failure (what the process
        that failed first has to say is printed once), 143 or 130 where a signal made them save and leave.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    count = config.nproc_per_node or 1
    with tempfile.TemporaryDirectory(prefix="tuneval-") as folder, _surroundings(count):
        agent = _agent_config(config, DefaultLogsSpecs(log_dir=folder))
        try:
            elastic_launch(agent, sys.executable)("-m", "tuneval", command, *arguments)
            return 0
        except ChildFailedError as error:
            return _failed(command, error.failures, count * config.nnodes)
        except SignalException as error:
            return 128 + int(error.sigval)
        except DistError as error:
            raise _missing_machine(config, error) from None


def _agent_config(config: LaunchConfig, logs):
    from torch.distributed.launcher.api import LaunchConfig as AgentConfig

    from tuneval.parallel.peers import MEETING_MINUTES

    several = config.nnodes > 1
    port = config.master_port or (DEFAULT_PORT if several else 0)
    seconds = int(60 * (config.distributed_timeout_minutes or MEETING_MINUTES))
    return AgentConfig(
        min_nodes=config.nnodes,
        max_nodes=config.nnodes,
        nproc_per_node=config.nproc_per_node or 1,
        run_id="tuneval" if several else uuid.uuid4().hex,
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=f"{config.master_addr if several else 'localhost'}:{port}",
        rdzv_configs={"rank": config.node_rank, "timeout": max(seconds, 1)} if several else {},
        local_addr=None if several else "localhost",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=logs,
    )


@contextmanager
def _surroundings(count: int) -> Iterator[None]:
    """What the agent and its processes find in the environment; handlers, logging and variables are put back after.

    torchrun's log lines are left out: what they say of a failure is said once, in `_failed`.
    """
    from tuneval.parallel.peers import REPORTS_FOR_US

    package = str(Path(__file__).parent.parent)
    values = {
        REPORTS_FOR_US: "1",
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // count))),
        # Time to save after SIGTERM; processes of a job that has failed end by themselves (parallel.peers).
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1800"),
    }
    before, handlers, level = dict(os.environ), {s: signal.getsignal(s) for s in _SIGNALS}, logging.root.manager.disable
    os.environ.update(values)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _failed(command: str, failures: dict, world_size: int) -> int:
    """Say once why the job ended, by the process that failed first; the exit status."""
    from tuneval.parallel.peers import BAD_INPUT, LOST_A_PEER

    left = {128 + signal.SIGTERM, 128 + signal.SIGINT}
    if all(f.exitcode in left for f in failures.values()):
        return next(iter(failures.values())).exitcode
    stopped = (LOST_A_PEER, -signal.SIGTERM, *left)
    own = {rank: f for rank, f in failures.items() if f.exitcode not in stopped} or failures
    rank, first = min(own.items(), key=lambda item: (item[1].timestamp, item[1].exitcode < 0))
    message = first.error_file_data["message"]
    if not isinstance(message, dict):
        end = (
            f"was killed by {signal.Signals(-first.exitcode).name}"
            if first.exitcode < 0
            else f"ended with status {first.exitcode}"
        )
        if first.exitcode == -signal.SIGKILL:
            end += " (kill -9, or the machine ran out of memory)"
        text = f"rank {rank} (process {first.pid}) {end}; the others of {world_size} processes were stopped"
    elif first.exitcode in (BAD_INPUT, LOST_A_PEER):
        text = message["message"].partition(": ")[2]
    else:
        text = f"rank {rank} failed; the others of {world_size} processes were stopped\n{message['extraInfo']['py_callstack']}"
    print(f"tuneval {command}: {text.rstrip()}", file=sys.stderr)
    return BAD_INPUT if first.exitcode == BAD_INPUT else 1


def _missing_machine(config: LaunchConfig, error: Exception) -> UserError:
    where = f"{config.master_addr}:{config.master_port or DEFAULT_PORT}"
    detail = str(error).partition("\n")[0].rstrip(".")
    return UserError(
        f"--nnodes {config.nnodes}: not every machine came in time ({detail}). Start the same command on each of them with "
        f"another --node-rank, see that each can reach {where} (--master-addr, --master-port, firewall), or allow more time "
        "with --distributed-timeout-minutes"
    )

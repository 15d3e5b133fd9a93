"""One process of a job, rehearsed: its real part of the model on fake tensors, in a process group that is not there."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PretrainedConfig

from tuneval.config.schema import OptimConfig, OptimStateConfig
from tuneval.cores import usable_cores
from tuneval.data.batches import MicroBatch
from tuneval.errors import UserError
from tuneval.model.build import empty_model
from tuneval.model.lora import LoraSettings
from tuneval.parallel.apply import parallelize
from tuneval.parallel.data import FSDPModule, sharded_modules
from tuneval.parallel.mesh import Layout, Mesh
from tuneval.planning.ledger import Ledger
from tuneval.training.loop import OneProcess
from tuneval.training.optim import make_optimizer

PARAMETERS, OPTIMIZER, GRADIENTS = "parameters", "optimizer", "gradients"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every process is given to do in a step."""

    dtype: torch.dtype
    recompute: str | None
    """As in `Decoder`."""
    lora: LoraSettings | None
    segments: tuple[int, ...]
    """Cumulative bounds of the samples of one micro-batch, 0 ... T tokens; every token is trained."""
    micro_batches: int
    """Of one data-parallel process."""
    optim: OptimStateConfig


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one process held, sent and computed in a step."""

    memory: dict[str, int]
    """Kind -> bytes at the peak: parameters, gradients, optimizer, activations."""
    gradients: int
    """Bytes of the gradients at the end of the step, which need not be the peak."""
    sent_in_passes: dict[tuple[str, str], int]
    """(axis, kind of collective) -> bytes sent during the forward and backward passes of all micro-batches."""
    sent_after: dict[tuple[str, str], int]
    """The same for what follows them, once a step."""
    forward_flops: float
    """Of all micro-batches."""
    backward_flops: float
    trained: int
    """Trained parameters that this process holds."""

    @property
    def peak(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of a job."""

    hf_config: PretrainedConfig
    layout: Layout
    rank: int
    work: Work


class Rehearsals:
    """Rehearses processes side by side, each in a process of its own: torch's caches of meshes end with it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tuneval.runtime", __name__])
        self._side_by_side = min(usable_cores(), 8)

    def run(self, parts: Sequence[Part]) -> list[Account]:
        """The account of each, in order.

        Raises:
            UserError: the model can't be spread so, or a process was killed.
        """
        waiting, accounts = deque(enumerate(parts)), [None] * len(parts)
        running: dict[Connection, tuple[int, BaseProcess]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._side_by_side:
                    number, part = waiting.popleft()
                    receiver, process = self._start(part)
                    running[receiver] = number, process
                for receiver in wait(list(running)):
                    number, process = running[receiver]
                    accounts[number] = self._outcome(receiver, process)
                    del running[receiver]
        finally:
            for _, process in running.values():
                process.kill()
        return accounts

    def _start(self, part: Part) -> tuple[Connection, BaseProcess]:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_rehearse, args=(part, sender), daemon=True)
        process.start()
        sender.close()  # the process alone has it now: where it ends without a word, so does the pipe
        return receiver, process

    def _outcome(self, receiver: Connection, process: BaseProcess) -> Account:
        try:
            outcome = receiver.recv()
        except EOFError:
            process.join()
            raise UserError(
                f"a rehearsal ended with status {process.exitcode}: killed, or out of memory. {self._side_by_side} run side "
                "by side, on as many cores as there are: give fewer (taskset -c 0), or more memory"
            ) from None
        process.join()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _rehearse(part: Part, sender: Connection) -> None:
    """Send the account, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to handle
    try:
        outcome = rehearse(part)
    except UserError as error:
        outcome = error
    except Exception as error:  # torch's may hold what no pipe takes, and its text would be lost
        outcome = RuntimeError(f"{type(error).__name__}: {error}")
    sender.send(outcome)


def rehearse(part: Part) -> Account:
    """Run one training step of one process of a layout, without its memory and without the other processes.

    To be called once in a process.

    Raises:
        UserError: the model can't be spread so.
    """
    logging.disable(logging.WARNING)  # torch tells of its fake backend and of slow kernels; nothing computes here
    warnings.simplefilter("ignore")
    hf_config, layout, work = part.hf_config, part.layout, part.work
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _process_group(part.rank, layout.world_size):
        mesh = Mesh(layout)
        source = _FakeWeights(hf_config, work.dtype, mode)
        runner = parallelize(
            hf_config, source, mesh, work.dtype, torch.device("cpu"), lora=work.lora, recompute=work.recompute
        )
        return _step(runner, mesh, work, mode)


def _step(runner: Any, mesh: Mesh, work: Work, mode: FakeTensorMode) -> Account:
    axes = _axes(mesh)
    ledger = _FakeLedger(lambda name: axes.get(name, "all"))
    several = mesh.grid is not None
    gradients = runner.gradients() if several else None  # outside the mode: it reads the mesh's numbers
    with mode:
        optimizer = make_optimizer(runner.named_parameters(), OptimConfig(**asdict(work.optim)), gradients)
        optimizer.expect(work.micro_batches)
    slots = optimizer.slots.values()
    ledger.hold((p for _, p in runner.named_parameters()), PARAMETERS)
    ledger.hold((t for s in slots for kind, t in s.tensors().items() if kind != "weight"), OPTIMIZER)
    ledger.hold((s.sum for s in slots if s.sum is not None), GRADIENTS)
    for chunk in runner.chunks:
        for module in sharded_modules(chunk):
            module.register_forward_pre_hook(lambda module, _: _name_whole(module, ledger))
    batch = step_batch(work.segments, work.micro_batches)
    with mode, ledger:
        (runner if several else OneProcess(runner.chunks[0])).accumulate(batch, 1.0)
        in_passes = ledger.sent.copy()
        optimizer.reduce_gradients()
        summed = [s.gradient for s in slots if s.gradient is not None]
        ledger.hold(summed, GRADIENTS)
        optimizer.grad_norm()
    account = Account(
        memory=ledger.at_peak(),
        gradients=sum(g.untyped_storage().nbytes() for g in summed),
        sent_in_passes=dict(in_passes),
        sent_after=dict(ledger.sent - in_passes),
        forward_flops=ledger.flops["forward"],
        backward_flops=ledger.flops["backward"],
        trained=sum(s.elements for s in slots),
    )
    optimizer.close()
    return account


def _name_whole(module: FSDPModule, ledger: Ledger) -> None:
    """Name what FSDP keeps in tensors of its own.

    These are the weights, put together for the forward that begins here, and whole gradients, summed over the
    micro-batches so far.
    """
    parameters = list(module.parameters())
    ledger.hold(parameters, PARAMETERS)
    state = module._get_fsdp_state()  # the sums are in no parameter's `grad`, and FSDP has no public way to them
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    sums = [p.unsharded_accumulated_grad for group in groups if group is not None for p in group.fsdp_params]
    ledger.hold((g for g in (*sums, *(p.grad for p in parameters)) if g is not None), GRADIENTS)


def step_batch(segments: tuple[int, ...], micro_batches: int) -> Any:
    """A step's micro-batches, all alike and every token trained, as a runner takes them."""
    return _Batch(tuple(_micro_batch(segments) for _ in range(micro_batches)), micro_batches)


@dataclass(frozen=True)
class _Batch:
    """The part of a `GlobalBatch` that a runner looks at."""

    micro_batches: tuple[MicroBatch, ...]
    most_micro_batches: int


def _micro_batch(segments: tuple[int, ...]) -> MicroBatch:
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(segments)])[None]
    ids = torch.zeros_like(positions)
    return MicroBatch(ids, ids, torch.ones(ids.shape), positions, segments, tuple(range(len(segments) - 1)))


class _FakeWeights:
    """A checkpoint with the shapes of a config and no values.

    Args:
        hf_config: of the model.
        dtype: of every tensor.
        mode: that the tensors belong to.
    """

    def __init__(self, hf_config: PretrainedConfig, dtype: torch.dtype, mode: FakeTensorMode) -> None:
        self._shapes = {name: tuple(t.shape) for name, t in empty_model(hf_config, dtype).state_dict().items()}
        self._dtype, self._mode = dtype, mode

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> torch.Tensor:
        with self._mode:
            return torch.empty(self._shapes[name], dtype=self._dtype)

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        shape = [*self._shapes[name]]
        shape[dim] = stop - start
        with self._mode:
            return torch.empty(shape, dtype=self._dtype)


class _FakeLedger(Ledger):
    """A ledger that answers what a fake tensor can't: its value, and where it is not zero."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0  # a loss, a norm, the flag by which stages agree on shapes: any number but 0 does
        if func is torch.ops.aten.nonzero.default and isinstance(args[0], FakeTensor):
            return super().__torch_dispatch__(torch.ops.aten.unsqueeze.default, (), (torch.arange(args[0].numel()), 1))
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def _process_group(rank: int, world_size: int) -> Iterator[None]:
    """The processes of a job as torch's fake backend has them: collectives return at once and deliver nothing."""
    if world_size == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _axes(mesh: Mesh) -> dict[str, str]:
    """Name of each process group of the mesh -> its axis."""
    if mesh.grid is None:
        return {}
    return {getattr(mesh, axis).get_group().group_name: axis for axis in ("tp", "dp", "pp")}

"""Some steps at every layout, for test_layouts.py: `torchrun ... layout_cases.py FOLDER` writes FOLDER/NAME.pt.

One torchrun of a world size runs all its cases, one after the other.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import tiny_model
from token_files import sample, write
from torch.distributed.tensor import DTensor, Replicate
from torch.utils._python_dispatch import TorchDispatchMode

from tuneval.config.schema import BatchConfig, OptimConfig, PrecisionConfig
from tuneval.data.batches import SftDataset, Share, global_batches, make_global_batch, sample_order
from tuneval.model import loss
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.parallel import apply, gradients, heads, tensor
from tuneval.parallel import data as data_parallel
from tuneval.parallel import weights as weights_module
from tuneval.parallel.apply import ParallelRunner, parallelize
from tuneval.parallel.mesh import Layout, Mesh
from tuneval.parallel.micro_batches import alike
from tuneval.parallel.weights import whole_tensors
from tuneval.training.loop import OneProcess, Progress, Step, train
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import make_optimizer
from tuneval.training.schedule import Schedule

STEPS, FEW, GLOBAL_BATCH = 20, 3, 5
LENGTHS = (5, 9, 3, 7, 12, 4, 6, 8, 11, 10, 4, 13, 30, 2, 9, 21)
MULTIPLE, EXCHANGED = 4, 44
"""Tokens whose exchanges are counted: the 43 of two samples, filled up to a multiple of the processes."""
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1, clip_grad=0.5, lr_decay_style="linear")
WHOLE = (tuple(range(4)),)
HALVES, UNEVEN, QUARTERS = ((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((0,), (1,), (2,), (3,))
UNEVEN_QUARTERS = ((0, 1), (2,), (3, 4), (5,))

MODELS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "12 heads": {"num_attention_heads": 12, "intermediate_size": 42, "vocab_size": 157},  # FFN and vocabulary uneven
    "12 heads on 3": {"num_attention_heads": 12, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "9 heads on 3": {"num_attention_heads": 9, "num_key_value_heads": 3},
    "16 heads": {"num_attention_heads": 16, "vocab_size": 157, "tie_word_embeddings": True},
    "6 layers": {"num_hidden_layers": 6, "tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "tie_word_embeddings": True},
    "llama": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"family": "mistral"},
}
LORAS = {"full": None, "lora": LoraSettings(r=4, alpha=8), "shared": LoraSettings(r=4, alpha=8, shared_a=True)}


@dataclass(frozen=True)
class Case:
    layout: Layout
    model: str = "untied"
    lora: str = "full"
    recompute: str | None = None
    steps: int = STEPS
    broken: str = ""
    """What is done wrong on purpose."""

    @property
    def batch(self) -> BatchConfig:
        """Two or three micro-batches a step, for a pipeline, else one or two: each costs tensor parallelism dozens of exchanges."""
        tokens = 24 if self.layout.pipeline > 1 else 48
        return BatchConfig(global_batch_size=GLOBAL_BATCH, micro_batch_tokens=tokens)

    @property
    def counted(self) -> bool:
        """Whether its exchanges are; torch's counter loses its way in recomputed layers."""
        return self.layout.tensor == self.layout.world_size and not self.recompute


def tp(size: int, layers=WHOLE, **more) -> Layout:
    return Layout(tensor=size, layers=layers, **more)


def dp(size: int, sharding: str = "none", **more) -> Layout:
    return Layout(data=size, layers=WHOLE, sharding=sharding, **more)


def pp(size: int, layers, **more) -> Layout:
    return Layout(pipeline=size, layers=layers, **more)


CASES = {
    "tp2": Case(tp(2), "tied"),
    "tp2 lora": Case(tp(2), lora="lora"),
    "tp2 sp": Case(tp(2, sequence_parallel=True)),
    "tp2 sp lora": Case(tp(2, sequence_parallel=True), "tied", "lora"),
    "dp2": Case(dp(2), "tied"),
    "dp2 lora": Case(dp(2), lora="lora"),
    "pp2": Case(pp(2, HALVES), "tied"),
    "pp2 lora": Case(pp(2, HALVES), lora="lora"),
    "pp2 vpp": Case(pp(2, QUARTERS), "tied"),
    "pp2 vpp lora": Case(pp(2, QUARTERS), lora="lora"),
    "tp4": Case(tp(4), "12 heads"),
    "tp4 lora": Case(tp(4), "12 heads", "lora"),
    "pp4 uneven": Case(pp(4, UNEVEN_QUARTERS), "6 layers"),
    "pp4 uneven lora": Case(pp(4, UNEVEN_QUARTERS), "6 layers", "lora"),
    "pp2 dp2": Case(pp(2, UNEVEN, data=2), "tied"),
    "pp2 dp2 lora": Case(pp(2, UNEVEN, data=2), lora="lora"),
    "tp2 pp2": Case(tp(2, HALVES, pipeline=2), "tied"),
    "tp2 pp2 lora": Case(tp(2, HALVES, pipeline=2), lora="lora"),
    "tp2 dp2": Case(tp(2, data=2), "tied"),
    "tp2 dp2 lora": Case(tp(2, data=2), lora="lora"),
    "tp2 pp2 dp2": Case(tp(2, UNEVEN, pipeline=2, data=2), "tied"),
    "tp2 pp2 dp2 lora": Case(tp(2, UNEVEN, pipeline=2, data=2), lora="lora"),
}
"""Each way to cut a model, with each way to train it."""
OTHERS = {
    "tp2 shared a": Case(tp(2), lora="shared"),
    "tp2 qwen3": Case(tp(2), "qwen3"),
    "tp2 qwen3 sp": Case(tp(2, sequence_parallel=True), "qwen3", "lora"),
    "tp2 llama": Case(tp(2), "llama", recompute="full"),
    "tp2 llama sp": Case(tp(2, sequence_parallel=True), "llama", "lora", recompute="selective"),
    "tp2 mistral": Case(tp(2), "mistral"),
    "dp2 optimizer": Case(dp(2, "optimizer"), "tied"),
    "dp2 optimizer lora": Case(dp(2, "optimizer"), lora="lora"),
    "dp2 full": Case(dp(2, "full"), "tied"),
    "dp2 full lora": Case(dp(2, "full"), lora="lora", recompute="full"),
    "pp2 gpipe": Case(pp(2, UNEVEN, schedule="gpipe")),
    "tp4 uneven heads": Case(tp(4), "12 heads on 3", "shared"),
    "tp4 uneven heads sp": Case(tp(4, sequence_parallel=True), "12 heads on 3"),
    "tp4 of 6 heads sp lora": Case(tp(4, sequence_parallel=True), "tied", "lora"),
    "tp4 of 6 heads qwen3": Case(tp(4), "qwen3", "lora", recompute="full"),
    "tp4 of 9 heads": Case(tp(4), "9 heads on 3"),
    "pp2 dp2 optimizer": Case(pp(2, HALVES, data=2, sharding="optimizer"), "tied"),
    "pp2 dp2 full": Case(pp(2, HALVES, data=2, sharding="full"), "tied", "lora"),
    "tp2 dp2 optimizer": Case(tp(2, data=2, sharding="optimizer"), "tied"),
    "tp2 dp2 full": Case(tp(2, data=2, sharding="full", sequence_parallel=True), "tied"),
    "tp2 dp2 full lora": Case(tp(2, data=2, sharding="full", sequence_parallel=True), lora="lora"),
    "tp8": Case(tp(8), "16 heads"),
    "tp4 of 6 heads dp2 full": Case(tp(4, data=2, sharding="full", sequence_parallel=True), "tied"),
    "tp4 of 6 heads pp2 lora": Case(tp(4, HALVES, pipeline=2), lora="lora"),
    "tp2 pp2 dp2 full": Case(tp(2, HALVES, pipeline=2, data=2, sharding="full", sequence_parallel=True), "tied"),
}
"""Other models, heads that do not divide, sharded state, ways together: the first steps show what goes wrong there."""
BROKEN = {
    "lora A not summed": Case(tp(2), lora="lora", broken="shares not summed"),
    "norm not summed": Case(tp(2, sequence_parallel=True), broken="shares not summed"),
    "hidden not summed": Case(tp(2), broken="hidden gradient not summed"),
    "words": Case(tp(2), broken="words of another process"),
    "slices": Case(tp(2), broken="slices of another process"),
    "copies": Case(tp(2), broken="copies counted"),
    "dp mean": Case(dp(2, "full"), broken="data-parallel mean"),
    "dp not summed": Case(dp(2), broken="no data-parallel sum"),
    "tied ends": Case(pp(2, HALVES), "tied", broken="ends not summed"),
    "heads": Case(tp(4), "12 heads on 3", broken="heads in another order"),
    "ends of heads": Case(tp(4), broken="ends of heads of another process"),
}
"""Each goes wrong in one place, so that a comparison with one process must fail."""
CASES |= {name: replace(case, steps=FEW) for name, case in (OTHERS | BROKEN).items()}


def tiny(name: str):
    changes = dict(MODELS[name])
    return tiny_model(changes.pop("family", "qwen2"), **changes)


class State:
    """The weights of a model as a checkpoint, which notes how much was read of each."""

    def __init__(self, model) -> None:
        self.tensors, self.read_elements = model.state_dict(), {}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self._noted(name, self.tensors[name].clone())

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        return self._noted(name, self.tensors[name].narrow(dim, start, stop - start).clone())

    def _noted(self, name: str, part: torch.Tensor) -> torch.Tensor:
        self.read_elements[name] = part.numel()
        return part


def dataset(prefix: Path) -> SftDataset:
    return write(prefix, [sample(i, n, prompt=1) for i, n in enumerate(LENGTHS)])


def steps(case: Case, runner, data: SftDataset, gradients=None, share: Share | None = None) -> list[Step]:
    optimizer = make_optimizer(runner.named_parameters(), OPTIM, gradients)
    order = sample_order(len(data), STEPS * GLOBAL_BATCH, 1234, True)
    batches = global_batches(data, order, case.batch, 64, share=share or Share())
    scaler = LossScaler(PrecisionConfig(fp32=True))
    schedule = Schedule(OPTIM, STEPS, GLOBAL_BATCH)
    return list(islice(train(runner, batches, optimizer, schedule, scaler, Progress()), case.steps))


def one_process(case: Case, data: SftDataset) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """The steps, and the weights after them."""
    source = tiny(case.model)
    state = source.state_dict()
    model = build_model(source.config, lambda name: state[name].clone(), torch.float32)
    if LORAS[case.lora] is not None:
        add_lora(model, LORAS[case.lora], seed=1)
    decoder = Decoder(model)
    return steps(case, OneProcess(decoder), data), dict(decoder.named_parameters())


def many_processes(case: Case, data: SftDataset) -> dict:
    """What process 0 knows after the steps: the curves, the whole weights, and what it read to start with."""
    with BREAKS[case.broken]() if case.broken else nullcontext():
        mesh, source = Mesh(case.layout), tiny(case.model)
        cpu, state = torch.device("cpu"), State(source)
        runner = parallelize(
            source.config, state, mesh, torch.float32, cpu, LORAS[case.lora], 1, recompute=case.recompute
        )
        stored = {n: p for n, p in runner.named_parameters() if ".lora_" not in n}
        held = sum(local(p).numel() for p in stored.values())
        done = steps(case, runner, data, runner.gradients(), Share(mesh.dp_rank, mesh.layout.data))
        weights = dict(whole_tensors(dict(runner.named_parameters()), mesh))
    return {
        "loss": [s.loss for s in done],
        "grad_norm": [s.grad_norm for s in done],
        "weights": {name: w.clone() for name, w in weights.items() if w is not None},
        "read": sum(state.read_elements.values()),
        "held": held,
        "exchanges": exchanges(runner, data) if case.counted else None,
    }


def exchanges(runner: ParallelRunner, data: SftDataset) -> dict[str, dict[str, tuple[int, int]]]:
    """(number, bytes) of one micro-batch's collectives, forward (to the hidden states) and backward from there, by kind."""
    (decoder,) = runner.chunks
    batch = make_global_batch(data, [11, 12], BatchConfig(), 64)
    (m,) = alike(batch.micro_batches, 1, MULTIPLE)
    assert m.input_ids.numel() == EXCHANGED
    with Exchanges() as forward:
        hidden = decoder(m.input_ids, m.position_ids, m.segments)
    with Exchanges() as backward:
        hidden.sum().backward()
    return {"forward": forward.found(), "backward": backward.found()}


class Exchanges(TorchDispatchMode):
    """Counts collectives, and the bytes that this process hands them, by kind.

    (torch's CommDebugMode counts no bytes; it also tracks modules, and loses its place in ours.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def found(self) -> dict[str, tuple[int, int]]:
        return {name: (number, self.bytes[name]) for name, number in self.numbers.items()}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        name = operation._opname
        if operation.namespace in ("_c10d_functional", "c10d") and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            given = args[1] if name == "alltoall_base_" else args[0]
            self.numbers[name] += 1
            self.bytes[name] += given.numel() * given.element_size()
        return operation(*args, **(kwargs or {}))


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def replaced(owner: object, name: str, make: Callable) -> Callable:
    """A break: the owner's function, wrongly done."""

    @contextmanager
    def broken() -> Iterator[None]:
        right = getattr(owner, name)
        setattr(owner, name, make(right))
        try:
            yield
        finally:
            setattr(owner, name, right)

    return broken


def halved(decoder: Decoder) -> None:
    for module in data_parallel.sharded_modules(decoder):
        module.set_gradient_divide_factor(2.0)


BREAKS = {
    "shares not summed": replaced(
        tensor, "_local", lambda right: lambda p, summed=False, rows=None: right(p, False, rows)
    ),
    "hidden gradient not summed": replaced(tensor, "Partial", lambda right: Replicate),
    "heads in another order": replaced(
        heads.Heads, "order", lambda right: property(lambda self: right.fget(self) and right.fget(self)[::-1])
    ),
    "ends of heads of another process": replaced(
        heads, "_passed_on", lambda right: lambda columns, *rest: right(columns.roll(1, -1), *rest)
    ),
    "words of another process": replaced(
        loss.VocabularyShard,
        "find",
        lambda right: lambda self, target: right(replace(self, first=self.first + 1), target),
    ),
    "slices of another process": replaced(
        weights_module, "local_ranges", lambda right: lambda p: [(a // 2, b - a + a // 2) for a, b in right(p)]
    ),
    "data-parallel mean": replaced(
        apply, "shard", lambda right: lambda decoder, mesh, full: (right(decoder, mesh, full), halved(decoder))
    ),
    "no data-parallel sum": replaced(gradients, "_all_reduce", lambda right: lambda tensors, group: None),
    "ends not summed": replaced(gradients, "_ends_group", lambda right: lambda mesh: None),
    "copies counted": replaced(gradients.Gradients, "_counts", lambda right: lambda self, gradient: True),
}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    data = SftDataset(folder / "data")
    wanted = sys.argv[2].split(",") if len(sys.argv) > 2 else list(CASES)
    for name in wanted:
        if CASES[name].layout.world_size == dist.get_world_size():
            found = many_processes(CASES[name], data)
            if dist.get_rank() == 0:
                torch.save(found, folder / f"{name}.pt")
    dist.destroy_process_group()

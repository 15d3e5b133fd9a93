"""Real processes at every layout against one process: losses and gradient norms of every step, weights, exchanges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel.layout_cases import BROKEN, CASES, EXCHANGED, dataset, one_process, tiny
from parallel.once import once

WORKER = Path(__file__).parent / "layout_cases.py"
SOUND = [name for name in CASES if name not in BROKEN]


class Launched:
    """Runs one torchrun of each world size, once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, dataset(folder / "data")
        self.world = once(self._launch)
        self.alone = once(self._alone)

    def many(self, name: str) -> dict:
        self.world(CASES[name].layout.world_size)
        return torch.load(self.folder / f"{name}.pt")

    def _launch(self, processes: int) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        paths = [str(WORKER.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        subprocess.run([*command, WORKER, self.folder], check=True, timeout=900, env=environment)

    def _alone(self, model: str, lora: str, steps: int) -> tuple:
        case = next(c for c in CASES.values() if (c.model, c.lora, c.steps) == (model, lora, steps))
        return one_process(case, self.data)


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Launched:
    return Launched(tmp_path_factory.mktemp("layouts"))


def marked(names) -> list:
    """Four and eight processes take a while to start."""
    slow = {name for name in names if CASES[name].layout.world_size > 2}
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def check(name: str, launched: Launched) -> None:
    case, many = CASES[name], launched.many(name)
    steps, weights = launched.alone(case.model, case.lora, case.steps)
    assert many["loss"] == pytest.approx([s.loss for s in steps], rel=1e-5)
    assert many["grad_norm"] == pytest.approx([s.grad_norm for s in steps], rel=1e-5)
    assert many["weights"].keys() == weights.keys()
    for parameter, expected in weights.items():
        torch.testing.assert_close(many["weights"][parameter], expected.detach(), rtol=1e-3, atol=1e-4, msg=parameter)


@pytest.mark.parametrize("name", marked(SOUND))
def test_every_step_equals_one_process(name, launched):
    check(name, launched)


@pytest.mark.parametrize("name", marked(BROKEN))
def test_the_comparison_fails_on_a_broken_placement(name, launched):
    with pytest.raises(AssertionError):
        check(name, launched)


@pytest.mark.parametrize("name", marked(SOUND))
def test_a_process_reads_only_what_it_holds(name, launched):
    many, layout = launched.many(name), CASES[name].layout
    assert many["held"] <= many["read"]
    if layout.tensor > 1 and layout.sharding != "none":  # row layers are cut both ways, and read by rows
        assert many["read"] < (1 + 0.15 * layout.tensor) * many["held"]
    else:
        assert many["read"] == many["held"]


LAYERS, FP32 = 4, 4


@pytest.mark.parametrize("name", marked(n for n in SOUND if CASES[n].counted))
def test_two_exchanges_a_layer_and_direction(name, launched):
    """Megatron's: where blocks end, forward; where they begin, backward. One more for the embedding and the head.

    Each hands over the hidden states once, no byte more. Where heads do not divide, two more pass on their ends: before
    attention and after it.
    """
    case, found = CASES[name], launched.many(name)["exchanges"]
    config, processes = tiny(case.model).config, case.layout.tensor
    hidden = EXCHANGED * config.hidden_size * FP32
    into = 2 * LAYERS + 1 - (case.lora != "full")  # nothing before the first adapter wants a gradient
    out_again = 2 * LAYERS if case.lora != "full" else 2 * LAYERS + 1
    if case.layout.sequence_parallel:
        forward = {"all_gather_into_tensor": 2 * LAYERS + 1, "reduce_scatter_tensor": 2 * LAYERS + 1}
        backward = {"all_gather_into_tensor": out_again, "reduce_scatter_tensor": into}
    else:
        forward, backward = {"all_reduce": 2 * LAYERS + 1}, {"all_reduce": into}
    ends = config.num_attention_heads % processes != 0
    for direction, expected in (("forward", forward), ("backward", backward)):
        passed_on = found[direction].pop("alltoall_base_", (0, 0))
        assert passed_on[0] == (2 * LAYERS if ends else 0) and passed_on[1] < 2 * LAYERS * hidden
        each = {"all_reduce": hidden, "reduce_scatter_tensor": hidden, "all_gather_into_tensor": hidden // processes}
        assert found[direction] == {kind: (number, number * each[kind]) for kind, number in expected.items()}

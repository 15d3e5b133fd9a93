"""Pipelines of two and four real processes against one process: gradients, losses, actions, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel.pipeline_cases import CASES, STEPS, decoder_of, loss, steps

from tuneval.parallel.micro_batches import needed
from tuneval.parallel.schedules import orders, timetable

WORKER = Path(__file__).parent / "pipeline_cases.py"
SOUND = [name for name, case in CASES.items() if not case.broken]
BROKEN = [name for name, case in CASES.items() if case.broken]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict]:
    """What each of the four processes saw, by case."""
    folder = tmp_path_factory.mktemp("pipeline")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", WORKER, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parent.parent)}
    subprocess.run(command, check=True, timeout=900, env=environment)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[tuple[dict, float]]]:
    """Gradients and loss of every step on one process, by case."""
    results = {}
    for name, case in CASES.items():
        results[name] = []
        for micro_batches in steps():
            decoder = decoder_of(case)
            total = sum(loss(decoder, decoder(m.input_ids, m.position_ids, m.segments), m) for m in micro_batches)
            (total * case.scale).backward()
            gradients = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
            results[name].append((gradients, total.item()))
    return results


def check(name: str, seen: list[dict], alone: dict) -> None:
    for step, (gradients, total) in enumerate(alone[name]):
        for copy in range(4 // CASES[name].stages):
            stages = [process[name] for process in seen if process[name]["mesh"][1] == copy]
            summed: dict[str, torch.Tensor] = {}
            for stage in stages:
                for parameter, value in stage["grads"][step].items():
                    summed[parameter] = summed[parameter] + value if parameter in summed else value
            assert summed.keys() == gradients.keys()
            for parameter, expected in gradients.items():
                tolerance = 1e-5 * float(expected.abs().max())
                torch.testing.assert_close(summed[parameter], expected, rtol=0, atol=tolerance, msg=parameter)
            for losses in (stages[-1]["losses"][step], stages[-1]["evaluated"][step]):
                assert sum(losses) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", SOUND)
def test_gradients_and_losses_equal_one_process(name, seen, alone):
    check(name, seen, alone)


@pytest.mark.parametrize("name", BROKEN)
def test_the_comparison_fails_on_a_broken_pipeline(name, seen, alone):
    with pytest.raises(AssertionError):
        check(name, seen, alone)


def test_a_tied_embedding_gets_a_gradient_at_both_ends(seen, alone):
    tied = "model.embed_tokens.weight"
    ends = [process["two stages"]["grads"][0][tied] for process in seen[::2]]
    for end in ends:
        assert not torch.allclose(end, alone["two stages"][0][0][tied], rtol=1e-2)


@pytest.mark.parametrize("name", SOUND)
def test_torch_takes_the_actions_that_the_timetable_plans(name, seen):
    layout = CASES[name].layout
    for step, micro_batches in enumerate(STEPS):
        plan = orders(layout, needed(len(micro_batches), layout))
        for process in seen:
            assert process[name]["actions"][step] == plan[process[name]["mesh"][0]]


@pytest.mark.parametrize("name", SOUND)
def test_memory_for_transfers_does_not_grow_with_the_micro_batches(name, seen):
    """A stage holds no more than it could not do without: one to come and one to go for what is in flight."""
    case = CASES[name]
    flight = timetable(case.layout, needed(len(STEPS[2]), case.layout)).in_flight
    for process in seen:
        stage = process[name]["mesh"][0]
        limit = 2 if len(case.layers) == case.stages else flight[stage]
        assert max(process[name]["buffers"]) <= limit

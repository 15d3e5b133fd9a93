"""A run that was cut off goes on at any layout: its curve is that of a run nobody cut, bit for bit at the same layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from parallel.once import once
from parallel.resume_cases import CASES, CUT, STEPS, continued, cut, unbroken, words
from safetensors.torch import load_file
from token_files import sample, write

from tuneval import cli
from tuneval.checkpoints import resume

WORKER = Path(__file__).parent / "resume_cases.py"
LENGTHS = (5, 9, 3, 7, 12, 4, 6, 8, 11, 10, 4, 13, 30, 2, 9, 21, 17, 3, 8, 6)

pytestmark = pytest.mark.slow


class Runs:
    """Makes every run once."""

    def __init__(self, folder: Path, tokenizer) -> None:
        self.folder = folder
        model = tiny_model(tie_word_embeddings=True)  # TP 4: more processes than KV heads, heads and a half on each
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        tiny_model(hidden_size=128, intermediate_size=256).save_pretrained(
            folder / "wide"
        )  # blocks of 64 on each of two
        tokenizer.save_pretrained(folder / "wide")
        write(folder / "data", [sample(i, n, prompt=1) for i, n in enumerate(LENGTHS)])
        self.alone = once(self._alone)
        self.four = once(self._four)
        self.on_one = once(self._on_one)

    def unbroken(self, kind: str, layout: str) -> Path:
        self.alone(kind) if layout == "one" else self.four()
        return unbroken(self.folder, kind, layout)

    def continued(self, kind: str, before: str, after: str) -> Path:
        self.on_one(kind, before) if after == "one" else self.four()
        return continued(self.folder, kind, before, after)

    def broken(self, name: str, monkeypatch, break_it) -> Path:
        """A run of four processes that goes on on one, wrongly."""
        copy = self.folder / name
        cut(self.unbroken("full", "tp2 pp2"), copy)
        right = resume.load_state

        def load_state(run, step, tensors):
            facts = right(run, step, tensors)
            break_it(facts, tensors)
            return facts

        monkeypatch.setattr(resume, "load_state", load_state)
        assert cli.run("tune", words(self.folder, "full", "one", copy)) == 0
        return copy

    def _alone(self, kind: str) -> None:
        assert cli.run("tune", words(self.folder, kind, "one", unbroken(self.folder, kind, "one"))) == 0

    def _four(self) -> None:
        for kind in ("full", "lora"):
            self.alone(kind)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parent.parent)}
        subprocess.run([*command, WORKER, self.folder], check=True, timeout=900, env=environment)

    def _on_one(self, kind: str, before: str) -> None:
        copy = continued(self.folder, kind, before, "one")
        cut(self.unbroken(kind, before), copy)
        assert cli.run("tune", words(self.folder, kind, "one", copy)) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer) -> Runs:
    return Runs(tmp_path_factory.mktemp("resume"), tokenizer)


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def column(run: Path, name: str) -> list[float]:
    return [row[name] for row in rows(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = [*run.glob("model/*.safetensors"), *run.glob("adapter/*.safetensors")]
    return load_file(file)


def check(run: Path, reference: Path) -> None:
    """Against a run that nobody cut, on one process."""
    assert column(run, "step") == list(range(1, STEPS + 1))
    for name in ("lr", "samples", "trained_tokens"):
        assert column(run, name) == column(reference, name)
    for name in ("loss", "grad_norm"):
        assert column(run, name) == pytest.approx(column(reference, name), rel=1e-5)
    assert rows(run, "validation.jsonl")[-1]["loss"] == pytest.approx(
        rows(reference, "validation.jsonl")[-1]["loss"], rel=1e-5
    )


def named(cases) -> list:
    return [pytest.param(*case, id="{}: {} then {}".format(*case)) for case in cases]


@pytest.mark.parametrize(("kind", "before", "after"), named(c for c in CASES if c[0] in ("full", "lora")))
def test_the_curve_is_that_of_an_unbroken_run(kind, before, after, runs):
    run, reference = runs.continued(kind, before, after), runs.unbroken(kind, "one")
    check(run, reference)
    for name, expected in weights(reference).items():
        torch.testing.assert_close(weights(run)[name], expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("kind", "before", "after"), named(c for c in CASES if c[1] == c[2]))
def test_the_same_layout_goes_on_bit_for_bit(kind, before, after, runs):
    run, reference = runs.continued(kind, before, after), runs.unbroken(kind, before)
    assert f"at iteration {CUT}\n" in (run / "log.txt").read_text()
    for name in ("loss", "grad_norm", "lr", "samples", "tokens"):
        assert column(run, name) == column(reference, name)
    expected = weights(reference)
    assert weights(run).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run).items())


@pytest.mark.parametrize(("kind", "before", "after"), named(c for c in CASES if c[0] == "lean" and c[1] != c[2]))
def test_moments_of_8_bits_are_taken_over_at_another_layout(kind, before, after, runs):
    """Not in fp32's digits: bf16 rounds otherwise where products are cut otherwise."""
    run, reference = runs.continued(kind, before, after), runs.unbroken(kind, before)
    assert f"at iteration {CUT}\n" in (run / "log.txt").read_text()
    assert column(run, "loss")[:CUT] == column(reference, "loss")[:CUT]
    assert column(run, "loss") == pytest.approx(column(reference, "loss"), rel=0.02)


def forget_moments(facts: dict, tensors: dict) -> None:
    for name, tensor in tensors.items():
        if name.startswith("exp_avg"):
            tensor.zero_()


def forget_place(facts: dict, tensors: dict) -> None:
    facts["progress"]["samples"] -= 5


def forget_schedule(facts: dict, tensors: dict) -> None:
    facts["progress"]["scheduled_samples"] = 0


def forget_steps(facts: dict, tensors: dict) -> None:
    facts["adam_step"] = 0


@pytest.mark.parametrize("break_it", [forget_moments, forget_place, forget_schedule, forget_steps])
def test_the_comparison_fails_where_something_is_forgotten(break_it, runs, monkeypatch):
    run = runs.broken(break_it.__name__, monkeypatch, break_it)
    with pytest.raises(AssertionError):
        check(run, runs.unbroken("full", "one"))

"""Memory that `tuneval plan` predicts, against the measured peak of four real processes on the CPU.

    python benchmarks/plan_memory.py [--dtype fp32] [--only LAYOUT] [--heap] [--output FILE.json]

Every layout: torchrun starts four processes, each makes its part of a model with random weights (8 layers, hidden 1024, FFN 2816,
16 heads, 4 KV heads, vocabulary 32,000) and trains two steps. Measured is what the resident memory of each process grew
by from just before the model to its highest (`VmRSS` before, `VmHWM` after, of /proc/self/status); predicted is the peak
of the same process rehearsed on fake tensors. Python, torch and its start are thus on neither side.

glibc's malloc keeps freed memory in holes that no later tensor fits, so resident memory is more than what is in use,
by as much as the allocator's settings say. Each layout is measured with every tensor on pages of its own
(`MALLOC_MMAP_THRESHOLD_=65536`: what is in use), which is what a plan predicts; with `--heap` also as `tune` sets malloc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import Qwen2Config

from tuneval import runtime
from tuneval.config.schema import OptimConfig, ParallelConfig
from tuneval.errors import Problems
from tuneval.model.build import empty_model
from tuneval.model.lora import LoraSettings
from tuneval.parallel.mesh import Layout, Mesh, make_layout
from tuneval.planning.estimate import Job, estimate
from tuneval.planning.rehearsal import Rehearsals, step_batch

LAYOUTS: dict[str, dict] = {
    "TP 4": {"tensor_model_parallel_size": 4},
    "TP 4 with SP": {"tensor_model_parallel_size": 4, "sequence_parallel": True},
    "PP 4": {"pipeline_model_parallel_size": 4},
    "PP 4 uneven": {"pipeline_model_parallel_size": 4, "num_layer_list": "3,2,2,1"},
    "PP 2 interleaved x TP 2": {
        "pipeline_model_parallel_size": 2,
        "num_layers_per_virtual_pipeline_stage": 2,
        "tensor_model_parallel_size": 2,
    },
    "TP 2 x PP 2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "TP 2 x DP 2": {"tensor_model_parallel_size": 2},
    "DP 4, optimizer sharded": {"data_parallel_sharding": "optimizer"},
    "DP 4, fully sharded": {"data_parallel_sharding": "full"},
    "TP 4, full recompute": {"tensor_model_parallel_size": 4, "recompute": "full"},
    "PP 4, LoRA": {"pipeline_model_parallel_size": 4, "lora": True},
    "TP 4, LoRA": {"tensor_model_parallel_size": 4, "lora": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", help="one layout's name")
    parser.add_argument("--heap", action="store_true", help="measure with tune's settings of malloc, too")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("LAYOUT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), options)
        return
    rows = []
    for name in [options.only] if options.only else LAYOUTS:
        measured, predicted = measure(name, options, pages=True), predict(name, options)
        worst = max(range(4), key=lambda rank: abs(predicted[rank] / measured[rank] - 1))
        rows.append({"layout": name, "measured": measured, "predicted": predicted})
        error = max(predicted) / max(measured) - 1
        text = (
            f"{name:24} largest of four: measured {max(measured) / 2**20:5.0f} MiB, predicted {max(predicted) / 2**20:5.0f} "
            f"({100 * error:+.1f}%; furthest off {100 * (predicted[worst] / measured[worst] - 1):+.1f}%)"
        )
        if options.heap:
            rows[-1]["heap"] = measure(name, options, pages=False)
            text += f", heap {max(rows[-1]['heap']) / 2**20:5.0f}"
        print(text, flush=True)
    if options.output:
        options.output.write_text(json.dumps({"dtype": options.dtype, "rows": rows}, indent=1))


def job_of(name: str, options: argparse.Namespace) -> tuple[Job, Layout]:
    flags = dict(LAYOUTS[name])
    recompute, lora = flags.pop("recompute", None), flags.pop("lora", False)
    config = Qwen2Config(
        hidden_size=1024,
        num_hidden_layers=8,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32000,
        tie_word_embeddings=False,
    )
    job = Job(
        hf_config=config,
        dtype=runtime.DTYPES[options.dtype],
        lora=LoraSettings(16, 32.0) if lora else None,
        recompute=recompute,
        global_batch_size=12,
        sample_tokens=256,
        mean_tokens=256.0,
        micro_batch_tokens=512,
    )
    problems = Problems()
    layout = make_layout(ParallelConfig(**flags), config, 4, problems, job.global_batch_size)
    problems.raise_if_any()
    return job, layout


def predict(name: str, options: argparse.Namespace) -> list[int]:
    """Peak of each process, bytes: processes of a stage are alike."""
    job, layout = job_of(name, options)
    stages = estimate(job, layout, Rehearsals()).stages
    return [stages[rank // (layout.tensor * layout.data)].peak for rank in range(4)]


def measure(name: str, options: argparse.Namespace, pages: bool) -> list[int]:
    """Growth of each process's resident memory, bytes."""
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"} if pages else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", __file__]
        command += ["--dtype", options.dtype, "--worker", name, folder]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **malloc})
        return [int((Path(folder) / str(rank)).read_text()) for rank in range(4)]


def work(name: str, folder: Path, options: argparse.Namespace) -> None:
    """One of the four processes."""
    from tuneval.parallel.apply import parallelize
    from tuneval.parallel.peers import joined
    from tuneval.training.optim import make_optimizer

    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        runtime.prepare()
    job, layout = job_of(name, options)
    with joined(None):
        mesh = Mesh(layout)
        weights = RandomWeights(job)
        warm_up()
        before = memory("VmRSS")
        runner = parallelize(
            job.hf_config, weights, mesh, job.dtype, torch.device("cpu"), lora=job.lora, recompute=job.recompute
        )
        optimizer = make_optimizer(runner.named_parameters(), OptimConfig(), runner.gradients())
        batch = step_batch(job.segments, job.micro_batches(layout))
        optimizer.expect(len(batch.micro_batches))
        for _ in range(2):
            runner.accumulate(batch, 1.0)
            optimizer.reduce_gradients()
            optimizer.step(1e-4, optimizer.grad_norm())
        (folder / str(runtime.rank())).write_text(str(memory("VmHWM") - before))


class RandomWeights:
    """A checkpoint with the shapes of a config."""

    def __init__(self, job: Job) -> None:
        state = empty_model(job.hf_config, job.dtype).state_dict()
        self.shapes, self.dtype = {name: tuple(t.shape) for name, t in state.items()}, job.dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str) -> torch.Tensor:
        return torch.empty(self.shapes[name], dtype=self.dtype).normal_(0, 0.02)

    def read_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        shape = [*self.shapes[name]]
        shape[dim] = stop - start
        return torch.empty(shape, dtype=self.dtype).normal_(0, 0.02)


def warm_up() -> None:
    """Let libraries take what they take at their first use."""
    x = torch.ones(64, 64, requires_grad=True)
    (x @ x).softmax(-1).sum().backward()
    torch.distributed.all_reduce(torch.ones(1))


def memory(field: str) -> int:
    """A field of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


if __name__ == "__main__":
    main()

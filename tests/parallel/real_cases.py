"""Ten steps of LoRA on a real model, for test_real.py: `[torchrun ...] real_cases.py MODEL DATA OUT DTYPES [TP PP]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tuneval import runtime
from tuneval.checkpoints.hf import HfSource
from tuneval.config.schema import BatchConfig, OptimConfig, ParallelConfig, PrecisionConfig
from tuneval.data.batches import SftDataset, global_batches, sample_order
from tuneval.errors import Problems
from tuneval.model.build import build_model
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.parallel.apply import parallelize
from tuneval.parallel.mesh import Mesh, make_layout
from tuneval.training.loop import OneProcess, Progress, train
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import make_optimizer
from tuneval.training.schedule import Schedule

STEPS, GLOBAL_BATCH, SEQ_LENGTH = 10, 2, 64
LORA, OPTIM = LoraSettings(r=8, alpha=16), OptimConfig(lr=1e-4)


def curve(source: HfSource, data: SftDataset, dtype: torch.dtype, layout: list[int]) -> dict[str, list[float]]:
    """Losses and gradient norms, on one process or on this one's part of a layout."""
    cpu, gradients = torch.device("cpu"), None
    if layout:
        sizes = ParallelConfig(tensor_model_parallel_size=layout[0], pipeline_model_parallel_size=layout[1])
        problems = Problems()
        made = make_layout(sizes, source.config, dist.get_world_size(), problems)
        problems.raise_if_any()
        runner = parallelize(source.config, source, Mesh(made), dtype, cpu, LORA, seed=1)
        gradients = runner.gradients()
    else:
        runner = OneProcess(Decoder(add_lora(build_model(source.config, source.read, dtype), LORA, seed=1)))
    optimizer = make_optimizer(runner.named_parameters(), OPTIM, gradients)
    order = sample_order(len(data), STEPS * GLOBAL_BATCH, 1234, True)
    batches = global_batches(data, order, BatchConfig(global_batch_size=GLOBAL_BATCH), SEQ_LENGTH)
    scaler = LossScaler(PrecisionConfig(fp32=dtype == torch.float32))
    done = list(train(runner, batches, optimizer, Schedule(OPTIM, STEPS, GLOBAL_BATCH), scaler, Progress()))
    return {"loss": [s.loss for s in done], "grad_norm": [s.grad_norm for s in done]}


if __name__ == "__main__":
    model, prefix, out, dtypes, *layout = sys.argv[1:]
    runtime.prepare()
    if layout:
        dist.init_process_group("gloo")
    source, data, sizes = HfSource(Path(model)), SftDataset(prefix), [int(n) for n in layout]
    found = {dtype: curve(source, data, runtime.DTYPES[dtype], sizes) for dtype in dtypes.split(",")}
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(found))

"""Where the time of a training step goes: shares of its kernels, by torch's profiler.

    python benchmarks/step_profile.py MODEL DATA_PREFIX [--method lora|full] [--dtype bf16|fp32] [--output JSON]

One step of 16 samples after one that warms up. The profiler itself costs a few percent; shares, not seconds, are what to read.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch
from sft_speed import LEARNING_RATE, SAMPLES, SEED, SEQ_LENGTH
from side_by_side import config_of, random_model, setting, write
from torch.profiler import profile

from tuneval import runtime
from tuneval.checkpoints.load import load_model
from tuneval.config.schema import BatchConfig, OptimConfig, PrecisionConfig
from tuneval.data.batches import SftDataset, global_batches, sample_order
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.training.loop import OneProcess, Progress, train
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import make_optimizer
from tuneval.training.schedule import Schedule

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--method", choices=tuple(LEARNING_RATE), default="lora")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of the step")
    parser.add_argument("--micro-batch-tokens", type=int, default=BatchConfig.micro_batch_tokens)
    parser.add_argument("--random-weights", action="store_true", help="MODEL needs its config.json alone")
    parser.add_argument("--compiled", action="store_true", help="with --torch-compile on")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    runtime.prepare()
    if options.random_weights:
        model = random_model(config_of(options.model, False), runtime.DTYPES[options.dtype])
    else:
        model = load_model(options.model, options.dtype).model
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    if options.method == "lora":
        add_lora(model, LoraSettings(r=8, alpha=16), SEED)
    steps = step_by_step(options, Decoder(model, compile=options.compiled))
    next(steps)
    on_cpu = runtime.device().type == "cpu"
    with profile(record_shapes=True) as recorded:  # of the CPU, and of an accelerator where there is one
        step = next(steps)
    spent: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for event in recorded.key_averages(group_by_input_shape=True):
        microseconds = event.self_cpu_time_total if on_cpu else event.self_device_time_total
        spent[group(event.key, event.input_shapes, shapes, model.config)] += microseconds
        kernels[event.key] += microseconds
    total = sum(spent.values())
    report = {
        "work": f"{options.method} tuning, {options.dtype}, one step of {step.tokens} tokens, {step.trained_tokens} trained",
        "share": {name: round(value / total, 3) for name, value in spent.most_common()},
        "largest": {name: round(value / total, 3) for name, value in kernels.most_common(20)},
        "seconds of the step": round(step.seconds, 3),
        **({} if on_cpu else {"seconds the device was busy": round(total / 1e6, 3)}),
        **setting(),
    }
    write(report, options.output)


def step_by_step(options: argparse.Namespace, decoder: Decoder):
    optim = OptimConfig(lr=LEARNING_RATE[options.method], lr_decay_style="constant")
    dataset = SftDataset(options.data)
    batch = BatchConfig(global_batch_size=options.samples, train_iters=2, micro_batch_tokens=options.micro_batch_tokens)
    order = sample_order(len(dataset), 2 * options.samples, SEED, shuffle=True)
    batches = global_batches(dataset, order, batch, SEQ_LENGTH)
    optimizer = make_optimizer(decoder.named_parameters(), optim)
    scaler = LossScaler(PrecisionConfig(fp32=options.dtype == "fp32"))
    return train(OneProcess(decoder), batches, optimizer, Schedule(optim, 2, options.samples), scaler, Progress())


def group(kernel: str, inputs: list[list[int]], weights: set[tuple[int, ...]], config) -> str:
    """What a kernel works for, by its name and the shapes it is given."""
    sizes = [tuple(shape) for shape in inputs if shape]
    flat = {size for shape in sizes for size in shape}
    if kernel in PRODUCTS:
        of_model = any(shape in weights or shape[::-1] in weights for shape in sizes)
        makes_one = len(sizes) > 1 and (sizes[-2][0], sizes[-1][-1]) in weights | {w[::-1] for w in weights}
        return "products with the model's matrices" if of_model or makes_one else "products with the adapters'"
    if kernel in ("aten::bmm", "aten::_softmax") or "Attention" in kernel:
        return "attention"
    if "adamw" in kernel:
        return "optimizer"
    if config.vocab_size in flat:
        return "softmax over the vocabulary"
    if config.intermediate_size in flat:
        return "activation and gate"
    return "norms, sums, rotary embedding, everything else"


if __name__ == "__main__":
    main()

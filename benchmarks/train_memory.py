"""Peak memory of training: LoRA, full and full with 8-bit moments of a real model, LoRA of a 7B shape with random weights.

    python benchmarks/train_memory.py MODEL DATA_PREFIX [--seven-billion] [--micro-batch-tokens 1024] [--compiled] [--output JSON]

Each row is a process of its own with three steps of 32 samples, several micro-batches, in bf16. On a CPU two figures: the peak of all resident memory, which
also counts pages of mapped weight files that the system may drop at any time, and the peak of `RssAnon`, which nothing
but the process can give back. `--seven-billion` adds Qwen2.5-7B's shape: 15 GB of weights, minutes on a CPU; its samples are cut
to 256 tokens of the model's vocabulary.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch
from convert_memory import rss_anon
from side_by_side import alternate, config_of, random_model, setting, write

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

STEPS, SAMPLES, SEED = 3, 32, 42


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--seven-billion", action="store_true")
    parser.add_argument("--micro-batch-tokens", type=int, default=1024)
    parser.add_argument("--compiled", action="store_true", help="as long runs are: --torch-compile on")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(WORK), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        runtime.prepare()
        print(json.dumps(run(options)))
        return
    common = [__file__, options.model, options.data, "--micro-batch-tokens", options.micro_batch_tokens]
    common += ["--compiled"] if options.compiled else []
    work = [name for name in WORK if options.seven_billion or name != "lora 7B"]
    runs = alternate({name: (*common, "--run", name) for name in work}, 1)
    report = {
        "work": f"{STEPS} steps of {SAMPLES} samples, bf16, micro-batches of {options.micro_batch_tokens} tokens",
        **{name: rows[0] for name, rows in runs.items()},
        **setting(),
    }
    write(report, options.output)


def run(options: argparse.Namespace) -> dict:
    lora, large = options.run.startswith("lora"), options.run == "lora 7B"
    if large:
        model = random_model(config_of(options.model, True), torch.bfloat16)
    else:
        model = load_model(options.model, "bf16").model
    if lora:
        add_lora(model, LoraSettings(r=8, alpha=16), SEED)
    settings = dict(WORK[options.run])
    decoder = Decoder(model, settings.pop("recompute", None), options.compiled)
    optim = OptimConfig(lr=1e-5, lr_decay_style="constant", **settings)
    batch = BatchConfig(
        global_batch_size=SAMPLES, train_iters=STEPS, micro_batch_tokens=256 if large else options.micro_batch_tokens
    )
    dataset = SftDataset(options.data)
    order = sample_order(len(dataset), STEPS * SAMPLES, SEED, shuffle=True)
    batches = global_batches(dataset, order, batch, 256 if large else 1024)
    optimizer = make_optimizer(decoder.named_parameters(), optim)
    with Anonymous() as anonymous:
        scaler = LossScaler(PrecisionConfig(bf16=True))
        steps = list(
            train(OneProcess(decoder), batches, optimizer, Schedule(optim, STEPS, SAMPLES), scaler, Progress())
        )
    return {
        "peak GB": round(runtime.peak_memory_bytes() / 1e9, 2),
        "peak anonymous GB": round(anonymous.peak / 1e9, 2),
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "trained": sum(p.numel() for p in decoder.parameters() if p.requires_grad),
        "seconds a step": round(sum(s.seconds for s in steps[1:]) / len(steps[1:]), 1),
        "losses": [round(s.loss, 4) for s in steps],
    }


class Anonymous:
    """Watches this process's anonymous memory from a thread."""

    def __enter__(self) -> Anonymous:
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        pid = int(Path("/proc/self").resolve().name)
        while not self._done.is_set():
            self.peak = max(self.peak, rss_anon(pid))
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


WORK = {
    "lora": {},
    "full": {},
    "full, sums in bf16, layers recomputed": {"main_grads_dtype": "bf16", "recompute": "full"},
    "full, adam8bit": {"optimizer": "adam8bit"},
    "full, adam8bit, layers recomputed": {"optimizer": "adam8bit", "recompute": "full"},
    "lora 7B": {},
}
"""Row -> settings of the optimizer, and what is recomputed."""

if __name__ == "__main__":
    main()

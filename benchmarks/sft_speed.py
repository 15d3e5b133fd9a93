"""LoRA and full tuning beside transformers' Trainer (with peft), on the same samples: useful tokens/s and peak memory.

    python benchmarks/sft_speed.py MODEL DATA_PREFIX [--method lora|full] [--dtype bf16|fp32] [--rounds 3] [--steps 3]
        [--warm-up 2] [--samples 16] [--micro-batch-tokens N] [--trainer-batch 4] [--engines NAME ...]
        [--random-weights] [--seven-billion] [--device-tflops N]

DATA_PREFIX is what `tuneval preprocess` wrote. Engines take turns, each in a new process:

    tuneval           as `tuneval tune` runs for a few steps without further flags
    tuneval-compiled  with --torch-compile on, as it does for many
    tuneval-no-flash  an accelerator's without flash attention: a call for each sample
    trainer           transformers.Trainer, batches padded to the longest, gradient checkpointing (its users' default)
    trainer-packed    the same, each batch in one row (DataCollatorWithFlattening)
    trainer-fp32      as trainer, in fp32 whatever --dtype says: the trainer's way on a processor without a unit for bf16
    trainer-packed-fp32
    trainer-mixed     as trainer, with fp32 weights and bf16 autocast (--bf16): full tuning with the state that tuneval keeps

A step is 16 samples, at most 1024 tokens each. Useful tokens are those of the samples, padding not counted. The first two
steps of each process are left out of the time; `--warm-up 0` times them, too, for engines whose step takes minutes. The
limit is the time of the model's own matrix products, measured in this call. `--random-weights` needs the folder's
config.json and tokenizer alone, `--seven-billion` takes the shape of Qwen2.5-7B instead: for speed, any weights will do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from side_by_side import alternate, config_of, flop_per_token, gemm_limit, medians, random_model, setting, write

from tuneval import runtime
from tuneval.checkpoints.load import load_model
from tuneval.config.schema import BatchConfig, OptimConfig, PrecisionConfig
from tuneval.data.batches import SftDataset, global_batches, sample_order, truncate
from tuneval.model.decoder import Decoder
from tuneval.model.lora import LoraSettings, add_lora
from tuneval.training.loop import OneProcess, Progress, train
from tuneval.training.loss_scale import LossScaler
from tuneval.training.optim import make_optimizer
from tuneval.training.schedule import Schedule

SAMPLES, SEQ_LENGTH, SEED = 16, 1024, 42
LEARNING_RATE = {"lora": 1e-4, "full": 1e-5}
PRODUCTS = {"lora": 2, "full": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them: kernels are made, caches filled")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of a step")
    parser.add_argument("--micro-batch-tokens", type=int, default=BatchConfig.micro_batch_tokens)
    parser.add_argument("--trainer-batch", type=int, default=4, help="samples of the trainer's micro-batch")
    parser.add_argument("--main-grads-dtype", choices=("fp32", "bf16"), default=None)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--seven-billion", action="store_true")
    parser.add_argument("--device-tflops", type=float, default=None, help="the device's peak, for MFU")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), help="default: those of a CPU's tables")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--run", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(ENGINES[options.run](options)))
        return
    usual = ["tuneval", "trainer", "trainer-packed", *(["trainer-mixed"] if options.method == "full" else [])]
    given = sys.argv[1:]
    commands = {name: (__file__, *given, "--run", name) for name in options.engines or usual}
    runs = alternate(commands, options.rounds)
    write(summary(options, runs), options.output)


def summary(options: argparse.Namespace, runs: dict[str, list[dict]]) -> dict:
    speed = medians(runs, "tokens_per_second")
    config, products = config_of(options.model, options.seven_billion), PRODUCTS[options.method]
    tokens = min(options.micro_batch_tokens, max(r["tokens_a_step"] for rows in runs.values() for r in rows))
    limit = gemm_limit(config, runtime.DTYPES[options.dtype], products, int(tokens))
    flop = flop_per_token(config, products)
    ours = speed["tuneval"]["median"] if "tuneval" in speed else None
    utilisation = {}
    if options.device_tflops:
        shares = {name: round(s["median"] * flop / options.device_tflops / 1e12, 3) for name, s in speed.items()}
        utilisation = {f"MFU of {options.device_tflops:g} TFLOP/s": shares}
    words = [w for w in sys.argv[3:] if not w.startswith("--output") and w != str(options.output)]  # nobody's folders
    return {
        "work": f"{options.method} tuning, {options.dtype}, {options.steps} steps of {options.samples} samples",
        "command": " ".join(["sft_speed.py", options.model.name, *words]),
        "useful tokens/s": speed,
        "peak GiB": {name: round(max(r["peak_bytes"] for r in rows) / 2**30, 2) for name, rows in runs.items()},
        "tuneval's ratio to": {n: round(ours / s["median"], 2) for n, s in speed.items() if ours and n != "tuneval"},
        "limit by the model's matrix products, tokens/s": round(limit, 1),
        "share of the limit": {name: round(s["median"] / limit, 3) for name, s in speed.items()},
        "TFLOP/s": {name: round(s["median"] * flop / 1e12, 3) for name, s in speed.items()},
        **utilisation,
        "first loss": {name: rows[0]["first_loss"] for name, rows in runs.items()},
        **setting(),
    }


def run_tuneval(options: argparse.Namespace, compile: bool = False, flash: bool = True) -> dict:
    runtime.prepare()  # its allocator's settings are tuneval's own: the trainer runs as it is
    torch.backends.cuda.enable_flash_sdp(flash)
    if options.random_weights or options.seven_billion:
        model = random_model(config_of(options.model, options.seven_billion), runtime.DTYPES[options.dtype])
    else:
        model = load_model(options.model, options.dtype).model
    if options.method == "lora":
        add_lora(model, LoraSettings(r=8, alpha=16), SEED)
    decoder = Decoder(model, compile=compile)
    steps = options.steps + options.warm_up
    optim = OptimConfig(
        lr=LEARNING_RATE[options.method], lr_decay_style="constant", main_grads_dtype=options.main_grads_dtype
    )
    batch = BatchConfig(
        global_batch_size=options.samples, train_iters=steps, micro_batch_tokens=options.micro_batch_tokens
    )
    dataset = SftDataset(options.data)
    batches = global_batches(dataset, order(options, dataset), batch, SEQ_LENGTH)
    optimizer = make_optimizer(decoder.named_parameters(), optim)
    schedule = Schedule(optim, steps, options.samples)
    scaler = LossScaler(PrecisionConfig(fp32=options.dtype == "fp32"))
    done = list(train(OneProcess(decoder), batches, optimizer, schedule, scaler, Progress()))
    timed = done[options.warm_up :]
    return {
        "tokens_per_second": sum(s.tokens for s in timed) / sum(s.seconds for s in timed),
        "tokens_a_step": statistics.mean(s.tokens for s in timed),
        "peak_bytes": runtime.peak_memory_bytes(),
        "first_loss": round(done[0].loss, 4),
        "seconds": [round(s.seconds, 3) for s in done],
    }


def run_trainer(options: argparse.Namespace, packed: bool = False, mixed: bool = False, fp32: bool = False) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithFlattening

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dtype = runtime.DTYPES["fp32" if mixed or fp32 else options.dtype]
    if options.random_weights or options.seven_billion:
        with runtime.device():
            config = config_of(options.model, options.seven_billion)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    if options.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        model.enable_input_require_grads()
    samples = samples_of(options)
    padded = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    collator = DataCollatorWithFlattening() if packed else padded
    return time_trainer(options, model, samples, collator, mixed)


def time_trainer(options: argparse.Namespace, model, samples: list[dict], collator, mixed: bool) -> dict:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    starts: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            starts.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

        def on_log(self, arguments, state, control, logs=None, **_):
            losses.extend([logs["loss"]] if "loss" in (logs or {}) else [])

    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.trainer_batch,
            gradient_accumulation_steps=options.samples // options.trainer_batch,
            max_steps=options.steps + options.warm_up,
            learning_rate=LEARNING_RATE[options.method],
            lr_scheduler_type="constant",
            use_cpu=runtime.device().type == "cpu",
            bf16=mixed or (options.dtype == "bf16" and runtime.device().type != "cpu"),
            gradient_checkpointing=True,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=samples, data_collator=collator, callbacks=[Clock()]
        )
        trainer.train()
    lengths = [len(s["input_ids"]) for s in samples]
    useful, took = sum(lengths[options.warm_up * options.samples :]), [b - a for a, b in zip(starts, ends, strict=True)]
    return {
        "tokens_per_second": useful / sum(took[options.warm_up :]),
        "tokens_a_step": useful / options.steps,
        "peak_bytes": runtime.peak_memory_bytes(),
        "first_loss": losses[0] if losses else None,
        "seconds": [round(t, 3) for t in took],
    }


def samples_of(options: argparse.Namespace) -> list[dict]:
    """The samples of every step, as lists; the same ones and in the same order as tuneval's."""
    dataset = SftDataset(options.data)
    chosen = [truncate(dataset[int(i)], SEQ_LENGTH) for i in order(options, dataset)]
    return [{"input_ids": s.input_ids.tolist(), "labels": s.labels.tolist()} for s in chosen]


def order(options: argparse.Namespace, dataset: SftDataset):
    """Numbers of the samples of all steps."""
    return sample_order(len(dataset), (options.steps + options.warm_up) * options.samples, SEED, shuffle=True)


ENGINES = {
    "tuneval": run_tuneval,
    "tuneval-compiled": lambda options: run_tuneval(options, compile=True),
    "tuneval-no-flash": lambda options: run_tuneval(options, flash=False),
    "trainer": run_trainer,
    "trainer-packed": lambda options: run_trainer(options, packed=True),
    "trainer-fp32": lambda options: run_trainer(options, fp32=True),
    "trainer-packed-fp32": lambda options: run_trainer(options, packed=True, fp32=True),
    "trainer-mixed": lambda options: run_trainer(options, mixed=True),
}

if __name__ == "__main__":
    torch.manual_seed(SEED)
    main()

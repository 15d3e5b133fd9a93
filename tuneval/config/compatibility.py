"""Flags of Megatron-LM and MindSpeed-LLM that no schema class has: what they are held against, or why they do nothing.

A name with `=` behind it takes values. Source: reference sections 1.8, 2, 3.1, 4.1, 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fact = Callable[[dict[str, Any]], Any]
"""What a Hugging Face config says; None where it does not say."""


def key(name: str) -> Fact:
    """The value of a key, looked for inside `rope_parameters` too."""

    def read(config: dict[str, Any]) -> Any:
        value = config.get(name)
        return (config.get("rope_parameters") or {}).get(name) if value is None else value

    return read


def _head_dim(config: dict[str, Any]) -> Any:
    if config.get("head_dim"):
        return config["head_dim"]
    heads = config.get("num_attention_heads")
    return config["hidden_size"] // heads if heads and "hidden_size" in config else None


def _if_known(config: dict[str, Any], fact: Any) -> Any:
    """The fact, for the families whose traits this file knows."""
    return fact if config.get("model_type") in ("qwen2", "qwen3", "llama", "mistral") else None


CHECKED: dict[str, tuple[str, Fact]] = {
    "num-layers": ("num_hidden_layers", key("num_hidden_layers")),
    "hidden-size": ("hidden_size", key("hidden_size")),
    "ffn-hidden-size": ("intermediate_size", key("intermediate_size")),
    "num-attention-heads": ("num_attention_heads", key("num_attention_heads")),
    "num-query-groups": ("num_key_value_heads", key("num_key_value_heads")),
    "kv-channels": ("head_dim", _head_dim),
    "padded-vocab-size": ("vocab_size", key("vocab_size")),
    "rotary-base": ("rope_theta", key("rope_theta")),
    "norm-epsilon": ("rms_norm_eps", key("rms_norm_eps")),
    "attention-dropout": ("attention_dropout", lambda c: _if_known(c, c.get("attention_dropout", 0.0))),
    "hidden-dropout": ("hidden dropout", lambda c: _if_known(c, c.get("hidden_dropout", 0.0))),
    "rotary-percent": ("partial_rotary_factor", lambda c: _if_known(c, c.get("partial_rotary_factor", 1.0))),
    "normalization": ("norm", lambda c: "RMSNorm" if "rms_norm_eps" in c else None),
    "position-embedding-type": ("position embedding", lambda c: "rope" if key("rope_theta")(c) else None),
}
"""Flags with a value that describe the model: flag -> (what the error calls it, the model's own value)."""

AT_LEAST = frozenset(["padded-vocab-size"])
"""Of these a value somewhat above the model's own is right, too: rows that pad a vocabulary are no part of the model."""

CHECKED_SWITCHES: dict[str, tuple[str, Fact]] = {
    "untie-embeddings-and-output-weights": (
        "the model's embedding and output weights are tied",
        lambda c: not c["tie_word_embeddings"] if "tie_word_embeddings" in c else None,
    ),
    "swiglu": (
        "the model's feed-forward has no SwiGLU",
        lambda c: c["hidden_act"] == "silu" if "hidden_act" in c else None,
    ),
    "use-rotary-position-embeddings": (
        "the model has no rotary position embedding",
        lambda c: _if_known(c, bool(key("rope_theta")(c))),
    ),
    "add-qkv-bias": (
        "the model's q, k and v have no bias",
        lambda c: _if_known(c, c.get("model_type") == "qwen2" or bool(c.get("attention_bias"))),
    ),
    "disable-bias-linear": (
        "the model's linear layers beside q, k and v have biases",
        lambda c: _if_known(c, not c.get("attention_bias") and not c.get("mlp_bias")),
    ),
    "add-dense-bias": (
        "the model's linear layers beside q, k and v have no bias",
        lambda c: _if_known(c, bool(c.get("attention_bias") or c.get("mlp_bias"))),
    ),
    "qk-layernorm": (
        "the model does not normalise q and k",
        lambda c: _if_known(c, c.get("model_type") == "qwen3"),
    ),
}  # fmt: skip
"""Switches that describe the model: flag -> (what is wrong where the model is not so, whether it is)."""

ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "stage": (("sft",), "supervised fine-tuning is what tune does"),
    "tokenizer-type": (("PretrainedFromHF",), "tokenizers are read from Hugging Face folders"),
    "context-parallel-size": (
        ("1",),
        "no sequence is split over processes here; --micro-batch-tokens bounds the memory",
    ),
    "expert-model-parallel-size": (("1",), "models are dense here"),
    "expert-tensor-parallel-size": (("1",), "models are dense here"),
    "target-expert-parallel-size": (("1",), "models are dense here"),
    "mtp-num-layers": (("0",), "multi-token prediction heads can't be read"),
    "model-type": (("GPT",), "decoders are converted"),
    "weight-decay-incr-style": (("constant",), "--weight-decay stays what it is"),
    "prompt-type-path": (("configs/finetune/templates.json",), "its named templates are built in (see --prompt-type)"),
}
"""Flags of which only these values can be had: flag -> (values, why)."""

UNSUPPORTED: dict[str, str] = {
    "num-experts": "models are dense here",
    "moe-grouped-gemm": "models are dense here",
    "noop-layers": "no empty layers are written or trained; --num-layer-list makes uneven stages",
    "schedules-method": "pipeline schedules are 1f1b and gpipe (--pipeline-schedule)",
    "qlora-nf4": "weights are not quantised here",
    "orm": "reward models can't be converted",
    "load-from-legacy": "give a checkpoint in mcore's layout",
    "save-to-legacy": "checkpoints are written in mcore's layout",
    "post-norm": "norms behind the layers have no place in the table",
    "merge-group-keys": "give all the records to one preprocess: --input takes a folder",
    "mix-strategy": "give files or folders to --input, mixed before",
    "max-samples": "cut the input before",
    "reasoning-effort": "the named templates have no such setting",
    "drop-thinking": "the named templates have no such setting",
    "no-cut-token": "longer samples are cut to --seq-length; give the model's limit",
    "cut-max-seqlen": "longer samples are cut to --seq-length",
    "eod-mask-loss": "the data's labels say what is trained",
    "start-weight-decay": "--weight-decay stays what it is",
    "end-weight-decay": "--weight-decay stays what it is",
    "lu-lora": "LoRA is of peft's kind",
    "o2-optimizer": "masters and moments are fp32; --optimizer adam8bit keeps moments of 8 bits and no masters",
    "use-deter-comp": "set the device's own variables for determinism",
    "deterministic-mode": "leave it out: on a CPU the same command gives the same bits; elsewhere set the device's own variables",
    "npu-deterministic": "set the device's own variables for determinism",
    "profile": "torch.profiler looks into any process",
    "use-pytorch-profiler": "torch.profiler looks into any process",
    "profile-step-start": "torch.profiler looks into any process",
    "profile-step-end": "torch.profiler looks into any process",
    "profile-ranks": "torch.profiler looks into any process",
    "ckpt-step": "name the iteration's own folder: --load DIR/iter_0000200",
    "pretrained-checkpoint": "give it as --load",
    "skip-train": "tuneval evaluate scores a model without training it",
    "mock-data": "give --data-path; tuneval quickstart has data of its own",
    "decoupled-lr": "every weight has the one --lr",
    "decoupled-min-lr": "every weight has the one --min-lr",
    "trust-remote-code": "code that lies in a model's folder is never run; give a model that transformers has itself",
    "split-sentences": "belongs to pretraining; preprocess makes instruction data",
    "keep-newlines": "belongs to pretraining; preprocess makes instruction data",
    "hf-datasets-params": "give files or folders to --input",
    "script-data-dir": "no data set script is ever run; give files or folders to --input",
    "dataset-dir": "give files or folders to --input",
    "datasets": "give files or folders to --input",
    "interleave-probs": "give files or folders to --input, mixed before",
    "dataset-additional-keys": "belongs to reinforcement learning",
    "data-obfuscation": "data is not obfuscated here",
    "obf-seed-content": "data is not obfuscated here",
    "full-shuffle-instruction-dataset": "each epoch is shuffled by itself, from one generator; leave it out",
    "calculate-reward": "belongs to reinforcement learning",
    "chain-of-thought": "--style official_cot asks C-Eval so",
    "log-num-zeros-in-grad": "the gradient norm is logged; leave it out",
    "log-params-norm": "the gradient norm is logged; leave it out",
    "train-samples": "a run is counted in steps; give --train-iters, the samples divided by --global-batch-size",
    "lr-decay-samples": "a run is counted in steps; give --lr-decay-iters, the samples divided by --global-batch-size",
    "lr-warmup-samples": "a run is counted in steps; give --lr-warmup-iters, the samples divided by --global-batch-size",
    "rampup-batch-size": "every step has --global-batch-size samples; leave it out",
    "recompute-activations": "it is short for --recompute-granularity selective; give that",
    "exit-interval": "--train-iters ends a run, SIGTERM or Ctrl-C stops it with a checkpoint",
    "exit-duration-in-mins": "--train-iters ends a run, SIGTERM or Ctrl-C stops it with a checkpoint",
    "train-data-path": "give one --data-path; --split divides it",
    "valid-data-path": "give one --data-path; --split divides it",
    "test-data-path": "give one --data-path; --split divides it",
}
"""Flags that ask for what is not done here: flag -> what to do instead. An error, never silence."""


ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("model", "model-path", "model-name-or-path", "model-dir", "checkpoint"), ("load",)),
    **dict.fromkeys(("adapter", "adapter-path", "adapter-name-or-path", "lora-path"), ("lora-load",)),
    **dict.fromkeys(("data", "dataset", "data-dir", "train-file"), ("data-path", "task-data-path", "input")),
    **dict.fromkeys(
        ("output-dir", "out", "output", "save-dir", "save-path"), ("save", "output", "output-prefix", "to")
    ),
    **dict.fromkeys(("tokenizer", "tokenizer-path", "tokenizer-model"), ("tokenizer-name-or-path",)),
    "learning-rate": ("lr",),
    **dict.fromkeys(("epochs", "num-epochs", "num-train-epochs"), ("train-epochs",)),
    **dict.fromkeys(("steps", "max-steps", "iters", "num-steps"), ("train-iters",)),
    **dict.fromkeys(("batch-size", "train-batch-size"), ("global-batch-size", "batch-tokens")),
    **dict.fromkeys(("per-device-train-batch-size", "gradient-accumulation-steps"), ("global-batch-size",)),
    **dict.fromkeys(("cutoff-len", "max-seq-length", "max-seq-len", "max-length"), ("seq-length", "max-new-tokens")),
    **dict.fromkeys(("lora-rank", "rank"), ("lora-r",)),
    **dict.fromkeys(("lora-target", "target-modules"), ("lora-target-modules",)),
    "warmup-ratio": ("lr-warmup-fraction",),
    "warmup-steps": ("lr-warmup-iters",),
    "lr-scheduler-type": ("lr-decay-style",),
    "max-grad-norm": ("clip-grad",),
    "logging-steps": ("log-interval",),
    "save-steps": ("save-interval",),
    "eval-steps": ("eval-interval",),
    "template": ("prompt-type",),
    "gradient-checkpointing": ("recompute-granularity",),
}
"""What other tools call a setting: name -> ours, in the first command that has it."""


def _by_reason(groups: dict[str, str]) -> tuple[dict[str, str], frozenset[str]]:
    """reason -> names, into name -> reason and the names that take no value."""
    reasons, switches = {}, set()
    for reason, names in groups.items():
        for name in names.split():
            plain = name.removesuffix("=")
            reasons[plain] = reason
            if plain == name:
                switches.add(name)
    return reasons, frozenset(switches)


NO_EFFECT, _NO_EFFECT_SWITCHES = _by_reason(
    {
        "there is one model implementation": "use-mcore-models use-legacy-models transformer-impl=",
        "read from config.json": "model-type-hf= spec= load-hf-from-config rope-scaling-type= "
        "rope-scaling-factor= low-freq-factor= high-freq-factor= original-max-position-embeddings= use-rope-scaling "
        "rotary-seq-len-interpolation-factor= vocab-size= geglu "
        "seq-len-interpolation-factor=",
        "every tensor is used exactly once, or it is an error": "load-checkpoint-loosely",
        "--max-shard-size-gib bounds a file": "save-layer-by-layer",
        "kernels are chosen by torch": "use-fused-rmsnorm use-fused-swiglu use-fused-rotary-pos-emb "
        "use-fused-ring-attention-update cross-entropy-loss-fusion jit-compile no-persist-layer-norm",
        "the fastest attention of the device is always used": "use-flash-attn",
        "there is no such fusion to switch off": "no-gradient-accumulation-fusion no-masked-softmax-fusion "
        "no-bias-gelu-fusion no-bias-swiglu-fusion no-rope-fusion no-bias-dropout-fusion",
        "torch overlaps what it can": "overlap-grad-reduce overlap-param-gather use-ascend-mc2 "
        "use-ascend-coc coc-parallel-num= use-cp-send-recv-overlap use-mc2 tp-comm-overlap overlap-p2p-communication "
        "no-overlap-p2p-communication no-delay-grad-reduce delay-grad-reduce delay-param-gather align-grad-reduce "
        "align-param-gather no-align-param-gather overlap-param-gather-with-optimizer-step ddp-bucket-size= "
        "ddp-average-in-collective no-async-tensor-model-parallel-allreduce no-scatter-gather-tensors-in-pipeline",
        "the same mathematics, and no communication to hide": "lora-fusion",
        "bf16 masters take 2 bytes beside the weight already": "reuse-fp32-param",
        "--recompute-granularity is what saves activations": "swap-attention recompute-method= recompute-num-layers= "
        "recompute-activation-function recompute-activation-function-num-layers= recompute-norm recompute-in-bubble "
        "distribute-saved-activations",
        "the data set's manifest says what it is": "is-instruction-dataset",
        "gradients are summed in fp32": "accumulate-allreduce-grads-in-fp32",
        "a continued run keeps its schedule": "override-opt-param-scheduler use-checkpoint-opt-param-scheduler",
        "a checkpoint is written before the next step": "async-save ckpt-fully-parallel-save ckpt-fully-parallel-load",
        "Python collects its garbage as it always does": "manual-gc manual-gc-interval= no-manual-gc-eval "
        "empty-unused-memory-level=",
        "nothing is sent anywhere; RUN/metrics.jsonl, --tensorboard-dir and tuneval report show the curves": "wandb-project= "
        "wandb-exp-name= wandb-save-dir= enable-one-logger no-one-logger",
        "RUN/log.txt and RUN/metrics.jsonl hold the progress": "log-progress logging-level=",
        "SIGTERM always saves and stops": "exit-signal-handler",
        "a run goes on from torch's distributed format; --ckpt-format torch also writes Megatron's": "use-dist-ckpt "
        "auto-detect-ckpt-format dist-ckpt-format= dist-ckpt-strictness= ckpt-assume-constant-structure "
        "no-ckpt-fully-parallel-save",
        "no timers are kept": "timing-log-level= timing-log-option= no-barrier-with-level-1-timing",
        "its state is split by --use-distributed-optimizer": "swap-optimizer",
        "no masks are made": "no-create-attention-mask-in-dataloader",
        "samples are never padded": "variable-seq-lengths no-pad-to-seq-lengths pad-to-multiple-of= "
        "tokenizer-padding-side=",
        "read from the model": "group-query-attention max-position-embeddings= rotary-interleaved",
        "weights keep the rows they have": "make-vocab-size-divisible-by=",
        "weights are loaded, never drawn": "init-method-std= init-method-xavier-uniform use-cpu-initialization "
        "data-parallel-random-init no-initialization",
        "attention is causal, accumulates in fp32 and stays inside a sample": "attention-softmax-in-fp32 "
        "attention-mask-type= sparse-mode= pre-tockens= next-tockens= shape-order=",
        "chosen by the device": "distributed-backend= disable-gloo-group",
        "the tokenizer only decodes here": "tokenizer-not-use-fast",
        "--load gives weights alone; a run goes on from its own --save": "no-load-optim no-load-rng",
        "goes with the optimizer's state, a few kilobytes": "no-save-rng",
        "a missing checkpoint is always an error": "exit-on-missing-checkpoint",
        "any checkpoint and any layout loads as it is": "enable-hf2mg-convert enable-mg2hf-convert use-checkpoint-args",
        "the tokens of a step share one mean unless --loss-reduction says otherwise": "calculate-per-token-loss",
        "no sample ever sees another (in data made with --pack alone a bin is one sample)": "reset-position-ids "
        "reset-attention-mask neat-pack pack",
        "each process reads its own part of the files": "num-workers= dataloader-type= num-dataset-builder-threads=",
        "no node writes a cache for others; --save alone must lie where all of them see it": "no-shared-storage",
        "the input is streamed, so it need not be split": "n-subs=",
        "no cache is kept": "overwrite-cache cache-dir= data-cache-path=",
        "records are always streamed": "streaming",
        "token files are always memory-mapped": "dataset-impl= mmap-bin-files no-mmap-bin-files",
        "names the columns of pretraining; --map-keys names those of instructions": "json-keys=",
        "token files do not depend on it": "pad-vocab-size-to=",
        "read from the tokenizer's folder": "vocab-file= merge-file= tokenizer-model=",
        "belongs to reward models": "placeholder-token= reward-tokens=",
        "the data was preprocessed already": "handler-name= enable-thinking= workers=",
        "a NaN always stops the run, before it is in the weights": "no-check-for-nan-in-loss-and-grad "
        "check-for-nan-in-loss-and-grad",
        "MindSpeed-LLM parses it and does not use it": "lora-modules-to-save= add-eos-token= instruction-template=",
        "the key-value cache is always used": "use-kv-cache use-cache",
        "nothing is drawn at random here": "seed= top-k= top-p= temperature=",
        "--batch-tokens bounds the memory of a batch": "evaluation-batch-size=",
        "each style has its own way to read an answer": "origin-postprocess",
        "models are dense here": "broadcast",
        "an OOM is the device's to say": "max-tokens-to-oom=",
        "belongs to training": "sequence-parallel num-layer-list= use-distributed-optimizer "
        "num-layers-per-virtual-pipeline-stage= micro-batch-size= global-batch-size=",
        "a model that only answers has no stages; processes beyond --tensor-model-parallel-size hold copies of it and share "
        "the questions": "pipeline-model-parallel-size=",
        "the model's positions are the limit": "seq-length= max-length=",
    }
)
"""Flags that are known and change nothing here: flag -> why."""

SWITCHES: frozenset[str] = _NO_EFFECT_SWITCHES | frozenset(CHECKED_SWITCHES)
"""Flags of these tables that take no value."""


def known() -> list[str]:
    """Every name of these tables."""
    return [*CHECKED, *CHECKED_SWITCHES, *ONLY, *UNSUPPORTED, *NO_EFFECT]

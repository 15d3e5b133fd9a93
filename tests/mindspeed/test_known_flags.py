"""No flag of MindSpeed-LLM's entry files is unknown: what can't be had is refused with a way out (reference 1.8 to 6)."""

from __future__ import annotations

import pytest

from tuneval.config import flags, schema
from tuneval.config.mindspeed import translate
from tuneval.errors import UserError

REQUIRED = {
    "preprocess_data.py": "--input i --output-prefix p --tokenizer-name-or-path t",
    "convert_ckpt.py": "--model-type GPT --load-model-type hf --save-model-type mg --load-dir l --save-dir s",
    "convert_ckpt_v2.py": "--load-model-type hf --save-model-type mg --load-dir l --save-dir s",
    "posttrain_gpt.py": "--load m --data-path d --save r --micro-batch-size 1 --bf16",
    "inference.py": "--load m",
    "evaluation.py": "--load m --task ceval --task-data-path ceval/val",
}
FLAGS = {
    "preprocess_data.py": """
        handler-name=X prompt-type=qwen prompt-type-path=configs/finetune/templates.json map-keys={} seq-length=8 pack
        tokenizer-type=PretrainedFromHF tokenizer-not-use-fast append-eod neat-pack workers=1 n-subs=1 log-interval=100
        json-keys=text split-sentences keep-newlines merge-group-keys=a streaming hf-datasets-params=x cache-dir=x
        overwrite-cache script-data-dir=x dataset-dir=x datasets=x interleave-probs=1 mix-strategy=concat max-samples=3
        seed=1234 dataset-additional-keys=a vocab-file=x merge-file=x make-vocab-size-divisible-by=128
        pad-vocab-size-to=1 dataset-impl=mmap placeholder-token=x reward-tokens=x enable-thinking=true
        pad-to-multiple-of=1 reasoning-effort=x drop-thinking=true data-obfuscation obf-seed-content=x
        tokenizer-model=x""",
    "convert_ckpt.py": """
        use-mcore-models model-type-hf=llama2 target-tensor-parallel-size=2 target-pipeline-parallel-size=2
        target-expert-parallel-size=1 num-layer-list=1,3 num-layers-per-virtual-pipeline-stage=1 noop-layers=1
        add-qkv-bias add-dense-bias params-dtype=bf16 make-vocab-size-divisible-by=1 tokenizer-model=x lora-load=x
        lora-r=8 lora-alpha=16 lora-target-modules=linear_qkv load-checkpoint-loosely save-to-legacy load-from-legacy
        load-hf-from-config orm qlora-nf4 spec=x post-norm moe-grouped-gemm""",
    "convert_ckpt_v2.py": """
        model-type-hf=qwen25 hf-cfg-dir=x transformer-impl=local num-layers=4 mtp-num-layers=1 lora-load=x
        expert-tensor-parallel-size=1 schedules-method=dualpipev save-layer-by-layer save-lora-to-hf noop-layers=1""",
    "inference.py": """
        task=greedy max-new-tokens=1 max-length=256 top-k=50 top-p=0.9 temperature=0.7 hf-chat-template
        prompt-type=qwen history-turns=3 use-kv-cache add-eos-token=x max-tokens-to-oom=1 lora-load=l lora-r=8
        lora-alpha=16 lora-fusion lora-target-modules=linear_qkv""",
    "evaluation.py": """
        evaluation-batch-size=1 max-new-tokens=1 max-eval-samples=1 no-chat-template prompt-type=qwen
        eval-language=zh hf-chat-template alternative-prompt origin-postprocess broadcast use-kv-cache
        instruction-template=x chain-of-thought temperature=0.5 top-p=0.9 top-k=0""",
    "posttrain_gpt.py": """
        no-cut-token cut-max-seqlen full-shuffle-instruction-dataset no-shuffle start-weight-decay=0.1
        end-weight-decay=0.1 weight-decay-incr-style=constant override-opt_param-scheduler
        use-checkpoint-opt_param-scheduler no-check-for-nan-in-loss-and-grad lr-warmup-init=0 lr-wsd-decay-iters=1
        lr-decay-iters=9 recompute-granularity=full noop-layers=1 tokenizer-padding-side=right lu-lora swap-optimizer
        o2-optimizer adam-eps=1e-8 num-workers=4 log-params-norm log-num-zeros-in-grad async-save
        accumulate-allreduce-grads-in-fp32 context-parallel-size=1 attention-mask-type=general pad-to-multiple-of=8
        train-samples=8 lr-decay-samples=8 lr-warmup-samples=8 rampup-batch-size=8 recompute-activations
        exit-interval=8 exit-duration-in-mins=8 train-data-path=d valid-data-path=d test-data-path=d
        calculate-per-token-loss no-shared-storage tensorboard-dir=x tensorboard-queue-size=5 init-method-std=0.02
        manual-gc manual-gc-interval=50 deterministic-mode wandb-project=x wandb-exp-name=x wandb-save-dir=x
        log-progress use-dist-ckpt ckpt-step=9 pretrained-checkpoint=x data-cache-path=x no-mmap-bin-files
        exit-signal-handler profile-step-start=1 profile-step-end=2 profile-ranks=0 trust-remote-code
        tp-comm-overlap no-overlap-p2p-communication use-cpu-initialization vocab-size=9 rope-scaling-factor=8.0
        no-initialization skip-train mock-data""",
}


def outcome(entry: str, flag: str) -> str:
    """What becomes of one flag: the error's text, or `known`."""
    name, _, value = flag.partition("=")
    try:
        ours = translate(entry, [*REQUIRED[entry].split(), f"--{name}", *([value] if value else [])])
        flags.parse(getattr(schema, f"{ours.command.capitalize()}Config"), ours.words, entry)
    except UserError as error:
        return str(error)
    return "known"


@pytest.mark.parametrize("entry", FLAGS)
def test_no_flag_is_unknown(entry):
    outcomes = {flag: outcome(entry, flag) for flag in FLAGS[entry].split()}
    assert not {flag: text for flag, text in outcomes.items() if "unknown flag" in text}
    assert "unknown flag" in outcome(entry, "no-such-flag=1")


@pytest.mark.parametrize(
    ("flag", "way_out"),
    [
        ("train-samples=80", "--train-iters"),
        ("lr-decay-samples=80", "--lr-decay-iters"),
        ("lr-warmup-samples=80", "--lr-warmup-iters"),
        ("recompute-activations", "--recompute-granularity selective"),
        ("train-data-path=d", "--split"),
    ],
)
def test_megatrons_other_ways_to_say_it_name_ours(flag, way_out):
    assert way_out in outcome("posttrain_gpt.py", flag)


def test_a_model_without_prediction_heads_may_be_called_so():
    assert outcome("convert_ckpt_v2.py", "mtp-num-layers=0") == "known"
    assert "can't be read" in outcome("convert_ckpt_v2.py", "mtp-num-layers=1")

#!/bin/bash
# Qwen2.5-7B from Hugging Face to Megatron at TP 8 x PP 1. Any variable can be set from outside:
#   TP=4 PP=2 bash examples/mcore/qwen25/ckpt_convert_qwen25_hf2mcore.sh
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

HF_DIR=${HF_DIR:-model_from_hf/qwen2.5_7b_hf}
CKPT_DIR=${CKPT_DIR:-model_weights/qwen2.5_7b_mcore}
TP=${TP:-8}
PP=${PP:-1}
MODEL_ARGS=${MODEL_ARGS---model-type-hf llama2 --add-qkv-bias}
EXTRA_ARGS=${EXTRA_ARGS-}

python "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --load-model-type hf \
    --save-model-type mg \
    --target-tensor-parallel-size "$TP" \
    --target-pipeline-parallel-size "$PP" \
    --load-dir "$HF_DIR" \
    --save-dir "$CKPT_DIR" \
    --tokenizer-model "$HF_DIR/tokenizer.json" \
    --params-dtype bf16 \
    $MODEL_ARGS $EXTRA_ARGS

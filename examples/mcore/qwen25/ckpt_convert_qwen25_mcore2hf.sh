#!/bin/bash
# A Qwen2.5-7B checkpoint of Megatron, or a run of posttrain_gpt.py, back to Hugging Face: it goes to HF_DIR/mg2hf.
# With LORA_DIR an adapter is merged on the way.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

HF_DIR=${HF_DIR:-model_from_hf/qwen2.5_7b_hf}
CKPT_DIR=${CKPT_DIR:-ckpt/qwen2.5_7b_full}
LORA_DIR=${LORA_DIR-}
MODEL_ARGS=${MODEL_ARGS---model-type-hf llama2 --add-qkv-bias}
EXTRA_ARGS=${EXTRA_ARGS-}

python "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --load-model-type mg \
    --save-model-type hf \
    --target-tensor-parallel-size 1 \
    --target-pipeline-parallel-size 1 \
    --load-dir "$CKPT_DIR" \
    --save-dir "$HF_DIR" \
    ${LORA_DIR:+--lora-load "$LORA_DIR"} \
    $MODEL_ARGS $EXTRA_ARGS

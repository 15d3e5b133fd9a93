#!/bin/bash
# Qwen3-8B: from Hugging Face to Megatron. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export HF_DIR=${HF_DIR:-model_from_hf/qwen3_8b_hf}
export CKPT_DIR=${CKPT_DIR:-model_weights/qwen3_8b_mcore}
export TP=${TP:-8}
export MODEL_ARGS=${MODEL_ARGS---model-type-hf qwen3}

exec bash "$(dirname "${BASH_SOURCE[0]}")/../qwen25/ckpt_convert_qwen25_hf2mcore.sh"

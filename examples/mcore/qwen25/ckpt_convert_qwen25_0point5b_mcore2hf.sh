#!/bin/bash
# Qwen2.5-0.5B: back to Hugging Face. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export HF_DIR=${HF_DIR:-model_from_hf/qwen2.5_0point5b_hf}
export CKPT_DIR=${CKPT_DIR:-ckpt/qwen2.5_0point5b_full}
export MODEL_ARGS=${MODEL_ARGS---model-type-hf llama2 --add-qkv-bias}

exec bash "$(dirname "${BASH_SOURCE[0]}")/ckpt_convert_qwen25_mcore2hf.sh"

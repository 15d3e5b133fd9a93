#!/bin/bash
# Qwen3-8B: full tuning. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-model_weights/qwen3_8b_mcore}
export CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-ckpt/qwen3_8b_full}
export DATA_PATH=${DATA_PATH:-finetune_dataset/alpaca_qwen3_8b}
export TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen3_8b_hf}
export PROMPT_TYPE=${PROMPT_TYPE:-qwen3}
export NPROC_PER_NODE=${NPROC_PER_NODE:-8}
export TP=${TP:-8}
export LOG=${LOG:-logs/tune_qwen3_8b_4K_full.log}
export MODEL_ARGS=${MODEL_ARGS---num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32 \
    --group-query-attention --num-query-groups 8 --disable-bias-linear --swiglu --normalization RMSNorm \
    --norm-epsilon 1e-6 --position-embedding-type rope --rotary-base 1000000 --untie-embeddings-and-output-weights --kv-channels 128 --qk-layernorm \
    --padded-vocab-size 151936 --make-vocab-size-divisible-by 1}

exec bash "$(dirname "${BASH_SOURCE[0]}")/../qwen25/tune_qwen25_7b_full_ptd.sh"

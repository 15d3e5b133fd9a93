#!/bin/bash
# Qwen2.5-0.5B: full tuning. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-model_weights/qwen2.5_0point5b_mcore}
export CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-ckpt/qwen2.5_0point5b_full}
export DATA_PATH=${DATA_PATH:-finetune_dataset/alpaca_qwen2.5_0point5b}
export TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen2.5_0point5b_hf}
export PROMPT_TYPE=${PROMPT_TYPE:-qwen}
export NPROC_PER_NODE=${NPROC_PER_NODE:-2}
export TP=${TP:-2}
export LOG=${LOG:-logs/tune_qwen25_0point5b_full.log}
export MODEL_ARGS=${MODEL_ARGS---num-layers 24 --hidden-size 896 --ffn-hidden-size 4864 --num-attention-heads 14 \
    --group-query-attention --num-query-groups 2 --disable-bias-linear --swiglu --normalization RMSNorm \
    --norm-epsilon 1e-6 --position-embedding-type rope --rotary-base 1000000 --add-qkv-bias \
    --padded-vocab-size 151936 --make-vocab-size-divisible-by 1}

exec bash "$(dirname "${BASH_SOURCE[0]}")/tune_qwen25_7b_full_ptd.sh"

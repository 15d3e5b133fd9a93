#!/bin/bash
# Qwen3-8B: C-Eval. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export CHECKPOINT=${CHECKPOINT:-model_weights/qwen3_8b_mcore}
export TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen3_8b_hf}
export NPROC_PER_NODE=${NPROC_PER_NODE:-8}
export TP=${TP:-8}
export LOG=${LOG:-logs/evaluate_qwen3_8b.log}
export MODEL_ARGS=${MODEL_ARGS---num-layers 36 --hidden-size 4096 --ffn-hidden-size 12288 --num-attention-heads 32 \
    --group-query-attention --num-query-groups 8 --disable-bias-linear --swiglu --normalization RMSNorm \
    --norm-epsilon 1e-6 --position-embedding-type rope --rotary-base 1000000 --untie-embeddings-and-output-weights --kv-channels 128 --qk-layernorm \
    --padded-vocab-size 151936 --make-vocab-size-divisible-by 1}

exec bash "$(dirname "${BASH_SOURCE[0]}")/../qwen25/evaluate_qwen25_7b_ptd.sh"

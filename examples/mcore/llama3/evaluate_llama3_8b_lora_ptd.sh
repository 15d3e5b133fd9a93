#!/bin/bash
# Llama-3-8B: C-Eval with the adapter. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export CHECKPOINT=${CHECKPOINT:-model_weights/llama3_8b_mcore}
export CHECKPOINT_LORA=${CHECKPOINT_LORA:-ckpt/llama3_8b_lora}
export TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/llama3_8b_hf}
export NPROC_PER_NODE=${NPROC_PER_NODE:-8}
export TP=${TP:-8}
export LOG=${LOG:-logs/evaluate_llama3_8b_lora.log}
export MODEL_ARGS=${MODEL_ARGS---num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 \
    --group-query-attention --num-query-groups 8 --disable-bias-linear --swiglu --normalization RMSNorm \
    --norm-epsilon 1e-5 --position-embedding-type rope --rotary-base 500000 --untie-embeddings-and-output-weights \
    --padded-vocab-size 128256 --make-vocab-size-divisible-by 1}

exec bash "$(dirname "${BASH_SOURCE[0]}")/../qwen25/evaluate_qwen25_7b_lora_ptd.sh"

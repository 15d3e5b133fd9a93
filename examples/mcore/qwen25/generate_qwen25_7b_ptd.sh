#!/bin/bash
# Generation and chat with Qwen2.5-7B. Any variable can be set from outside:
#   TASK=chat bash examples/mcore/qwen25/generate_qwen25_7b_ptd.sh
set -euo pipefail
export CUDA_DEVICE_MAX_CONNECTIONS=1
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

CHECKPOINT=${CHECKPOINT:-model_weights/qwen2.5_7b_mcore}
TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen2.5_7b_hf}
TASK=${TASK:-greedy do_sample beam_search beam_search_with_sampling chat}
LOG=${LOG:-logs/generate_qwen25_7b.log}

NPROC_PER_NODE=${NPROC_PER_NODE:-8}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-6000}

TP=${TP:-8}
PP=${PP:-1}
SEQ_LENGTH=${SEQ_LENGTH:-4096}
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}
PROMPT_TYPE=${PROMPT_TYPE:-qwen}
PRECISION=${PRECISION:---bf16}
MODEL_ARGS=${MODEL_ARGS---num-layers 28 --hidden-size 3584 --ffn-hidden-size 18944 --num-attention-heads 28 \
    --group-query-attention --num-query-groups 4 --add-qkv-bias --disable-bias-linear --swiglu --normalization RMSNorm \
    --norm-epsilon 1e-6 --position-embedding-type rope --rotary-base 1000000 --untie-embeddings-and-output-weights \
    --padded-vocab-size 152064 --make-vocab-size-divisible-by 1}
EXTRA_ARGS=${EXTRA_ARGS-}

mkdir -p "$(dirname "$LOG")"
torchrun \
    --nproc_per_node "$NPROC_PER_NODE" \
    --nnodes "$NNODES" \
    --node_rank "$NODE_RANK" \
    --master_addr "$MASTER_ADDR" \
    --master_port "$MASTER_PORT" \
    "$ROOT/inference.py" \
    --task $TASK \
    --prompt-type "$PROMPT_TYPE" \
    --max-new-tokens "$MAX_NEW_TOKENS" \
    --load "$CHECKPOINT" \
    --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path "$TOKENIZER_PATH" \
    --tokenizer-not-use-fast \
    --use-mcore-models \
    --tensor-model-parallel-size "$TP" \
    --pipeline-model-parallel-size "$PP" \
    --seq-length "$SEQ_LENGTH" \
    --max-position-embeddings "$SEQ_LENGTH" \
    --micro-batch-size 1 \
    --attention-softmax-in-fp32 \
    --no-gradient-accumulation-fusion \
    --exit-on-missing-checkpoint \
    --no-load-rng \
    --no-load-optim \
    --seed 42 \
    $PRECISION $MODEL_ARGS $EXTRA_ARGS \
    2>&1 | tee "$LOG"

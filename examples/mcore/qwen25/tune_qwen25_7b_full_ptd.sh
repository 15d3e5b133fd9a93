#!/bin/bash
# Full tuning of Qwen2.5-7B on 8 devices (NPU, CUDA or CPU, found by itself). Any variable can be set from outside:
#   NPROC_PER_NODE=4 TP=4 bash examples/mcore/qwen25/tune_qwen25_7b_full_ptd.sh
set -euo pipefail
export CUDA_DEVICE_MAX_CONNECTIONS=1
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

CKPT_LOAD_DIR=${CKPT_LOAD_DIR:-model_weights/qwen2.5_7b_mcore}
CKPT_SAVE_DIR=${CKPT_SAVE_DIR:-ckpt/qwen2.5_7b_full}
DATA_PATH=${DATA_PATH:-finetune_dataset/alpaca}
TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen2.5_7b_hf}
LOG=${LOG:-logs/tune_qwen25_7b_full.log}

NPROC_PER_NODE=${NPROC_PER_NODE:-8}
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-6000}

TP=${TP:-8}
PP=${PP:-1}
SEQ_LENGTH=${SEQ_LENGTH:-4096}
MBS=${MBS:-1}
GBS=${GBS:-8}
TRAIN_ITERS=${TRAIN_ITERS:-2000}
SAVE_INTERVAL=${SAVE_INTERVAL:-2000}
LR=${LR:-1.25e-6}
MIN_LR=${MIN_LR:-1.25e-7}
PRECISION=${PRECISION:---bf16}
PROMPT_TYPE=${PROMPT_TYPE:-qwen}
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
    "$ROOT/posttrain_gpt.py" \
    --stage sft \
    --is-instruction-dataset \
    --prompt-type "$PROMPT_TYPE" \
    --variable-seq-lengths \
    --padded-samples \
    --use-mcore-models \
    --tensor-model-parallel-size "$TP" \
    --pipeline-model-parallel-size "$PP" \
    --sequence-parallel \
    --use-distributed-optimizer \
    --seq-length "$SEQ_LENGTH" \
    --max-position-embeddings "$SEQ_LENGTH" \
    --micro-batch-size "$MBS" \
    --global-batch-size "$GBS" \
    --train-iters "$TRAIN_ITERS" \
    --lr "$LR" \
    --min-lr "$MIN_LR" \
    --lr-decay-style cosine \
    --lr-warmup-fraction 0.01 \
    --weight-decay 0.0 \
    --clip-grad 1.0 \
    --adam-beta1 0.9 \
    --adam-beta2 0.95 \
    --attention-dropout 0.0 \
    --hidden-dropout 0.0 \
    --init-method-std 0.01 \
    --initial-loss-scale 4096 \
    --attention-softmax-in-fp32 \
    --use-flash-attn \
    --use-fused-rmsnorm \
    --use-fused-swiglu \
    --use-fused-rotary-pos-emb \
    --no-gradient-accumulation-fusion \
    --no-masked-softmax-fusion \
    --seed 1234 \
    --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path "$TOKENIZER_PATH" \
    --tokenizer-not-use-fast \
    --data-path "$DATA_PATH" \
    --split 100,0,0 \
    --load "$CKPT_LOAD_DIR" \
    --save "$CKPT_SAVE_DIR" \
    --save-interval "$SAVE_INTERVAL" \
    --log-interval 1 \
    --log-throughput \
    --eval-interval "$SAVE_INTERVAL" \
    --eval-iters 0 \
    --distributed-backend nccl \
    $PRECISION $MODEL_ARGS $EXTRA_ARGS \
    2>&1 | tee "$LOG"

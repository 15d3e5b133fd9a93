#!/bin/bash
# Instruction records to token files. MAP_KEYS names the columns; the default is that of alpaca-chinese-52k.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

INPUT=${INPUT:-dataset/alpaca-chinese-52k.json}
TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen2.5_7b_hf}
OUTPUT_PREFIX=${OUTPUT_PREFIX:-finetune_dataset/alpaca}
PROMPT_TYPE=${PROMPT_TYPE:-qwen}
DEFAULT_KEYS='{"prompt":"zh_instruction","query":"zh_input","response":"zh_output"}'
MAP_KEYS=${MAP_KEYS-$DEFAULT_KEYS}
WORKERS=${WORKERS:-4}
EXTRA_ARGS=${EXTRA_ARGS-}

mkdir -p "$(dirname "$OUTPUT_PREFIX")"
python "$ROOT/preprocess_data.py" \
    --input "$INPUT" \
    --tokenizer-name-or-path "$TOKENIZER_PATH" \
    --output-prefix "$OUTPUT_PREFIX" \
    --handler-name AlpacaStyleInstructionHandler \
    --tokenizer-type PretrainedFromHF \
    --workers "$WORKERS" \
    --log-interval 1000 \
    --prompt-type "$PROMPT_TYPE" \
    ${MAP_KEYS:+--map-keys "$MAP_KEYS"} \
    $EXTRA_ARGS

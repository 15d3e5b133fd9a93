#!/bin/bash
# Qwen3-8B: records to token files. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen3_8b_hf}
export OUTPUT_PREFIX=${OUTPUT_PREFIX:-finetune_dataset/alpaca_qwen3_8b}
export PROMPT_TYPE=${PROMPT_TYPE:-qwen3}

exec bash "$(dirname "${BASH_SOURCE[0]}")/../qwen25/data_convert_qwen25_instruction.sh"

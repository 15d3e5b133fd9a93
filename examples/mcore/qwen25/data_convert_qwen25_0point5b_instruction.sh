#!/bin/bash
# Qwen2.5-0.5B: records to token files. The sizes of the model, then the script of Qwen2.5-7B; any variable can be set from outside.
set -euo pipefail

export TOKENIZER_PATH=${TOKENIZER_PATH:-model_from_hf/qwen2.5_0point5b_hf}
export OUTPUT_PREFIX=${OUTPUT_PREFIX:-finetune_dataset/alpaca_qwen2.5_0point5b}
export PROMPT_TYPE=${PROMPT_TYPE:-qwen}

exec bash "$(dirname "${BASH_SOURCE[0]}")/data_convert_qwen25_instruction.sh"

#!/usr/bin/env bash
# Every speed and memory benchmark of one model, one after the other, a JSON file each. An hour on two cores.
#   bash benchmarks/run_all.sh MODEL DATA_PREFIX RECORDS.jsonl OUTPUT_FOLDER [CEVAL.zip]
# A benchmark whose file is there already is not run again.
set -euo pipefail
model=$1 data=$2 records=$3 output=$4 exam=${5:-}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$output"

bench() { # NAME SCRIPT ARGUMENTS...
    local file="$output/$1.json" script="$here/$2"
    shift 2
    if [[ ! -s $file ]]; then
        echo "== $(basename "$file" .json)" >&2
        python "$script" "$@" --output "$file" >/dev/null
    fi
}

bench start-up start_up.py "$model"
bench convert convert_speed.py "$model" --folder "$output"
bench preprocess preprocess_speed.py "$model" "$records"
bench decode decode_speed.py "$model" ${exam:+--exam "$exam"}
bench lora sft_speed.py "$model" "$data" --method lora
bench full sft_speed.py "$model" "$data" --method full
bench lora-profile step_profile.py "$model" "$data" --method lora
bench full-profile step_profile.py "$model" "$data" --method full
bench train-memory train_memory.py "$model" "$data"
bench two-processes two_processes.py "$model" "$data"
bench growth growth.py

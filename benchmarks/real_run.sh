#!/usr/bin/env bash
# The whole way on a real model: docs/results/ holds what it gave. About an hour and a half on two CPU cores with a 0.5B model.
#   benchmarks/real_run.sh MODEL DATA OUT
# MODEL: Hugging Face folder. DATA: folder with alpaca-chinese-52k.json.xz and ceval-exam.zip. OUT: folder for everything made.
set -euo pipefail
model=$1 data=$2 out=$3
precision=${PRECISION:-fp32} # `tuneval doctor` says which type this processor multiplies fastest
lora_iters=${LORA_ITERS:-100} full_iters=${FULL_ITERS:-30}
subjects=${SUBJECTS:-computer_network,operating_system,high_school_biology,marxism,education_science,high_school_geography,law,modern_chinese_history,chinese_language_and_literature,physician,accountant,tax_accountant}
exam=(--task-data-path "$data/ceval-exam.zip" --subjects "$subjects" --dtype "$precision")
mkdir -p "$out"

step() { echo "\$ $*"; /usr/bin/time -f "%E elapsed, %M KiB peak" "$@"; }

cat >"$out/prompts.jsonl" <<'PROMPTS'
{"prompt": "请给出三条保持身体健康的建议。"}
{"prompt": "用一句话解释什么是光合作用。"}
{"prompt": "把下面的句子改成被动语态：小明打破了花瓶。"}
{"prompt": "写一首关于秋天的短诗。"}
PROMPTS

step tuneval convert --load "$model" --save "$out/mcore" --to mcore --target-tensor-parallel-size 2 --target-pipeline-parallel-size 2
step tuneval convert --load "$out/mcore" --save "$out/back" --to hf
step tuneval verify "$model" "$out/back"
step tuneval preprocess --input "$data/alpaca-chinese-52k.json.xz" --tokenizer-name-or-path "$model" \
    --output-prefix "$out/data/zh" --workers 2
step tuneval inspect --data-path "$out/data/zh"
step tuneval evaluate --load "$model" "${exam[@]}" --output "$out/before"
step tuneval generate --load "$model" --input "$out/prompts.jsonl" --output "$out/before.jsonl" --greedy --max-new-tokens 128 \
    --dtype "$precision"

tune=(tuneval tune --load "$out/mcore" --data-path "$out/data/zh" --global-batch-size 16 "--$precision" --eval-interval 25
    --eval-iters 2 --save-interval 50)
step "${tune[@]}" --save "$out/lora" --lora-r 8 --lora-alpha 16 --lr 1e-4 --train-iters "$lora_iters"
step "${tune[@]}" --save "$out/full" --lr 1e-5 --train-iters "$full_iters"

for run in lora full; do
    step tuneval evaluate --load "$out/$run" "${exam[@]}" --compare "$out/before"
    step tuneval generate --load "$out/$run" --input "$out/prompts.jsonl" --before "$out/before.jsonl" --greedy \
        --max-new-tokens 128 --dtype "$precision"
done
for lang in zh en; do
    step tuneval report "$out/lora" "$out/full" --baseline "$out/before" --lang "$lang" --output "$out/report-$lang.html"
done

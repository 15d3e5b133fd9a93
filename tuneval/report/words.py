"""Every word of the report in both languages, one table, and how figures are spelled."""

from __future__ import annotations

import math
import re
from typing import Any

from tuneval.report import words_sweep, words_trust

LANGUAGES = ("zh", "en")

WORDS: dict[str, tuple[str, str]] = {
    # key: (Chinese, English); `{name}` is filled in
    "language_tag": ("zh-CN", "en"),
    "separator": ("、", ", "),
    "colon": ("：", ": "),
    "semicolon": ("；", "; "),
    "missing": ("未记录", "not recorded"),
    "none": ("无", "none"),
    "split_missing": ("划分未记录", "split not recorded"),
    "report_title": ("大模型微调实验报告", "Fine-tuning report"),
    "contents": ("目录", "Contents"),
    "title_run": ("{model}：{methods}", "{model}: {methods}"),
    "started": ("开始于 {date}", "started {date}"),
    "made_by": ("由 tuneval {version} 根据实验目录中的记录生成；未记录的内容不作推断。", "Made by tuneval {version} from the records in the run folders; nothing that was not recorded is inferred."),
    # methods
    "full": ("全参数微调", "full fine-tuning"),
    "lora": ("LoRA 微调", "LoRA"),
    "unknown": ("方法未记录的微调", "tuning of an unrecorded method"),
    "label_full": ("全参数", "full"),
    "label_lora": ("LoRA r={r}", "LoRA r={r}"),
    "model_before": ("微调前", "the model before tuning"),
    "model_after": ("微调后", "the tuned model"),
    "baseline": ("微调前", "before"),
    "after": ("微调后", "after"),
    # sections
    "summary": ("结论", "Summary"),
    "training": ("训练过程", "Training"),
    "scores": ("评测得分", "Scores"),
    "samples": ("回答对比", "Sample answers"),
    "data": ("训练数据", "Training data"),
    "setup": ("实验设置与环境", "Set-up and machine"),
    "reproduce": ("复现：命令与校验值", "Reproduction: commands and hashes"),
    "settings": ("附录：全部参数", "Appendix: all settings"),
    # summary sentences
    "say_tuned": (
        "{method}：从 {model} 出发，训练 {trainable} 个参数（共 {total} 个，占 {share}），训练集有 {samples} 条样本，完成 {steps} 步，共看过 {seen} 条样本。",
        "{method} of {model}: {trainable} of {total} parameters ({share}) were trained on {samples} training samples, for {steps} steps and {seen} samples in all.",
    ),
    "say_tuned_logged": (
        "{method}：从 {model} 出发，完成 {steps} 步，共看过 {seen} 条样本；可训练参数与训练集的大小未记录。",
        "{method} of {model}: {steps} steps, {seen} samples in all; the number of trained parameters and the size of the training set are not recorded.",
    ),
    "say_no_steps": ("没有训练步的记录（metrics.jsonl 为空或不存在）。", "No training step is recorded (metrics.jsonl is missing or empty)."),
    "say_unfinished": ("训练未完成：计划 {planned} 步，只记录到第 {done} 步。", "The training is not complete: {planned} steps were planned, the record ends at step {done}."),
    "say_loss": (
        "训练损失从 {first} 变为 {last}（分别为前 {k} 步与后 {k} 步的平均值）。",
        "The training loss went from {first} to {last} (means of the first and the last {k} steps).",
    ),
    "say_loss_single": ("训练损失从 {first} 变为 {last}（第一步与最后一步）。", "The training loss went from {first} to {last} (first and last step)."),
    "say_loss_one_step": ("只训练了一步，损失为 {first}。", "There was one step only, with loss {first}."),
    "say_not_finite": ("有 {n} 步的损失不是有限数，最早出现在第 {step} 步，训练结果不可信。", "The loss is not finite in {n} of the steps, first in step {step}: don't trust what came of it."),
    "say_validation": (
        "验证损失从 {first}（第 {first_step} 步）变为 {last}（第 {last_step} 步），困惑度从 {first_ppl} 变为 {last_ppl}。",
        "The validation loss went from {first} (step {first_step}) to {last} (step {last_step}), the perplexity from {first_ppl} to {last_ppl}.",
    ),
    "say_validation_best": (
        "最低的验证损失 {best} 出现在第 {step} 步，此后没有更低，可能已过拟合。",
        "The lowest validation loss, {best}, was at step {step} and was not reached again: the later steps may overfit.",
    ),
    "say_validation_not_finite": (
        "有 {n} 次验证的损失不是有限数，最早在第 {step} 步；以下只看其余各次。",
        "The validation loss is not finite in {n} validations, first at step {step}; what follows is about the others.",
    ),
    "say_validation_one": ("只做了一次验证：第 {step} 步，损失 {last}，困惑度 {last_ppl}。", "One validation was run: step {step}, loss {last}, perplexity {last_ppl}."),
    "say_no_validation": ("未进行验证，因此无法判断是否过拟合。", "No validation was run, so overfitting can't be judged."),
    "say_speed": (
        "训练用时 {time}，每秒处理 {speed} 个词元（各步中位数），峰值内存 {memory}。",
        "The steps took {time} at {speed} tokens per second (median step), with a peak memory of {memory}.",
    ),
    "say_speed_no_tokens": (
        "训练用时 {time}，峰值内存 {memory}；每秒处理的词元数未记录。",
        "The steps took {time}; peak memory: {memory}; tokens per second are not recorded.",
    ),
    "say_speed_unknown": (
        "有的步没有记录用时，因此总用时与速度不作陈述；峰值内存 {memory}。",
        "The time of some steps is not recorded, so none is stated; the peak memory was {memory}.",
    ),
    "say_score": (
        "{exam}：微调前 {before}，微调后 {after}（每题等权；{m} 科 {n} 题，随机猜测为 {chance}）。",
        "{exam}: {before} before tuning, {after} after (every question weighs the same; {n} questions of {m} subjects, guessing gives {chance}).",
    ),
    "say_score_only_after": (
        "{exam}：微调后 {after}（{m} 科 {n} 题，随机猜测为 {chance}）。微调前的模型未作此评测，因此无法判断变化。",
        "{exam}: {after} after tuning ({n} questions of {m} subjects, guessing gives {chance}). The model before tuning has no score in it, so no change can be stated.",
    ),
    "say_score_only_before": (
        "{exam}：微调前 {before}（{m} 科 {n} 题）。微调后的模型未作此评测，因此无法判断变化。",
        "{exam}: {before} before tuning ({n} questions of {m} subjects). The tuned model did not take it, so no change can be stated.",
    ),
    "say_no_evaluation": ("未进行评测，因此无法判断能力变化。", "No evaluation was run, so nothing can be said about ability."),
    "say_same": (
        "配对检验：两者在 {n} 道相同题目上逐题对错完全一致，没有差异。",
        "Paired test: on the {n} shared questions both are right and wrong on exactly the same ones: no difference.",
    ),
    "say_better": (
        "配对检验：得分提高 {size} 个百分点，具有统计显著性（95% 区间 {low} 至 {high}；McNemar 精确检验 {p}；{n} 题中仅{b}答对 {b_only} 题，仅{a}答对 {a_only} 题）。",
        "Paired test: {size} points better, significant (95% interval {low} to {high}; exact McNemar {p}; of {n} questions {b_only} are right only for {b}, {a_only} only for {a}).",
    ),
    "say_worse": (
        "配对检验：得分下降 {size} 个百分点，具有统计显著性（95% 区间 {low} 至 {high}；McNemar 精确检验 {p}；{n} 题中仅{b}答对 {b_only} 题，仅{a}答对 {a_only} 题）。",
        "Paired test: {size} points worse, significant (95% interval {low} to {high}; exact McNemar {p}; of {n} questions {b_only} are right only for {b}, {a_only} only for {a}).",
    ),
    "say_unclear": (
        "配对检验：得分变化 {difference} 个百分点，未达到统计显著（95% 区间 {low} 至 {high}；McNemar 精确检验 {p}；{n} 题中仅{b}答对 {b_only} 题，仅{a}答对 {a_only} 题）。",
        "Paired test: {difference} points, not significant (95% interval {low} to {high}; exact McNemar {p}; of {n} questions {b_only} are right only for {b}, {a_only} only for {a}).",
    ),
    "say_detectable": (
        "这不等于没有变化：这样规模的检验，有八成把握发现的差异约为 {detectable} 个百分点，更小的差异需要更多题目。",
        "That does not prove there is none: a test of this size finds a difference of {detectable} points four times in five; smaller ones need more questions.",
    ),
    "say_categories_some": (
        "分类别看（对 {k} 个类别作 Holm 校正）：显著的有 {yes}；不显著的有 {no}。",
        "By category (Holm's correction for {k} categories): significant in {yes}; not significant in {no}.",
    ),
    "say_categories_none": (
        "分类别看（对 {k} 个类别作 Holm 校正）：没有一个类别的变化显著（{no}）。",
        "By category (Holm's correction for {k} categories): no category's change is significant ({no}).",
    ),
    "say_categories_all": (
        "分类别看（对 {k} 个类别作 Holm 校正）：所有类别的变化均显著（{yes}）。",
        "By category (Holm's correction for {k} categories): the change is significant in every one ({yes}).",
    ),
    "say_pairs_below": ("各实验之间的两两比较见“评测得分”一节的配对检验表。", "The runs against each other: see the paired tests under Scores."),
    "say_between": ("{exam}：{b} 与 {a} 比较。", "{exam}: {b} against {a}."),
    # why something is not there
    "no_pairs": ("无法作配对检验：{why}。", "There is no paired test: {why}."),
    "why_no_predictions": ("{where} 缺少 predictions.jsonl", "{where} has no predictions.jsonl"),
    "why_empty_predictions": ("{where} 的 predictions.jsonl 中没有题目", "the predictions.jsonl of {where} holds no question"),
    "why_no_answers": ("题目没有公开答案", "the questions' answers are not public"),
    "why_other_data": ("两次评测的题目文件不同（校验值不一致）", "the two evaluations read different question files (their hashes differ)"),
    "why_other_questions": ("两次评测的题目不同（相同的只有 {n} 题）", "the two evaluations hold different questions (only {n} are the same)"),
    "warn_other_prompts": ("注意：两次评测的提示词不完全相同，差异可能来自提示词。", "Note: the two evaluations used different prompts; a difference may come from them."),
    "warn_other_template": (
        "注意：两次评测的对话模板不同，差异可能来自模板。",
        "Note: the two evaluations used different chat templates; a difference may come from them.",
    ),
    "warn_other_dtype": ("注意：两次评测的数值精度不同（{a} 与 {b}）。", "Note: the two evaluations used different number types ({a} and {b})."),
    "warn_other_model": (
        "注意：微调前的得分来自另一个模型（权重校验值与本次训练的起点不一致）。",
        "Note: the score before tuning is of another model (its weights' hash is not that of the model this run started from).",
    ),
    "note_baseline_gone": ("记录中的微调前评测 {path} 已找不到。", "The evaluation before tuning that the record names, {path}, can't be found."),
    "note_no_samples": ("没有保存回答样例（samples.jsonl）。", "No sample answers were kept (samples.jsonl)."),
    "note_no_manifest": ("数据没有清单，统计信息未记录。", "The data has no manifest; its statistics are not recorded."),
    "note_runs_one": ("只有一次评测，没有可比较的对象。", "There is a single evaluation, nothing to compare it with."),
    # figures
    "step_axis": ("步", "step"),
    "fig_loss": ("训练损失", "Training loss"),
    "fig_time": ("训练损失与用时", "Training loss against time"),
    "second_axis": ("秒", "seconds"),
    "minute_axis": ("分钟", "minutes"),
    "fig_time_note": ("横轴为累计训练用时；居中滑动平均（{w} 步）。", "Over the time the steps took; centred mean of {w} steps."),
    "fig_time_raw": ("横轴为累计训练用时。", "Over the time the steps took."),
    "fig_lr": ("学习率", "Learning rate"),
    "fig_grad": ("梯度范数（裁剪前）", "Gradient norm (before clipping)"),
    "fig_speed": ("吞吐量（词元/秒）", "Throughput (tokens per second)"),
    "fig_memory": ("峰值内存（GiB）", "Peak memory (GiB)"),
    "fig_scores": ("{exam}：各类别正确率与 95% 置信区间", "{exam}: accuracy by category, 95% intervals"),
    "fig_smooth": ("浅线为逐步数值，深线为 {w} 步居中滑动平均。", "Faint: every step. Strong: centred mean of {w} steps."),
    "fig_points": ("空心标记与虚线为验证损失。", "Hollow markers, dashed: validation loss."),
    "fig_no_points": ("未进行验证。", "No validation was run."),
    "fig_per_sample": ("单位：nat；先在样本内按词元平均，再按样本平均。", "Nats: the mean over samples of each sample's mean over its trained tokens."),
    "fig_per_token": ("单位：nat/词元。", "Nats per trained token."),
    "fig_per_micro-batch": ("单位：nat；各微批内按词元平均，再对微批平均（日志所记）。", "Nats: the mean over micro-batches of each one's mean over its trained tokens, as logged."),
    "fig_per_unknown": ("损失如日志所记，平均方式未记录。", "The loss as logged; how it is averaged is not recorded."),
    "fig_lanes": ("各实验量级不同，分别作图。", "The runs differ in scale, so each has a panel of its own."),
    "fig_changes": ("{exam}：差值（百分点）与 95% 配对区间", "{exam}: change in points, 95% paired intervals"),
    "fig_changes_note": ("区间未作多重比较校正；跨过 0 的区间与“没有变化”相容。", "Intervals are not corrected for their number; one that crosses 0 is compatible with no change."),
    "no_change": ("无变化", "no change"),
    "alt_curve": ("{title}。{parts}。", "{title}. {parts}."),
    "alt_curve_part": ("{label}：{y0}（第 {x0} {unit}）→ {y1}（第 {x1} {unit}）", "{label}: {y0} ({unit} {x0}) → {y1} ({unit} {x1})"),
    "alt_scores": ("{title}。{parts}。", "{title}. {parts}."),
    "chance": ("随机猜测", "guessing"),
    "intervals_note": (
        "每题等权的正确率用 Wilson 区间；每科等权的平均正确率用 MOVER 区间（由各科 Wilson 区间合成）；差值用 Newcombe 配对区间；显著性用 McNemar 双侧精确检验。均为 95%。Hard 与其他类别重叠。",
        "Accuracies over questions: Wilson intervals; means over subjects: MOVER intervals over the subjects' Wilson intervals; differences: Newcombe's paired intervals; significance: the exact two-sided McNemar test. All at 95%. Hard overlaps with the other categories.",
    ),
    # tables
    "item": ("项目", "Item"),
    "category": ("类别", "Category"),
    "subject": ("科目", "Subject"),
    "questions": ("题数", "Questions"),
    "micro": ("全部（每题等权）", "All (by question)"),
    "macro": ("全部（每科等权）", "All (by subject)"),
    "cat_STEM": ("理工", "STEM"),
    "cat_Social Science": ("社会科学", "Social Science"),
    "cat_Humanities": ("人文", "Humanities"),
    "cat_Other": ("其他", "Other"),
    "cat_Hard": ("Hard 难题", "Hard"),
    "tab_key": ("训练关键数据", "Key figures of the training"),
    "tab_scores": ("各类别正确率（方括号：95% 置信区间）", "Accuracy by category [95% interval]"),
    "tab_pairs": ("配对检验", "Paired tests"),
    "tab_subjects": ("各科目正确率", "Accuracy by subject"),
    "tab_data": ("数据统计", "Data statistics"),
    "tab_setup": ("训练设置", "Training set-up"),
    "tab_machine": ("机器", "Machine"),
    "tab_versions": ("软件版本", "Versions"),
    "tab_hashes": ("校验值（SHA-256）", "Hashes (SHA-256)"),
    "tab_settings": ("全部参数（“≠”表示各实验不同）", "All settings (≠: the runs differ)"),
    "pair": ("比较", "Pair"),
    "pair_arrow": ("{a} → {b}", "{a} → {b}"),
    "difference_interval": ("差值与 95% 区间", "Difference, 95% interval"),
    "one_right": ("仅前者对 / 仅后者对", "Only first / only second right"),
    "p_value": ("p 值", "p"),
    "steps": ("步数", "Steps"),
    "loss_first": ("起始训练损失", "Training loss, start"),
    "loss_last": ("最终训练损失", "Training loss, end"),
    "val_loss": ("验证损失（首次 → 末次）", "Validation loss (first → last)"),
    "no_validation": ("未进行", "not run"),
    "seen_samples": ("看过的样本数", "Samples seen"),
    "seen_tokens": ("处理的词元数", "Tokens processed"),
    "seen_trained": ("其中计入损失", "of these, in the loss"),
    "wall_time": ("训练用时", "Time of the steps"),
    "median_speed": ("吞吐量中位数（词元/秒）", "Median throughput (tokens/s)"),
    "peak_memory": ("峰值内存", "Peak memory"),
    "max_grad": ("最大梯度范数", "Largest gradient norm"),
    "trainable": ("可训练参数", "Trainable parameters"),
    "tile_loss": ("训练损失", "Training loss"),
    "tile_score": ("{exam} 正确率", "{exam} accuracy"),
    "tile_difference": ("差值（百分点）", "Difference (points)"),
    "tile_speed": ("词元/秒", "Tokens/s"),
    "tile_memory": ("峰值内存", "Peak memory"),
    "tile_trainable": ("可训练参数占比", "Trainable share"),
    "significant": ("显著", "significant"),
    "not_significant": ("不显著", "not\u00a0significant"),
    "significant_mark": ("圆括号内为与微调前之差（百分点），* 表示经 Holm 校正后显著。", "In round brackets: change in points; *: significant after Holm's correction."),
    # data
    "data_input": ("原始文件", "Input file"),
    "data_rows": ("原始记录数", "Input records"),
    "data_samples": ("样本数", "Samples"),
    "data_tokens": ("词元数", "Tokens"),
    "data_trained": ("计入损失的词元数", "Tokens in the loss"),
    "data_lengths": ("样本长度（词元）", "Sample length (tokens)"),
    "data_template": ("对话模板", "Chat template"),
    "data_handler": ("数据格式", "Record format"),
    "data_skipped": ("跳过的记录", "Skipped records"),
    "data_over_long": ("超长样本", "Over-long samples"),
    "data_duplicates": ("重复样本", "Duplicates"),
    "data_split": ("划分比例（训练、验证、测试）", "Split (train, validation, test)"),
    "data_train": ("训练集样本数", "Training samples"),
    "data_packed": ("预先拼接", "Packed in advance"),
    "packed_no": ("否", "no"),
    "packed_pack": ("是（pack）", "yes (pack)"),
    "packed_neat-pack": ("是（neat-pack）", "yes (neat-pack)"),
    "skip_wrong type": ("类型错误", "wrong type"),
    "skip_empty answer": ("回答为空", "empty answer"),
    "skip_empty prompt": ("问题为空", "empty prompt"),
    "skip_several answers": ("含多个回答", "several answers"),
    "skip_tool use": ("含工具调用", "tool use"),
    "skip_broken turn order": ("对话轮次错乱", "broken turn order"),
    "skip_missing column": ("缺少字段", "missing column"),
    "skip_not JSON": ("不是 JSON", "not JSON"),
    "skip_refused by the chat template": ("对话模板不接受", "refused by the chat template"),
    "skip_over-long": ("超长", "over-long"),
    # set-up
    "set_model": ("起点模型", "Model started from"),
    "set_kind": ("模型文件格式", "Checkpoint format"),
    "set_method": ("方法", "Method"),
    "set_dtype": ("数值精度", "Number type"),
    "set_lr": ("学习率（峰值 → 最低）", "Learning rate (peak → lowest)"),
    "set_batch": ("每步样本数（全局批大小）", "Samples a step (global batch size)"),
    "set_seq": ("最大序列长度", "Longest sequence"),
    "set_seq_model": ("模型上限", "the model's limit"),
    "set_lora": ("LoRA（秩 / alpha / dropout）", "LoRA (rank / alpha / dropout)"),
    "set_targets": ("LoRA 目标模块", "LoRA target modules"),
    "set_targets_all": ("全部线性层", "all linear layers"),
    "set_seed": ("随机种子", "Seed"),
    "set_warmup": ("预热", "Warmup"),
    "set_warmup_steps": ("{n} 步", "{n} steps"),
    "set_decay": ("权重衰减 / 梯度裁剪", "Weight decay / gradient clipping"),
    "set_reduction": ("损失归约", "Loss reduction"),
    "set_git": ("代码版本（git）", "Code (git commit)"),
    "machine_platform": ("操作系统", "Operating system"),
    "machine_processor": ("处理器", "Processor"),
    "machine_cores": ("核心数", "Cores"),
    "machine_memory_bytes": ("内存", "Memory"),
    "machine_device": ("计算设备", "Device"),
    "machine_threads": ("线程数", "Threads"),
    # hashes and commands
    "hash_model": ("起点模型权重", "Weights started from"),
    "hash_data": ("训练数据", "Training data"),
    "hash_input": ("原始数据文件", "Input file"),
    "hash_template": ("对话模板", "Chat template"),
    "hash_exam": ("{exam}的题目文件", "{exam}, question files"),
    "hash_prompts": ("{exam}的提示词", "{exam}, prompts"),
    "commands_recorded": ("训练命令（原样记录）", "Training, as recorded"),
    "commands_rebuilt": ("数据处理与评测命令（由记录的设置还原，默认值从略）", "Data and evaluation, put together from the recorded settings (defaults left out)"),
    "preprocess": ("数据处理", "data"),
    "eval_conditions": (
        "评测设置：{task}，{split} 集，{style} 提示词，{shots} 个示例，精度 {dtype}；{m} 科 {n} 题{limit}，用时 {seconds}；{ties}。",
        "Conditions: {task}, split {split}, prompt style {style}, {shots} examples, {dtype}; {n} questions of {m} subjects{limit} in {seconds}; {ties}.",
    ),
    "eval_limit": ("（每科至多 {n} 题）", " (at most {n} questions a subject)"),
    "near_ties": ("其中 {n} 题的前两名得分之差小于数值精度", "in {n} of them the best two letters are closer than the arithmetic can tell apart"),
    "near_ties_none": ("没有一题的前两名得分之差小于数值精度", "in none of them the best two letters are closer than the arithmetic can tell apart"),
    "near_ties_unknown": ("得分接近的题数未记录", "the number of near ties is not recorded"),
    "exam_name": ("{task}（{split}，{shots} 示例）", "{task} ({split}, {shots}-shot)"),
    "exam_name_style": ("{task}（{split}，{shots} 示例，{style}）", "{task} ({split}, {shots}-shot, {style})"),
    # samples
    "prompt": ("问题", "Prompt"),
    "sample_number": ("样例 {n}", "Sample {n}"),
    "cut": ("……（另有 {n} 个字符未显示）", "… ({n} more characters not shown)"),
    "empty_answer": ("（空回答）", "(empty answer)"),
    "samples_note": ("以下为模型原始输出，未作修改；保存的样例全部列出。", "The models' own words, unedited, all that were kept."),
    "samples_settings": ("生成设置：{settings}。", "Generated with: {settings}."),
    "tab_answers": ("回答统计", "The answers in figures"),
    "model": ("模型", "Model"),
    "answers": ("回答数", "Answers"),
    "mean_characters": ("平均字符数", "Mean length (characters)"),
    "repetition": ("重复率", "Repetition"),
    "stopped": ("自行结束", "Ended by itself"),
    "empty_answers": ("空回答", "Empty"),
    "answers_note": (
        "重复率：同一回答中此前已出现过的连续四词所占比例（汉字按字计）。“自行结束”指未因长度上限而截断。",
        "Repetition: share of runs of four words that came before in the same answer (a Chinese character counts as a word). Ended by itself: not cut at the longest length allowed.",
    ),
    "figures_in_html": ("图见同名 HTML 文件。", "The figures are in the HTML file of the same name."),
    **words_trust.WORDS,
    **words_sweep.WORDS,
}  # fmt: skip
"""The report's words; a test holds that both languages fill in the same names."""

DASH = "—"


class Words:
    """The table in one language: `words("summary")`, `words("say_score", exam=..., ...)`."""

    def __init__(self, lang: str) -> None:
        assert lang in LANGUAGES, lang
        self.lang = lang
        self._column = LANGUAGES.index(lang)

    def __call__(self, key: str, **values: Any) -> str:
        text = WORDS[key][self._column]
        if self.lang == "zh":
            return fill_chinese(text, values)
        return text.format(**values)

    def has(self, key: str) -> bool:
        return key in WORDS

    def named(self, prefix: str, value: Any) -> str:
        """A recorded key in words, or as it is where the table does not know it."""
        key = f"{prefix}_{value}"
        return self(key) if key in WORDS else str(value)

    def listed(self, items: list[str]) -> str:
        return self("separator").join(items)

    def or_missing(self, value: Any) -> str:
        return self("missing") if value is None or value == "" else str(value)

    def seconds(self, value: float) -> str:
        """Seconds as hours, minutes, seconds, the two largest units that matter."""
        if not math.isfinite(value):
            return self("missing")
        hour, minute, second = ("小时", "分", "秒") if self.lang == "zh" else ("h", "min", "s")
        if value < 10:
            return f"{value:.1f} {second}" if value >= 0.95 else f"{value:.2g} {second}"
        whole = round(value)
        if whole < 60:
            return f"{whole} {second}"
        if whole < 3600:
            return f"{whole // 60} {minute} {whole % 60} {second}"
        return f"{whole // 3600} {hour} {whole % 3600 // 60} {minute}"


def fill_chinese(text: str, values: dict[str, Any]) -> str:
    """Fill in `{name}`s: a space between a Chinese character and a Latin letter or figure, none between two Chinese ones.

    Spaces of the text beside a name count only where neither rule speaks; the values themselves stay as they are.
    """
    filled = ""
    for i, part in enumerate(re.split(r"\{(\w+)\}", text)):
        piece = str(values[part]) if i % 2 else part
        left, right = filled.rstrip(" "), piece.lstrip(" ")
        if i > 0 and left and right:
            kinds = {_script(left[-1]), _script(right[0])}
            if kinds == {"chinese"}:
                filled, piece = left, right
            elif kinds == {"chinese", "latin"}:
                filled, piece = left + " ", right
        filled += piece
    return filled


def _script(character: str) -> str:
    if "\u3400" <= character <= "\u9fff":
        return "chinese"
    return "mark" if character in "()[]{}（）【】“”‘’《》、，。；：！？…·" else "latin"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """A difference of shares in points, signed, with a true minus."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def number(value: float | int) -> str:
    """A count, or a figure with four significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def loss(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.4g}"


def rate(value: float) -> str:
    """A learning rate: 1e-4, 2.5e-5, 0."""
    if value == 0 or not math.isfinite(value):
        return str(value) if value else "0"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**28 else f"{value / 2**20:.0f} MiB"


def p_value(value: float) -> str:
    """Such as `p = 0.03`, with spaces that don't break."""
    return "p\u00a0" + (p_cell(value) if value < 0.001 else f"=\u00a0{p_cell(value)}")


def p_cell(value: float) -> str:
    """A p value under a heading that says what it is."""
    return "<\u00a00.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def difference_cell(value: float, low: float, high: float) -> str:
    """A difference of shares in points, its interval below."""
    return f"{points(value)}\n[{points(low)},\u00a0{points(high)}]"


def points_tick(difference: float) -> str:
    """A difference of shares as an axis has it, without the unit."""
    return f"{100 * difference:+.4g}".replace("-", "−") if difference else "0"

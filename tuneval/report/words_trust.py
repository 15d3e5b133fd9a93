"""The words for how far a score can be trusted; part of the table in report.words."""

from __future__ import annotations

WORDS: dict[str, tuple[str, str]] = {
    "tab_trust": ("得分可信到什么程度", "How far the scores can be trusted"),
    "trust_mean": ("该评测方式报告的平均", "Mean that the style's recipe reports"),
    "mean_micro": ("每题等权", "by question"),
    "mean_macro": ("每科等权", "by subject"),
    "trust_self_test": ("自检：答案就写在题中的题目", "Self-test: questions whose answer stands in them"),
    "trust_self_tested": ("{asked} 题答对 {right} 题", "{right} of {asked} right"),
    "trust_batch": ("自检：成批与单独评分之差", "Self-test: a batch against a question alone"),
    "trust_batch_difference": ("分数至多相差 {size}", "scores differ by {size} at most"),
    "trust_unparsed": ("读不出答案的回答（计为错）", "Replies without a readable answer (count as wrong)"),
    "trust_ties": ("前两名得分完全相等", "Best two answers exactly equal"),
    "trust_noise": ("以 fp32 复算", "Computed again in fp32"),
    "trust_noise_found": (
        "{n} 题中答案改变 {changed} 题；差距变化至多 {largest}，中位数 {median}",
        "of {n} questions {changed} get another answer; margins change by {largest} at most, {median} in the median",
    ),
    "trust_within": ("差距不超过该变化的题目", "Questions with no larger margin than that"),
    "trust_of": ("{all} 题中 {n} 题", "{n} of {all}"),
    "trust_contamination": ("与训练数据重合的题目", "Questions that stand in the training data"),
    "trust_contaminated": (
        "可判断的 {judged} 题中，{touched} 题与训练数据有 {run} 个词（字）以上连续相同，其中 {whole} 题全文都在其中",
        "of {judged} that can be judged, {touched} share {run} words in a row with it, {whole} stand in it whole",
    ),
    "trust_clean": ("其余 {n} 题的正确率为 {accuracy}", "of the {n} others {accuracy} are right"),
    "not_looked_at": ("未检查", "not looked at"),
    "trust_duplicates": ("重复的题目", "Repeated questions"),
    "trust_repeated": (
        "{repeated} 题重复（其中 {contradictory} 题答案不同）；{examples} 题也在示例中",
        "repeating another: {repeated} (with another answer: {contradictory}); among the worked examples: {examples}",
    ),
    "trust_answers": ("选择各选项的次数", "How often each answer is chosen"),
    "trust_note": (
        "“完全相等”时取靠前的选项。差距：最高分与次高分之差。重合按 13 个词或汉字的连续片段判断，较短的题目看全文。",
        "Equal answers: the first counts. Margin: best score minus the second. The training data is searched for runs of 13 words or Chinese characters, or for the whole of a shorter question.",
    ),
    "warn_chance": ("注意：{name}的得分没有显著高于随机猜测。", "Note: the score of {name} is not significantly above guessing."),
    "warn_one_answer": (
        "注意：{name}对 {n} 题中的 {most} 题都选择“{label}”，这是在选字母，不是在答题。",
        "Note: {most} of the {n} answers of {name} are {label}: it chooses a letter, not an answer.",
    ),
    "warn_self_test": (
        "注意：答案就写在题中的 {asked} 道自检题，{name}只答对 {right} 道：提示词或对话模板可能不适合它。",
        "Note: of {asked} self-test questions whose answer stands in them {name} has {right} right: the prompt or the chat template may not suit it.",
    ),
    "warn_unparsed": (
        "注意：{name}有 {n} 题（{share}）的回答读不出答案，计为错。",
        "Note: {n} replies ({share}) of {name} hold no readable answer and count as wrong.",
    ),
    "warn_contamination": (
        "注意：{judged} 题中有 {touched} 题与训练数据重合（{whole} 题全文）；其余 {n} 题的正确率为 {accuracy}。",
        "Note: {touched} of {judged} questions overlap with the training data ({whole} stand in it whole); of the {n} others {accuracy} are right.",
    ),
    "mean_of_subjects": ("每科等权之差与 95% 自助法区间", "Mean of subjects, 95% bootstrap interval"),
    "detectable": ("可发现的差值（百分点）", "Detectable difference (points)"),
    "pairs_note": (
        "自助法区间：在每科之内重抽题目 {resamples} 次（种子 {seed}）。可发现的差值：若真实差值这样大，这种规模的检验五次中有四次能发现；更小的差异需要更多题目。",
        "Bootstrap: the questions of every subject are drawn anew {resamples} times (seed {seed}). Detectable: a true difference that a test of this size finds four times in five; a smaller one needs more questions.",
    ),
    "subjects_mark": (
        "圆括号内为与微调前之差（百分点），* 表示对 {k} 个科目作 Holm 校正后显著。",
        "In round brackets: change in points; *: significant after Holm's correction for {k} subjects.",
    ),
}  # fmt: skip

"""The page: true to the records, whole, safe with untrusted text, silent about nothing that is missing."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import warnings
from pathlib import Path

import pytest
from browser import CHROMIUM, look
from pages import Page
from report_runs import (
    CONTAMINATION,
    HARD,
    make_all,
    make_evaluation,
    make_run,
    make_steps,
    rewrite,
    with_samples,
)

from tuneval.errors import UserError
from tuneval.evaluation import stats
from tuneval.evaluation.bootstrap import paired_bootstrap
from tuneval.evaluation.stats import paired
from tuneval.files import read_jsonl, write_jsonl
from tuneval.report.checks import read_predictions
from tuneval.report.findings import curve, holm, pair, pair_subjects, smoothing
from tuneval.report.gather import gather
from tuneval.report.parts.summary import label_of, summary_section
from tuneval.report.records import Comparison, SampleAnswer, Step, to_dict, write_record, write_records
from tuneval.report.render import fence, write_report
from tuneval.report.words import Words

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\n```\n# no heading\n|a|b|"


def report(root: Path, *runs: Path, lang: str = "en", **options) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html, *_ = write_report(tuple(runs), root / "out" / "report.html", lang, **options)
    return Page(html.read_text(encoding="utf-8"))


def said(*runs: Path, baseline: Path | None = None) -> str:
    """The summary's sentences alone: no figure is drawn."""
    t = Words("en")
    section = summary_section(gather(runs, baseline, lambda record: label_of(record, t)), t)
    return " ".join(
        text for block in section.blocks for text in getattr(block, "items", ()) or (getattr(block, "text", ""),)
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_all(root)
    return root


@pytest.fixture(scope="module", params=["zh", "en"])
def page(root, request) -> Page:
    return report(root, root / "run-lora", root / "run-full", lang=request.param)


def test_page_is_valid(page):
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))
    assert all(values.get("lang") in ("zh-CN", "en") for tag, values in page.tags if tag == "html")


def test_page_needs_nothing_from_outside(page):
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "img"} == set()
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    assert not re.search(r"url\((?!#)|@import", page.source)
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids)


def test_every_figure_has_words(page):
    figures = [values["id"] for tag, values in page.tags if tag == "figure"]
    assert figures == [
        f"figure-{n}" for n in ("loss", "lr", "grad", "speed", "time", "memory", "scores-0", "changes-0")
    ]
    labels = [values.get("aria-label", "") for tag, values in page.tags if values.get("role") == "img"]
    assert len(labels) == len(figures) and all(len(label) > 20 for label in labels)
    assert sum(tag == "svg" and values.get("class") != "swatch" for tag, values in page.tags) == len(figures)


def test_every_figure_links_to_its_data(page, root):
    """Data links hold what was drawn: the losses are those of metrics.jsonl."""
    links = [v for tag, v in page.tags if tag == "a" and "download" in v]
    assert [v["download"] for v in links] == [f"{v['id']}.csv" for tag, v in page.tags if tag == "figure"]
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(links[0]["href"].split("base64,")[1]).decode())))
    losses = [float(row["loss"]) for row in rows if row["run"].startswith("LoRA")]
    assert losses == [row["loss"] for row in read_jsonl(root / "run-lora" / "metrics.jsonl")]


def test_the_check_of_tags_sees_a_fault():
    assert Page("<div><p>x</div>").faults


def test_contrast_of_text():
    """Every colour of text reaches 4.5:1 on its grounds, in both schemes; marks reach 3:1 (WCAG AA)."""
    css = (Path(__file__).parents[2] / "tuneval/report/templates/report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*)\}", css)
    light, dark = (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", block)) for block in blocks[:2])
    for scheme in (light, {**light, **dark}):
        for name in ("--ink", "--muted", "--accent"):
            for ground in ("--surface", "--page", "--shade"):
                assert contrast(scheme[name], scheme[ground]) >= 4.5, (name, ground, scheme[name])
        assert contrast(scheme["--warn"], scheme["--warn-shade"]) >= 4.5
        for i in range(7):
            assert contrast(scheme[f"--run-{i}"], scheme["--surface"]) >= 3, i
    assert contrast("#777777", "#ffffff") < 4.5


def contrast(a: str, b: str) -> float:
    """Source: WCAG 2.1, contrast ratio."""
    first, second = sorted((luminance(a), luminance(b)), reverse=True)
    return (first + 0.05) / (second + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_sentences_hold_the_numbers(root):
    """What the page says is recomputed here from the files."""
    page = report(root, root / "run-lora")
    losses = [row["loss"] for row in read_jsonl(root / "run-lora" / "metrics.jsonl")]
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert (
        f"The training loss went from {first:.3f} to {last:.3f} (means of the first and the last 10 steps)" in page.text
    )
    before, after = (
        [row["correct"] for row in read_jsonl(folder / "predictions.jsonl")]
        for folder in (root / "base-evaluation", root / "run-lora/evaluation/ceval-official")
    )
    test = paired(before, after)
    assert f"{100 * test.a_accuracy:.1f}% before tuning, {100 * test.b_accuracy:.1f}% after" in page.text
    assert f"{100 * test.difference:.1f} points better, significant" in page.text
    assert f"95% interval {100 * test.low:+.1f} to {100 * test.high:+.1f}" in page.text
    assert (
        f"{test.b_only} are right only for the tuned model, {test.a_only} only for the model before tuning" in page.text
    )


def test_several_runs_stand_side_by_side(page):
    assert page.text.count("LoRA r=8") > 10
    assert re.search("LoRA r=8 (→|against) |与 LoRA r=8 比较", page.text)


def test_untrusted_text_is_escaped(tmp_path):
    lora, _, _ = make_all(tmp_path)
    with_samples(lora, [SampleAnswer(prompt=ATTACK, before=ATTACK, after=ATTACK)])
    rewrite(lora / "config.json", command=["tuneval", "tune", "--load", ATTACK], git=ATTACK)
    page = report(tmp_path, lora, title=ATTACK)
    assert page.faults == []
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()
    assert "<script>alert(1)</script>" in page.text, "shown as text"
    assert not any(name.startswith("on") for _, values in page.tags for name in values)


def test_untrusted_text_stays_inside_its_fence(tmp_path):
    lora, _, _ = make_all(tmp_path)
    with_samples(lora, [SampleAnswer(prompt="p", before=ATTACK, after="````\n" + ATTACK)])
    rewrite(lora / "config.json", config={"a|b": "<b>|*"})
    report(tmp_path, lora)
    outside, fenced = [], None
    for text in (tmp_path / "out" / "report.md").read_text(encoding="utf-8").splitlines():
        ticks = re.match(r"(`{3,})(text)?$", text)
        if fenced is None and ticks:
            fenced = ticks[1]
        elif fenced is not None and text == fenced:
            fenced = None
        elif fenced is None:
            outside.append(text)
    assert fenced is None
    assert not any("alert(" in text or "no heading" in text for text in outside)
    assert r"| a\|b | \<b\>\|\* |" in outside


def test_fence_is_longer_than_any_inside():
    assert fence("a```b").startswith("````text\n") and fence("a").startswith("```text\n")


def test_the_same_input_gives_the_same_page(root):
    pages = [report(root, root / "run-lora", root / "run-full").source for _ in range(2)]
    assert pages[0] == pages[1]


def test_what_is_missing_is_said(tmp_path):
    run = make_run(tmp_path / "run", steps=5, validate=False, samples=False, data={}, git=None)
    text = report(tmp_path, run).text
    assert "No validation was run" in text
    assert "No evaluation was run" in text
    assert "No sample answers were kept" in text
    assert "The data has no manifest" in text
    assert "not recorded" in text


def test_a_run_without_steps(tmp_path):
    run = make_run(tmp_path / "run", samples=False, validate=False)
    (run / "metrics.jsonl").unlink()
    page = report(tmp_path, run)
    assert "No training step is recorded" in page.text and page.faults == []


def test_an_unfinished_run_is_called_so(tmp_path):
    run = make_run(tmp_path / "run", steps=30)
    rewrite(run / "config.json", train_iters=100)
    assert "100 steps were planned, the record ends at step 30" in said(run)


def test_a_loss_that_is_not_finite_is_called_so(tmp_path):
    run = make_run(tmp_path / "run", steps=30)
    steps = make_steps(30)
    steps[20] = Step(**{**to_dict(steps[20]), "loss": math.nan, "grad_norm": math.inf})
    write_records(run / "metrics.jsonl", steps)
    page = report(tmp_path, run)
    assert "not finite in 1 of the steps, first in step 21" in page.text and page.faults == []


@pytest.mark.parametrize("steps", [1, 2, 19, 20])
def test_few_steps(tmp_path, steps):
    page = report(tmp_path, make_run(tmp_path / "run", steps=steps))
    assert page.faults == [] and "training loss" in page.text.lower()


def test_no_baseline_is_said(tmp_path):
    run = make_run(tmp_path / "run")
    make_evaluation(run / "evaluation" / "ceval-official", 0.5)
    page = report(tmp_path, run)
    assert "The model before tuning has no score in it, so no change can be stated" in page.text
    assert "points better" not in page.text and "figure-changes-0" not in page.ids


def test_what_limits_the_comparison_of_two_runs_is_said(tmp_path):
    lora, full, _ = make_all(tmp_path)
    before = said(lora, full).count("used different chat templates")
    rewrite(full / "evaluation" / "ceval-official" / "results.json", template_fingerprint="00" * 32)
    assert (before, said(lora, full).count("used different chat templates")) == (0, 2)  # before and full; LoRA and full


def test_models_that_took_different_exams(tmp_path):
    baseline = make_evaluation(tmp_path / "before", 0.4)
    run = make_run(tmp_path / "run", steps=3, baseline=baseline)
    make_evaluation(run / "evaluation" / "ceval-lm_eval", 0.5, style="lm_eval")
    text = said(run)
    assert "The tuned model did not take it" in text and "The model before tuning has no score in it" in text
    assert "was not evaluated" not in text


def test_baseline_that_is_gone_is_said(tmp_path):
    run = make_run(tmp_path / "run", baseline=tmp_path / "moved-away")
    assert f"{tmp_path}/moved-away, can't be found" in said(run)


def test_baseline_from_the_flag_and_beside_the_run(tmp_path):
    lora, _, baseline = make_all(tmp_path)
    rewrite(lora / "config.json", baseline_evaluation=None)
    assert "Paired test" not in said(lora)
    assert "Paired test" in said(lora, baseline=baseline)
    assert "Paired test" in said(lora, baseline=baseline / "results.json")
    rewrite(lora / "config.json", baseline_evaluation="base-evaluation")
    assert "Paired test" in said(lora)


def test_baseline_from_the_comparison(tmp_path):
    """`evaluate --compare` names the result before tuning; it counts where it scored the weights the run began with."""
    lora, full, baseline = make_all(tmp_path)
    for run in (lora, full):
        rewrite(run / "config.json", baseline_evaluation=None)
    figures = {"n": 1, "a_accuracy": 0, "b_accuracy": 0, "difference": 0, "low": 0, "high": 0, "a_only": 0, "b_only": 0}
    place = lora / "evaluation" / "ceval-official" / "comparison.json"
    write_record(place, Comparison(a=str(baseline), b="b", p_value=1.0, verdict="", **figures))
    assert "before tuning" in said(lora) and "Paired test" in said(lora)
    rewrite(baseline / "results.json", model={"path": "other", "weights_sha256": "00" * 32})
    assert "Paired test" not in said(lora)


def test_other_baselines_are_an_error(tmp_path):
    lora, full, _ = make_all(tmp_path)
    other = make_evaluation(tmp_path / "other", 0.4)
    rewrite(full / "config.json", baseline_evaluation=str(other))
    with pytest.raises(UserError, match="choose one with --baseline"):
        report(tmp_path, lora, full)


def test_not_significant_is_said(tmp_path):
    lora, _, baseline = make_all(tmp_path)
    rows = read_jsonl(baseline / "predictions.jsonl")
    rows[0]["correct"], rows[1]["correct"] = not rows[0]["correct"], not rows[1]["correct"]
    write_jsonl(lora / "evaluation" / "ceval-official" / "predictions.jsonl", rows)
    text = said(lora)
    assert "points, not significant" in text and "That does not prove there is none" in text
    write_jsonl(
        lora / "evaluation" / "ceval-official" / "predictions.jsonl", read_jsonl(baseline / "predictions.jsonl")
    )
    assert "exactly the same ones: no difference" in said(lora)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data_sha256": "00" * 32}, "read different question files"),
        ({"dtype": "fp32"}, "different number types"),
        ({"template_fingerprint": "00" * 32}, "used different chat templates"),
        ({"model": {"path": "other", "weights_sha256": "00" * 32}}, "the score before tuning is of another model"),
    ],
)
def test_what_limits_the_comparison_is_said(tmp_path, change, words):
    lora, _, baseline = make_all(tmp_path)
    rewrite(baseline / "results.json", **change)
    assert words in said(lora)


def test_what_a_score_says_about_itself_is_shown(root):
    """Self-test, ties, fp32, contamination of results.json; bootstrap and detectable difference of the pair."""
    text = report(root, root / "run-lora").text
    for words in (
        "Mean that the style's recipe reports by subject by subject",
        "4 of 4 right",
        "scores differ by 0.062 at most",
        "Best two answers exactly equal 22 of 281",
        "of 16 questions 2 get another answer; margins change by 0.094 at most, 0.031 in the median",
        "Questions with no larger margin than that 37 of 281",
        "of 270 that can be judged, 9 share 13 words in a row with it, 3 stand in it whole; of the 261 others 47.5% are right",
        "repeating another: 1 (with another answer: 0); among the worked examples: 2",
    ):
        assert words in text, words
    a, b = (
        read_predictions(folder / "predictions.jsonl")
        for folder in (root / "base-evaluation", root / "run-lora/evaluation/ceval-official")
    )
    right: list[dict[str, list[bool]]] = [{}, {}]
    for found, rows in zip(right, (a, b)):
        for row in rows:
            found.setdefault(row.subject, []).append(row.correct)
    drawn = paired_bootstrap(*right)
    low, high = (f"{100 * end:+.1f}" for end in drawn.macro)
    assert f"{100 * drawn.macro_difference:+.1f} [{low}, {high}]" in text
    test = paired([r.correct for r in a], [r.correct for r in b])
    assert f"significant {100 * test.detectable:.1f} {100 * drawn.macro_difference:+.1f}" in text


@pytest.mark.parametrize(
    "change, words",
    [
        ({"at_chance": True}, "the score of the tuned model is not significantly above guessing"),
        ({"answers": {"A": 260, "B": 21}}, "260 of the 281 answers of the tuned model are A"),
        ({"self_test": {"trivial": 4, "trivial_right": 1, "largest_batch_difference": None}}, "of 4 self-test questions"),
        ({"unparsed": 40}, "40 replies (14.2%) of the tuned model hold no readable answer"),
        ({"contamination": CONTAMINATION}, "9 of 270 questions overlap with the training data (3 stand in it whole)"),
    ],
)  # fmt: skip
def test_what_limits_a_score_is_said_with_it(tmp_path, change, words):
    run = make_run(tmp_path / "run", steps=3)
    make_evaluation(run / "evaluation" / "ceval-official", 0.5)
    assert words not in said(run)
    rewrite(run / "evaluation" / "ceval-official" / "results.json", **change)
    assert words in said(run)


def test_subjects_are_marked_after_the_correction_for_their_number(tmp_path):
    baseline = make_evaluation(tmp_path / "base", 0.4)
    run = make_run(tmp_path / "run", steps=3, baseline=baseline)
    make_evaluation(run / "evaluation" / "ceval-official", 0.6, seed=1)
    gathered = gather((run,), None, lambda record: "x")
    before, after = gathered.baseline[gathered.exams[0]], gathered.runs[0].evaluations[gathered.exams[0]]
    p_values = {name: test.p_value for name, test in pair_subjects(before, after).items()}
    expected = {name for name, p in stats.holm(p_values).items() if p <= 0.05}
    assert 0 < len(expected) < sum(p <= 0.05 for p in p_values.values())
    text = report(tmp_path, run).text
    table = text[text.index("Accuracy by subject") : text.index("significant after Holm's correction for 10 subjects")]
    marked = re.findall(r"([a-z ]+) \d+ [\d.]+% [\d.]+% \([+−]?[\d.]+\*\)", table)
    assert {name.strip().replace(" ", "_") for name in marked} == expected


def test_a_part_of_the_exam_is_called_so(tmp_path):
    lora, _, _ = make_all(tmp_path)
    assert "281 questions of 10 subjects" in said(lora)
    rewrite(lora / "evaluation" / "ceval-official" / "results.json", config={"limit": 12})
    assert "at most 12 questions a subject" in report(tmp_path, lora).text


def test_no_predictions_no_test(tmp_path):
    lora, _, baseline = make_all(tmp_path)
    (baseline / "predictions.jsonl").unlink()
    assert f"There is no paired test: {baseline} has no predictions.jsonl" in said(lora)


def test_other_questions_no_test(tmp_path):
    lora, _, baseline = make_all(tmp_path)
    write_jsonl(baseline / "predictions.jsonl", read_jsonl(baseline / "predictions.jsonl")[:-1])
    assert "hold different questions (only 280 are the same)" in said(lora)


def test_the_unit_of_the_loss_follows_the_reduction(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    assert "Nats per trained token" in report(tmp_path, run).text
    rewrite(run / "config.json", config={"loss_reduction": "sample"})
    text = report(tmp_path, run).text
    assert "each sample's mean" in text and "Nats per trained token" not in text


def test_other_prompts_are_said(tmp_path):
    lora, _, baseline = make_all(tmp_path)
    rows = read_jsonl(baseline / "predictions.jsonl")
    write_jsonl(baseline / "predictions.jsonl", [{**row, "prompt_sha256": "00"} for row in rows])
    assert "used different prompts" in said(lora)


def test_pair_is_right_whatever_the_order(tmp_path):
    """Questions are matched by subject and id; the categories hold their own questions."""
    lora, _, baseline = make_all(tmp_path)
    rows = read_jsonl(baseline / "predictions.jsonl")
    gathered = gather((lora,), None, lambda record: "x")
    key = gathered.exams[0]
    straight = pair(gathered.baseline[key], gathered.runs[0].evaluations[key])
    write_jsonl(baseline / "predictions.jsonl", rows[::-1])
    turned = pair(gather((lora,), None, lambda record: "x").baseline[key], gathered.runs[0].evaluations[key])
    assert straight.test == turned.test and straight.categories == turned.categories
    assert straight.categories["Hard"].n == sum(row["subject"] in HARD for row in rows)
    assert sum(straight.categories[c].n for c in straight.categories if c != "Hard") == straight.test.n


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == {"a", "d"}  # 0.05 / (4, 3, 2, 1), stops at 0.03
    assert holm({"a": 0.04}) == {"a"} and holm({"a": 0.04, "b": 0.9}) == set() and holm({}) == set()


def test_curve_and_smoothing():
    assert curve(()) is None
    found = curve(tuple(make_steps(200)))
    assert found.steps == 200 and found.window == 10 and found.samples == 3200
    assert [smoothing(n) for n in (1, 19, 20, 100, 1000)] == [1, 1, 5, 5, 51]


def test_equal_labels_get_their_folder(root, tmp_path):
    again = make_run(tmp_path / "second", steps=10)
    page = report(tmp_path, root / "run-lora", again)
    assert "LoRA r=8 · run-lora" in page.text and "LoRA r=8 · second" in page.text


def test_settings_that_differ_are_marked(page):
    assert "≠ lr " in page.text and "≠ seed " not in page.text


def test_commands_and_hashes(page):
    assert "tuneval tune \\ --load models/qwen2.5-0.5b-instruct \\ --data-path data/alpaca" in page.text
    assert (
        "tuneval evaluate \\ --load models/qwen2.5-0.5b-instruct \\ --task-data-path data/ceval-exam.zip" in page.text
    )
    for digest in ("c3" * 32, "cd" * 32, "ab" * 32, "7e" * 32, "e1" * 32, "f2" * 32, "1f" * 20):
        assert digest in page.text


def test_not_run_folders(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        said(tmp_path / "nowhere", tmp_path / "empty", root / "run-lora", root / "run-lora")
    text = str(caught.value)
    assert "3 problems" in text and "no such folder" in text and "holds no config.json" in text and "twice" in text
    with pytest.raises(UserError, match=r"holds no results\.json"):
        report(tmp_path, root / "run-lora", baseline=tmp_path / "empty")


def test_a_broken_line_is_named(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    rows = read_jsonl(run / "metrics.jsonl")
    write_jsonl(run / "metrics.jsonl", [rows[0], {**rows[1], "loss": None}, rows[2]])
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: loss must be a number, found null"):
        report(tmp_path, run)


def test_a_long_answer_is_cut_and_said(tmp_path):
    run = with_samples(make_run(tmp_path / "run", steps=3), [SampleAnswer(prompt="p", before="a" * 5000, after="")])
    text = report(tmp_path, run).text
    assert "… (2,000 more characters not shown)" in text and "(empty answer)" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
@pytest.mark.parametrize("width", [1280, 768, 390])
def test_a_browser_shows_it(page, tmp_path, width):
    """A real browser: nothing on its console, every figure there, nothing wider than the window."""
    seen = look(page.source, tmp_path, width)
    assert seen.console == ""
    assert seen.drawn == 8
    assert seen.scroll_width <= width


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_the_browser_check_sees_faults(tmp_path):
    wide = "<html><body><script>nowhere()</script><div style='width: 400px'>x</div></body></html>"
    seen = look(wide, tmp_path, 390)
    assert "nowhere is not defined" in seen.console and seen.scroll_width > 390 and seen.drawn == 0


def test_a_setting_of_zero_stays_in_the_command(tmp_path):
    """`--shots 0` is not the default of 5."""
    lora, _, _ = make_all(tmp_path)
    place = lora / "evaluation" / "ceval-official" / "results.json"
    rewrite(place, config={"load": "m", "shots": 0})
    assert "tuneval evaluate \\ --load m \\ --shots 0" in report(tmp_path, lora).text

"""The comparison report: valid, self-contained, every figure there with its data, and true to the records."""

from __future__ import annotations

import base64
import csv
import io
import math
import re

import pytest
from browser import CHROMIUM, look
from pages import Page
from report_runs import SAMPLES, make_evaluation, make_run, with_samples
from sweep_runs import make_sweep, read

from tuneval.cli import main
from tuneval.errors import UserError
from tuneval.files import read_json
from tuneval.report import charts
from tuneval.report.records import SampleAnswer, Validation, write_records
from tuneval.report.sweep import spelling
from tuneval.report.sweep.gather import gather_sweep
from tuneval.report.sweep.render import write_sweep_report
from tuneval.report.sweep.runs import cost_section
from tuneval.report.sweep.summary import analyse, sentences
from tuneval.report.words import Words
from tuneval.sweep.state import DONE, SweepState, open_sweep
from tuneval.sweep.steps import make_plan

FIGURES = ["effect-0", "effect-1", "heat-0", "against", "categories", "cost", "overlay-axis-0", "overlay-axis-1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    plan = make_sweep(folder, failing="lora_r=4, lr=3e-3", unfinished="lora_r=16, lr=3e-3", seeds=[1, 2])
    for job in plan.jobs:
        if (job.run / "config.json").is_file():
            with_samples(
                job.run, [SampleAnswer(**{**vars(s), "after": (s.after or "") + job.point.id}) for s in SAMPLES]
            )
    return folder / "out"


@pytest.fixture(scope="module", params=["zh", "en"])
def source(folder, request, tmp_path_factory) -> str:
    output = tmp_path_factory.mktemp("page") / "report.html"
    assert [p.suffix for p in write_sweep_report(folder, output, request.param)] == [".html", ".md", ".csv", ".json"]
    return output.read_text(encoding="utf-8")


def said(folder, lang: str = "en") -> str:
    t, sweep = Words(lang), gather_sweep(folder)
    found = list(sentences(sweep, analyse(sweep), t))
    assert all(found)
    return " ".join(found).replace("\u00a0", " ")


def test_page_is_valid_and_whole(source):
    page = Page(source)
    assert page.faults == [] and len(page.ids) == len(set(page.ids))
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "img"} == set()
    assert all(link.startswith("#") or link.startswith("data:") for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_every_figure_is_there_with_words_and_data(source):
    assert re.findall(r'<figure id="figure-([^"]+)"', source) == FIGURES
    labels = re.findall(r'role="img" aria-label="([^"]+)"', source)
    assert len(labels) == len(FIGURES) and all(len(label) > 20 for label in labels)
    links = re.findall(r'download="figure-([^"]+)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', source)
    assert [name for name, _ in links] == FIGURES
    for _, data in links:
        rows = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))
        assert rows and all(None not in row.values() for row in rows)


def test_the_figures_data_are_the_records(source, folder):
    data = re.search(r'figure-effect-0\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', source)[1]
    for row in csv.DictReader(io.StringIO(base64.b64decode(data).decode())):
        result = read_json(folder / "points" / row["run"] / "evaluation/ceval-official/results.json")
        assert float(row["score"]) == result["micro"]["accuracy"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(source, tmp_path, width):
    seen = look(source, tmp_path, width)
    assert seen.console == "" and seen.scroll_width <= width and seen.drawn == len(FIGURES)


def test_failed_and_unfinished_points_are_told(source, folder):
    assert "&lt;b&gt;no&lt;/b&gt; such rank" in source and "<b>no</b>" not in source
    text = said(folder)
    assert "7 settings, 14 runs; 10 are done." in text
    assert "#3 lora_r=4, lr=3e-3; seed 1, 2 failed (tune): ValueError: <b>no</b> such rank" in text


def test_the_analysis_says_what_is_and_is_not_significant(folder):
    text = said(folder)
    assert "The best setting by score is #5 lora_r=16, lr=1e-3" in text and "(mean of 2 seeds)" in text
    assert re.search(r"points above the model before tuning, significant after Holm's correction for 5 settings", text)
    assert re.search(
        r"lora_r: 16 is best \(mean [\d.]+%\), 4 worst \([\d.]+%\), [\d.]+ points apart \(95% interval \+", text
    )
    assert "choosing it makes its figure look better than it is" in text
    assert "With another seed the same setting's score varies" in text
    chinese = said(folder, "zh")
    assert "得分最优的设置是 #5 lora_r=16, lr=1e-3" in chinese and "作 Holm 校正后显著" in chinese


def test_one_seed_is_said(tmp_path):
    make_sweep(tmp_path)
    assert "Every setting was run with one seed" in said(tmp_path / "out")


def test_a_difference_that_seeds_could_make_is_called_so(tmp_path):
    """Significant on these questions, but another seed of the same setting is as far away."""
    plan = make_sweep(tmp_path, axes={"lora_r": [16], "lr": [1e-3]}, points=None, seeds=[1, 2])
    for job, skill in zip(plan.jobs, (0.5, 0.95)):
        make_evaluation(job.run / "evaluation/ceval-official", skill)
    assert "But other seeds alone would change as much" in said(tmp_path / "out")


def test_losses_alone(tmp_path):
    make_sweep(tmp_path, evaluate=None, points=None)
    text = said(tmp_path / "out")
    assert "The best setting by validation loss is #5" in text and "It is the lowest of 6" in text
    assert "3 comparisons alone can't reach 0.05, so nothing is claimed" in text
    html, markdown, *_ = write_sweep_report(tmp_path / "out", tmp_path / "r.html", "en")
    assert "Against the model before tuning" not in html.read_text(encoding="utf-8")
    assert "| 16 |" in markdown.read_text(encoding="utf-8")


def test_scores_are_shares_where_losses_decide(tmp_path):
    make_sweep(tmp_path, objective="validation_loss", axes={"lora_r": [4, 16]}, points=None)
    *_, data = write_sweep_report(tmp_path / "out", tmp_path / "r.html", "en")
    blocks = [block for section in read_json(data)["sections"] for block in section["blocks"]]
    (table,) = (b for b in blocks if "every setting against the model" in b.get("title", ""))
    column = table["head"].index("Score")
    assert [re.fullmatch(r"\d+\.\d%", row[column]) is not None for row in table["rows"]] == [True, True]


def test_a_setting_that_came_apart_is_not_the_best(tmp_path):
    """Its last validation loss is no number, which is less than none."""
    plan = make_sweep(tmp_path, evaluate=None, points=None, seeds=[1, 2])
    apart = [Validation(step=1, loss=0.5, perplexity=2.0), Validation(step=40, loss=math.nan, perplexity=math.nan)]
    write_records(plan.jobs[0].run / "validation.jsonl", apart)
    text = said(tmp_path / "out")
    assert "The best setting by validation loss is #5" in text and "It is the lowest of 5" in text
    assert "The validation loss of #1 lora_r=4, lr=1e-4 is not finite" in text and "mean nan" not in text
    assert "#1 lora_r=4, lr=1e-4 的验证损失不是有限数" in said(tmp_path / "out", "zh")


def test_the_lowest_validation_loss_is_a_number(tmp_path):
    plan = make_sweep(tmp_path, points=None)
    apart = [Validation(step=40, loss=math.nan, perplexity=math.nan)]
    assert plan.jobs[4].point.label == "lora_r=16, lr=1e-3"
    write_records(plan.jobs[4].run / "validation.jsonl", apart)
    assert "The lowest validation loss is that of #2 lora_r=4, lr=1e-3 (1.4425)" in said(tmp_path / "out")


def test_nothing_done_yet(tmp_path):
    make_sweep(tmp_path, axes={"lr": [1e-4, 1e-3]}, points=None, failing="lr=1e-4", unfinished="lr=1e-3")
    assert "No run has come to a result" in said(tmp_path / "out")
    assert write_sweep_report(tmp_path / "out", tmp_path / "r.html", "zh")[0].is_file()


def test_records_that_are_no_objects_are_told(tmp_path):
    plan = make_sweep(tmp_path)
    state = next((plan.folder / "state").iterdir())
    for path in (state, plan.folder / "sweep.json"):
        path.write_text("[]")
        with pytest.raises(UserError, match=rf"{path.name}: must hold a JSON object, found a list"):
            gather_sweep(plan.folder)


def test_base_full_and_lora_stand_side_by_side(source):
    cards = source.split('<article class="sample">')[1:]
    assert len(cards) == len(SAMPLES)
    assert all(card.count('class="answer"') == 3 for card in cards)
    assert "lora_r-16.lr-1e-3" in cards[0] and "full" in cards[0]


def test_the_winning_command_is_there(source):
    assert "--lora-r 8" in source or "tuneval tune" in source
    winner = source[source.index('id="winner"') :]
    assert "tuneval tune" in winner[:2000]


def test_json_and_csv_hold_every_run(folder, tmp_path):
    *_, table, data = write_sweep_report(folder, tmp_path / "r.html", "en")
    points = read_json(data)["points"]
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    assert len(points) == len(rows) == 14
    assert [p["status"] for p in points].count("failed") == 2
    assert [r["lora_r"] for r in rows[:2]] == ["4", "4"] and rows[0]["score"] == str(points[0]["score"])
    assert any(b["kind"] == "figures" for s in read_json(data)["sections"] for b in s["blocks"])


def test_the_same_records_give_the_same_page(folder, tmp_path):
    pages = [write_sweep_report(folder, tmp_path / f"{i}.html", "zh")[0].read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


def test_report_takes_a_sweeps_folder(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--output", str(tmp_path / "r.html"), "--lang", "en", "--title", "Mine"]) == 0
    assert "<h1>Mine</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(capsys.readouterr().out.split()) == 4


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match=r"holds no sweep\.json"):
        gather_sweep(tmp_path)


def test_tick_labels_are_the_ticks(folder):
    """Steps of 1.5 points must not be rounded to 33%, 34%, 36%."""
    tick = spelling.tick(gather_sweep(folder))
    assert [tick(v) for v in (0.3, 0.315, 0.33, 0.345)] == ["30%", "31.5%", "33%", "34.5%"]


def test_labels_of_columns_are_whole_where_two_lines_hold_them():
    columns = ["STEM", "Social Science", "Humanities", "Incomprehensibilities"]
    svg = charts.heat_map(["a"], columns, [[0.1, 0.2, None, 0.0]], [["1", "2", "3", "4"]], name="x", middle=0.0)
    words = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"STEM", "Social", "Science", "Humanities"} <= set(words) and "Social Science" not in words
    assert any(word.startswith("Incom") and word.endswith("…") for word in words)


def test_the_name_of_a_line_stands_where_no_dot_is():
    def place(*costs: float) -> float:
        dots = [charts.CostDot(number=i, cost=c, value=v) for i, (c, v) in enumerate(zip(costs, (0.26, 0.9)), 1)]
        svg = charts.cost(dots, name="x", x_label="s", x_format=str, y_format=str, line=0.25, line_label="before")
        return float(re.search(r"<text [^>]*?(?:x=\"|translate\()([\d.]+)[^>]*>before<", svg)[1])

    assert place(1.0, 9.0) > 200 > place(9.0, 1.0)


def test_a_score_s_interval_ends_at_all_right(tmp_path):
    make_sweep(tmp_path, axes={"lora_r": [4, 16]}, points=None)
    for place in (tmp_path / "out").glob("points/*/evaluation/*"):
        make_evaluation(place, 1.1, seed=1)
    sweep = gather_sweep(tmp_path / "out")
    analysis = analyse(sweep)
    assert all(sweep.mean(s) == 1.0 for s in sweep.settings) and all(
        a.test.high > a.test.mean for a in analysis.against
    )
    drawn: list[charts.CostDot] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "cost", lambda dots, **_: drawn.extend(dots) or "")
        cost_section(sweep, analysis, Words("en"))
    assert [dot.high for dot in drawn] == [1.0, 1.0] and all(dot.low < 1 for dot in drawn)


def test_equal_settings_are_said_to_be_equal(tmp_path):
    plan = make_sweep(tmp_path, axes={"lora_r": [4, 16]}, points=None)
    for job in plan.jobs:
        make_evaluation(job.run / "evaluation" / "ceval-official", 0.6, seed=1)
    text = said(tmp_path / "out")
    assert "#2 lora_r=16 came to the same figure; it only stands first." in text
    assert "choose different settings" not in text and "(#2 lora_r=16) also has the highest score" in text


def test_a_random_sample_has_no_map_of_empty_cells(tmp_path):
    axes = {"lr": {"min": 1e-5, "max": 1e-3, "log": True}, "lora_r": {"min": 2, "max": 64, "whole": True}}
    plan = make_plan(read(tmp_path, axes=axes, points=None, sample={"count": 4, "seed": 3}), tmp_path / "out")
    open_sweep(plan)
    state = SweepState(plan.folder)
    for number, job in enumerate(plan.jobs):
        make_evaluation(job.baseline, 0.4)
        make_run(job.run, steps=5, seed=number)
        make_evaluation(job.steps[-1].output.parent, 0.5, seed=number)
        for step in job.steps:
            state.record(step, DONE, 1.0)
    write_sweep_report(tmp_path / "out", tmp_path / "r.html", "en")
    ids = Page((tmp_path / "r.html").read_text(encoding="utf-8")).ids
    assert {"figure-effect-0", "figure-effect-1", "figure-cost"} <= set(ids) and "figure-heat-0" not in ids

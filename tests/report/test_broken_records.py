"""Records that a hand, a full disk or another program spoilt: a clear error with file and key, or a page that says so."""

from __future__ import annotations

import json
import math

import pytest
from report_runs import make_all, make_evaluation, make_run, make_steps, make_validations, rewrite, with_samples

from tuneval.cli import main
from tuneval.errors import UserError
from tuneval.files import read_json, read_jsonl, write_json, write_jsonl
from tuneval.report.comparison import compare_results
from tuneval.report.records import Step, Validation, to_dict, write_records
from tuneval.report.render import write_report
from tuneval.report.tables import print_comparison


def page_of(root, *runs, **options) -> str:
    html, *_ = write_report(tuple(runs), root / "out" / "report.html", "en", **options)
    return html.read_text(encoding="utf-8")


@pytest.fixture
def pair_of_results(tmp_path):
    return make_evaluation(tmp_path / "a", 0.4), make_evaluation(tmp_path / "b", 0.5, seed=1)


def test_predictions_without_a_question(pair_of_results, tmp_path):
    a, b = pair_of_results
    (a / "predictions.jsonl").write_text("")
    with pytest.raises(UserError, match=r"a/predictions\.jsonl: holds no question"):
        compare_results(a, b)
    run = make_run(tmp_path / "run", baseline=a)
    make_evaluation(run / "evaluation" / "ceval-official", 0.5)
    assert f"the predictions.jsonl of {a} holds no question" in page_of(tmp_path, run)


def test_a_question_that_stands_twice(pair_of_results, tmp_path):
    a, b = pair_of_results
    rows = read_jsonl(b / "predictions.jsonl")
    write_jsonl(b / "predictions.jsonl", [*rows, rows[3]])
    with pytest.raises(UserError, match=r"b/predictions\.jsonl: 1 questions stand in it more than once"):
        compare_results(a, b)
    with pytest.raises(UserError, match="more than once"):
        page_of(tmp_path, make_run(tmp_path / "run"), baseline=b)


@pytest.mark.parametrize(
    "place, value, said",
    [
        (("subjects", "law", "category"), None, r"subjects\.law\.category must be a text, found null"),
        (("micro",), {}, r"micro\.accuracy must be a share from 0 to 1, found nothing"),
        (("micro", "accuracy"), math.nan, r"micro\.accuracy must be a share from 0 to 1, found NaN"),
        (("macro", "low"), "0.2", r"macro\.low must be a share from 0 to 1, found \"0\.2\""),
        (("categories", "STEM", "accuracy"), 40, r"categories\.STEM\.accuracy must be a share"),
        (("subjects", "law", "high"), True, r"subjects\.law\.high must be a share"),
        (("micro", "high"), None, r"micro\.high must be a share from 0 to 1, found nothing"),
        (("subjects", "law", "groups"), None, r"subjects\.law\.groups must be a list of texts, found null"),
        (("seconds",), math.inf, "seconds must be a number, found Infinity"),
        (("noise",), {"questions": 4}, r"noise\.changed must be a whole number, found null"),
        (("noise", "largest"), math.nan, r"noise\.largest must be a number, found NaN"),
        (("self_test",), {"trivial": "four"}, r"self_test\.trivial must be a whole number, found \"four\""),
        (("contamination",), {"clean": 1}, r"contamination\.clean must be an object, found 1"),
    ],
)
def test_results_with_wrong_figures(pair_of_results, tmp_path, place, value, said):
    a, b = pair_of_results
    result = read_json(b / "results.json")
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_json(b / "results.json", result)
    with pytest.raises(UserError, match=r"b/results\.json: " + said):
        compare_results(a, b)
    with pytest.raises(UserError, match=r"b/results\.json: " + said):
        page_of(tmp_path, make_run(tmp_path / "run"), baseline=b)


def test_two_results_of_the_same_exam(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    for name in ("ceval-official", "ceval-official-again"):
        make_evaluation(run / "evaluation" / name, 0.5)
    with pytest.raises(UserError) as caught:
        page_of(tmp_path, run)
    assert "ceval-official and " in str(caught.value) and "ceval-official-again both hold a result" in str(caught.value)
    assert "split val: move the one that shall not count out of" in str(caught.value)


@pytest.mark.parametrize(
    "group, key, value, said",
    [
        ("config", "lr", "fast", r'config\.lr must be a number or null, found "fast"'),
        ("config", "lora_alpha", [16], r"config\.lora_alpha must be a number or null, found \[16\]"),
        ("config", "lora_target_modules", "q_proj", r"config\.lora_target_modules must be a list"),
        ("config", "lr_warmup_fraction", "1%", r"config\.lr_warmup_fraction must be"),
        ("data", "lengths", {"p50": "many"}, r"data\.lengths must be an object"),
        ("data", "skipped", ["a"], r"data\.skipped must be an object"),
        ("parameters", "total", "many", "parameters must be an object"),
    ],
)
def test_a_run_record_with_wrong_values(tmp_path, group, key, value, said):
    run = make_run(tmp_path / "run", steps=3)
    record = read_json(run / "config.json")
    record[group][key] = value
    write_json(run / "config.json", record)
    with pytest.raises(UserError, match=r"run/config\.json: " + said):
        page_of(tmp_path, run)


def test_a_run_record_without_most_of_its_values(tmp_path):
    run = make_run(tmp_path / "run", steps=3, samples=False)
    rewrite(run / "config.json", config={}, data={}, machine={}, versions={}, parameters={}, model={}, command=[])
    assert "not recorded" in page_of(tmp_path, run)


def test_a_loss_reduction_that_is_not_known(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    record = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rewrite(run / "config.json", config={**record["config"], "loss_reduction": "median"})
    assert "how it is averaged is not recorded" in page_of(tmp_path, run)


def test_a_validation_loss_that_is_no_number(tmp_path):
    run = make_run(tmp_path / "run", steps=40)
    rows = make_validations(40)
    write_records(
        run / "validation.jsonl", [rows[0], Validation(step=15, loss=math.nan, perplexity=math.nan), *rows[1:]]
    )
    page = page_of(tmp_path, run)
    assert "not finite in 1 validations, first at step 15" in page
    assert f"went from {rows[0].loss:.3f} (step 10) to {rows[-1].loss:.3f} (step 40)" in page
    write_records(run / "validation.jsonl", [Validation(step=s, loss=math.nan, perplexity=math.nan) for s in (1, 2)])
    page = page_of(tmp_path, run)
    assert "not finite in 2 validations" in page and "lowest validation loss" not in page


def test_seconds_that_are_no_number(tmp_path):
    run = make_run(tmp_path / "run", steps=30)
    steps = [to_dict(s) for s in make_steps(30)]
    steps[4] |= {"seconds": math.nan, "tokens_per_second": math.nan, "lr": math.nan}
    write_records(run / "metrics.jsonl", [Step(**s) for s in steps])
    assert "The time of some steps is not recorded" in page_of(tmp_path, run)


def test_half_characters_and_controls_in_answers(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    with_samples(run, [])
    row = json.dumps({"prompt": "a\ud83d", "before": "x\x00\x1b[31m", "after": "\udc80"})
    (run / "samples.jsonl").write_text(row + "\n", encoding="utf-8")
    page = page_of(tmp_path, run)
    assert r"a\ud83d" in page and r"\udc80" in page and "x␀␛[31m" in page and "\x00" not in page


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "samples.jsonl"])
def test_files_that_are_no_text(tmp_path, name):
    run = make_run(tmp_path / "run", steps=3)
    (run / name).write_bytes(b'{"step": 1, "\xff": 2}\n' * 2)
    with pytest.raises(UserError, match=rf"{name}: not UTF-8 text \(byte 13\)"):
        page_of(tmp_path, run)


@pytest.mark.parametrize(
    "output, said",
    [("file/report.html", "file is a file; choose another place"), ("f.html", "is a folder; name a file")],
)
def test_an_output_that_can_not_be_written(tmp_path, capsys, output, said):
    run = make_run(tmp_path / "run", steps=3)
    (tmp_path / "file").write_text("")
    (tmp_path / "f.html").mkdir()
    assert main(["report", str(run), "--output", str(tmp_path / output)]) == 2
    assert said in capsys.readouterr().err


def test_folder_names_with_markup(tmp_path, capsys):
    """HTML in the page, rich's markup in the terminal, Markdown in the Markdown: names stay names."""
    names = ("<b>x</b> & [bold]", "[red]*y* @0@ $z$")
    runs = [make_run(tmp_path / name, steps=3) for name in names]
    output = tmp_path / "[dim] <i>" / "report.html"
    assert main(["report", *map(str, runs), "--output", str(output), "--lang", "en"]) == 0
    assert "[dim] <i>" in capsys.readouterr().out
    page, markdown = output.read_text(encoding="utf-8"), output.with_suffix(".md").read_text(encoding="utf-8")
    assert "<b>x</b>" not in page and "&lt;b&gt;x&lt;/b&gt; &amp; [bold]" in page and "[red]*y* @0@ $z$" in page
    assert r"\[red\]\*y\* @0@ $z$" in markdown
    for folder, skill in zip(runs, (0.4, 0.5)):
        make_evaluation(folder, skill)
    print_comparison(compare_results(*runs), runs[1])
    title = capsys.readouterr().out.split("verdict")[0].split("before")[0]
    assert "[bold]" in title and "[red]" in title


def test_sound_records_pass(tmp_path):
    lora, full, _ = make_all(tmp_path)
    assert "Paired test" in page_of(tmp_path, lora, full)

"""`tuneval report` as typed."""

from __future__ import annotations

import pytest
from report_runs import make_all

from tuneval.cli import main


def test_report_writes_both_files(tmp_path, capsys):
    lora, full, _ = make_all(tmp_path)
    output = tmp_path / "pages" / "report.html"
    assert main(["report", str(lora), str(full), "--output", str(output), "--lang", "zh"]) == 0
    assert capsys.readouterr().out.split() == [str(output.with_suffix(s)) for s in (".html", ".md", ".csv", ".json")]
    page, markdown = output.read_text(encoding="utf-8"), output.with_suffix(".md").read_text(encoding="utf-8")
    assert page.startswith('<!DOCTYPE html>\n<html lang="zh-CN">') and page.endswith("</html>\n")
    assert markdown.startswith("# 大模型微调实验报告\n") and "| LoRA r=8 |" in markdown
    assert sorted(p.suffix for p in output.parent.iterdir()) == [".csv", ".html", ".json", ".md"]


def test_title_and_baseline(tmp_path):
    lora, _, baseline = make_all(tmp_path)
    words = [
        "report",
        str(lora),
        "--output",
        str(tmp_path / "r.html"),
        "--title",
        "实验三",
        "--baseline",
        str(baseline),
    ]
    assert main([*words, "--lang", "en"]) == 0
    assert "<h1>实验三</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "no such folder"),
        (["nowhere", "--output", "report.pdf"], "must end in .html"),
    ],
)
def test_errors(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""The word about a slow number type. How fast a processor is differs; that is given here."""

from __future__ import annotations

import pytest

from tuneval import runtime
from tuneval.commands.number_type import tell_slow_type


@pytest.fixture
def advantage(monkeypatch):
    """Function: fp32 is this many times as fast."""
    return lambda times: monkeypatch.setattr(runtime, "fp32_advantage", lambda dtype, *, trains: times)


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_slow_type_is_told_with_the_flag_that_mends_it(advantage, capsys):
    advantage(7.0)
    tell_slow_type("bf16", "--dtype ", trains=False)
    assert "--dtype bf16: this processor multiplies fp32 matrices 7.0 times as fast; --dtype fp32 may" in said(capsys)
    tell_slow_type("fp16", "--", trains=True)
    assert "--fp16: this processor" in (words := said(capsys)) and "weights and activations" in words


def test_no_word_where_the_type_is_fast_or_fp32_was_chosen(advantage, capsys):
    advantage(1.2)
    tell_slow_type("bf16", "--", trains=True)
    advantage(7.0)
    tell_slow_type("fp32", "--", trains=True)
    assert said(capsys) == ""


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_every_type_is_compared(name, trains):
    assert runtime.fp32_advantage(runtime.DTYPES[name], trains=trains) > 0

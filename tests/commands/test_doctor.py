"""The doctor names what is there and proves the matrix product."""

from __future__ import annotations

import pytest
import torch

from tuneval import cli
from tuneval.commands import doctor
from tuneval.commands.doctor import product_speed


def test_it_names_versions_and_device(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("python", "torch", "transformers", "device", "fp32 matrix product", "GFLOP/s", "type to take"):
        assert word in text
    assert "WRONG" not in text


def test_a_type_without_a_product_is_said():
    assert str(product_speed(torch.bool)).startswith("not supported")


@pytest.mark.parametrize(
    "speeds, taken",
    [
        ({"bf16": 17.0, "fp32": 18.0}, "bf16: tune --bf16"),
        ({"bf16": 17.0, "fp32": 140.0}, "fp32: tune --fp32"),
        ({"bf16": "not supported", "fp32": 10.0}, "fp32: tune --fp32"),
        ({"bf16": 17.0, "fp32": "WRONG RESULT"}, "bf16: tune --bf16"),
    ],
)
def test_twice_the_memory_is_recommended_for_much_speed_alone(monkeypatch, capsys, speeds, taken):
    of = {torch.bfloat16: speeds["bf16"], torch.float32: speeds["fp32"], torch.float16: 1.0}
    monkeypatch.setattr(doctor, "product_speed", of.__getitem__)
    assert cli.main(["doctor"]) == 0
    assert taken in capsys.readouterr().out

"""The doctor names what is there and proves the matrix product."""

from __future__ import annotations

import torch

from tuneval import cli
from tuneval.commands.doctor import product_speed


def test_it_names_versions_and_device(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("python", "torch", "transformers", "device", "fp32 matrix product", "GFLOP/s", "fastest type"):
        assert word in text
    assert "WRONG" not in text


def test_a_type_without_a_product_is_said():
    assert str(product_speed(torch.bool)).startswith("not supported")

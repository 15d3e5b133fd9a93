"""Tiny models whose greedy answers wander from word to word, so that an exchange of two answers shows."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import tiny_model


def lively_folder(folder: Path, tokenizer, family: str = "qwen2", **changes) -> Path:
    """A Hugging Face folder of a `tiny_model` with wide normal weights from a fixed seed."""
    model, generator = tiny_model(family, **changes), torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.normal_(0, 1 if "embed" in name else 0.25, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

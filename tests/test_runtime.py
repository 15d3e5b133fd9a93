"""Devices as several versions of torch show them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from tuneval import runtime


@pytest.fixture
def accelerator(monkeypatch):
    """Puts another `torch.accelerator` in place; None: none, as before torch 2.6."""

    def put(module: SimpleNamespace | None) -> None:
        if module is None:
            monkeypatch.delattr(torch, "accelerator", raising=False)
        else:
            monkeypatch.setattr(torch, "accelerator", module, raising=False)

    return put


def as_in_torch_2_6(available: bool) -> SimpleNamespace:
    """What torch 2.6 has: no `check_available`, no memory."""
    return SimpleNamespace(is_available=lambda: available, current_accelerator=lambda: torch.device("cuda"))


@pytest.mark.parametrize("available, kind", [(True, "cuda"), (False, "cpu")])
def test_torch_2_6_tells_its_device(accelerator, available, kind):
    accelerator(as_in_torch_2_6(available))
    assert runtime.device() == torch.device(kind)


@pytest.mark.parametrize("available, kind", [(True, "cuda"), (False, "cpu")])
def test_torch_2_5_is_asked_for_each_kind(accelerator, monkeypatch, available, kind):
    accelerator(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert runtime.device() == torch.device(kind)


def test_memory_is_the_accelerators_own_in_every_version(accelerator, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    accelerator(as_in_torch_2_6(available=True))
    assert runtime.peak_memory_bytes() == 123
    accelerator(as_in_torch_2_6(available=False))
    assert runtime.peak_memory_bytes() > 10_000_000  # this process on the host


def test_fsdp_is_found_where_torch_2_5_has_it(monkeypatch):
    import torch.distributed.fsdp

    assert runtime.fsdp() is torch.distributed.fsdp
    older = SimpleNamespace()
    monkeypatch.delattr(torch.distributed.fsdp, "fully_shard")
    monkeypatch.setitem(sys.modules, "torch.distributed._composable.fsdp", older)
    assert runtime.fsdp() is older

"""Norms of gradients that lie on an accelerator; `test_layouts.py` holds the rest against one process."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuneval.parallel.gradients import l2_norms


class NoFp64OffTheHost(TorchDispatchMode):
    """Apple's GPUs have none; HCCL, which Ascend's processes talk by, can't sum it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu" or tensor.dtype != torch.float64
        return result


def test_norms_come_to_the_host_before_they_are_widened():
    with FakeTensorMode(), NoFp64OffTheHost():
        norms = l2_norms([torch.ones(3, device="xpu"), torch.ones(2, 2, device="xpu", dtype=torch.bfloat16)])
    assert [(norm.device.type, norm.dtype) for norm in norms] == [("cpu", torch.float64)] * 2

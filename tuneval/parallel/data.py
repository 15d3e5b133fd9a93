"""Data parallelism: what processes that see other samples split between them, by FSDP2."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh

from tuneval.model.decoder import Decoder
from tuneval.runtime import fsdp

FSDPModule, MixedPrecisionPolicy, fully_shard = fsdp().FSDPModule, fsdp().MixedPrecisionPolicy, fsdp().fully_shard


def shard(decoder: Decoder, mesh: DeviceMesh, full: bool) -> None:
    """Let the processes of `mesh` hold a share of every parameter each, in place.

    Gradients are summed over the processes, not averaged: the loss's weights already count the whole global batch.

    Args:
        decoder: on `meta`, tensor-parallel already where it shall be.
        mesh: the data-parallel axis.
        full: hold no more than a layer whole at a time; False: weights and gradients are whole during a step, and only
            the optimizer's state is split (ZeRO-1).
    """
    options = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
    for layer in decoder.layers():
        fully_shard(layer, reshard_after_forward=full, **options)
    fully_shard(decoder, reshard_after_forward=False, **options)  # the loss uses the head after its forward
    for module in sharded_modules(decoder):
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
        else:  # torch < 2.8
            module.set_reduce_scatter_divide_factor(1.0)


def sharded_modules(decoder: torch.nn.Module) -> list[FSDPModule]:
    """The modules that FSDP gathers and splits; none without it."""
    return [module for module in decoder.modules() if isinstance(module, FSDPModule)]


def keep_whole_until(decoder: torch.nn.Module, last: bool) -> None:
    """Tell the optimizer-sharded decoder whether the coming backward pass is the step's last, which sums gradients."""
    for module in sharded_modules(decoder):
        module.set_requires_gradient_sync(last, recurse=False)
        module.set_reshard_after_backward(last, recurse=False)


def reshard(decoder: torch.nn.Module) -> None:
    """Give up what a forward pass without backward left whole."""
    for module in sharded_modules(decoder):
        module.reshard()

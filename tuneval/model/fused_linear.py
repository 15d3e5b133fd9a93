"""A layer of peft with its adapter, in fewer passes over memory."""

from __future__ import annotations

import torch
from peft.tuners.lora import Linear
from torch.distributed.tensor import DTensor

from tuneval.model.adapter import ADAPTER


class FusedLinear(Linear):
    """peft's layer in fewer passes over its output: base(x) + s (B A x) as base(x) += B (s A x), one product."""

    def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        a, b = (getattr(self, half)[ADAPTER] for half in ("lora_A", "lora_B"))
        if self.disable_adapters or self.merged or args or kwargs or a.weight.dtype != x.dtype:
            return super().forward(x, *args, **kwargs)
        tokens = x.flatten(0, -2)  # [T, in]
        narrow = a(self.lora_dropout[ADAPTER](tokens)) * self.scaling[ADAPTER]  # [T, r]
        output = self.base_layer(tokens)
        if isinstance(b.weight, DTensor):  # it computes with its own part, as tensor parallelism arranged
            output = output + b(narrow)
        else:
            output.addmm_(narrow, b.weight.t())
        return output.unflatten(0, x.shape[:-1])

"""Linear layers of a model that only answers, on a CPU: laid out as its products read them, or as 8-bit integers.

A token of a single answer reads every weight once, so its time is the memory's. torch's bf16 product of a matrix with one
row reaches less than half of what oneDNN's does on a weight laid out beforehand, with the same result. FBGEMM's do it on a
processor without a unit for bf16.
"""

from __future__ import annotations

import torch
from torch import nn

from tuneval import runtime
from tuneval.checkpoints.load import Loaded
from tuneval.errors import UserError
from tuneval.wide_products import multiplies

FEW_ROWS = 16
"""Rows up to which the 8-bit product is faster than turning the weight back first."""


def speed_up(loaded: Loaded, quantize: str | None = None) -> None:
    """Exchange the linear layers of a loaded model for faster ones; it can answer afterwards, and nothing else.

    Args:
        loaded: the model. On an accelerator, and where processes share it, it stays as it is.
        quantize: `int8` for 8-bit weights; None for the weights as they are.

    Raises:
        UserError: 8-bit weights of a model that lies on an accelerator or on several processes.
    """
    model = loaded.model
    plain = loaded.mesh.layout.tensor == 1 and model.device.type == "cpu"
    if quantize is not None and not plain:
        where = f"is on {model.device.type}" if model.device.type != "cpu" else "is shared by processes"
        raise UserError(f"--quantize {quantize}: is for one process on a CPU, and the model {where}. Leave it out")
    make = Int8Linear if quantize is not None else PackedLinear
    if not plain:
        return
    # A list of names, not of layers: the weight of each is freed once it is exchanged.
    for name in [name for name, module in model.named_modules() if type(module) is nn.Linear]:
        linear = model.get_submodule(name)
        if quantize is not None or runtime.packs_linear(linear.weight):
            model.set_submodule(name, make(linear))


class PackedLinear(nn.Module):
    """A linear layer whose weight is laid out for the CPU's products. bf16.

    Args:
        linear: the layer it stands for.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self._product = runtime.packed_linear(linear.weight.detach(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]"""
        return self._product(x)


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits and a scale for each row: w = scale * q, q from -127 to 127.

    Args:
        linear: the layer it stands for.

    Source: torch's own weight-only kernel; symmetric quantisation by the largest weight of each row.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.bias = linear.bias
        scale = (weight.abs().amax(dim=1).float() / 127).clamp(min=1e-12).to(weight.dtype)  # [out_features]
        self.register_buffer("scale", scale)
        blocks = zip(weight.split(4096), scale.split(4096))  # a head in fp32 would be the largest thing in memory
        rounded = [(w.float() / s.float().unsqueeze(1)).round_().clamp_(-127, 127).to(torch.int8) for w, s in blocks]
        self.register_buffer("quantized", torch.cat(rounded))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]"""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= FEW_ROWS:
            y = torch._weight_int8pack_mm(rows, self.quantized, self.scale)
        else:
            wide = x.dtype if multiplies(torch.bfloat16) else torch.float32
            y = (nn.functional.linear(rows.to(wide), self.quantized.to(wide)) * self.scale).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)

"""RMSNorm and the gated feed-forward layer with the numbers of transformers', keeping less for the backward pass.

Of a norm its input stays, of the feed-forward layer its two products; the rest, elementwise and cheap, is computed again.
That halves a layer's activations. Shapes: T tokens, H hidden size, F width of the feed-forward layer.
"""

from __future__ import annotations

import copy
import inspect

import torch
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu


def make_frugal(model: torch.nn.Module) -> None:
    """Let the norms and feed-forward layers that compute what these do keep less, in place.

    Args:
        model: of transformers, on any device, before anything else changes its modules.
    """
    found: dict[type, type | None] = {}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for module in model.modules():
            kind = type(module)
            if kind not in found:
                found[kind] = next((ours for ours in (FrugalRMSNorm, FrugalMLP) if ours.equals(module)), None)
            module.__class__ = found[kind] or kind


def keep_products(model: torch.nn.Module) -> None:
    """Where whole layers are computed again, a `FrugalMLP` has nothing to spare: what it keeps they would not."""
    for module in model.modules():
        if isinstance(module, FrugalMLP):
            module.keeps_product = True


class FrugalRMSNorm(torch.nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), the division in fp32; keeps x."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # torch.compile decides itself what to keep
            return _rms_norm(hidden_states, self.weight, self.variance_epsilon)
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)

    @classmethod
    def equals(cls, theirs: torch.nn.Module) -> bool:
        """Whether a module gives the same numbers. Others add 1 to the weight, or multiply before they round."""
        alike = set(theirs._parameters) == {"weight"} and hasattr(theirs, "variance_epsilon") and _takes_one(theirs)
        if not alike or theirs._modules:
            return False
        return _gives_the_same(theirs, cls, _parameters={"weight": torch.randn(64, dtype=torch.bfloat16)})


class FrugalMLP(torch.nn.Module):
    """down(silu(gate(x)) * up(x)); keeps gate(x) and up(x)."""

    keeps_product = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.compiler.is_compiling():
            return self.down_proj(silu(gate) * up)
        if not torch.is_grad_enabled():
            return self.down_proj(silu(gate).mul_(up))
        product = _GatedSilu.apply(gate, up)
        if self.keeps_product:
            return self.down_proj(product)
        # The layer's weights, or its adapter's, need the product once more in the backward pass.
        storage, gate, up = product.untyped_storage()._cdata, gate.detach(), up.detach()

        def pack(tensor: torch.Tensor) -> torch.Tensor | torch.Size:
            return tensor.shape if tensor.untyped_storage()._cdata == storage else tensor

        def unpack(packed: torch.Tensor | torch.Size) -> torch.Tensor:
            return packed if isinstance(packed, torch.Tensor) else silu(gate).mul_(up).view(packed)

        with saved_tensors_hooks(pack, unpack):
            return self.down_proj(product)

    @classmethod
    def equals(cls, theirs: torch.nn.Module) -> bool:
        """Whether a module gives the same numbers. Others have another activation, or one product for gate and up."""
        shapes = {"gate_proj": (64, 96), "up_proj": (64, 96), "down_proj": (96, 64)}
        if set(theirs._modules) - {"act_fn"} != set(shapes) or theirs._parameters or not _takes_one(theirs):
            return False
        linears = {name: torch.nn.Linear(*shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        return _gives_the_same(theirs, cls, _modules={**theirs._modules, **linears})


def _takes_one(module: torch.nn.Module) -> bool:
    """Whether its forward takes one tensor and nothing else, such as a gate of its own."""
    return len(inspect.signature(module.forward).parameters) == 1


@torch.no_grad()
def _gives_the_same(theirs: torch.nn.Module, ours: type, **small: dict[str, object]) -> bool:
    """Hold a class against a module with small parts in the place of its own."""
    theirs = copy.copy(theirs)
    vars(theirs).update(small)
    own = copy.copy(theirs)
    own.__class__ = ours
    x = torch.randn(32, 64, dtype=torch.bfloat16)
    return torch.equal(own(x), theirs(x))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """[..., H], [H] -> [..., H]"""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x.float() * scale
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normal.to(x.dtype)).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            wide = (grad * weight).float()
            along = (wide * normal).mean(-1, keepdim=True)
            grad_x = wide.sub_(normal.mul_(along)).mul_(scale).to(x.dtype)
        return grad_x, grad_weight, None


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """[..., F] twice -> [..., F]"""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up

"""A LoRA adapter as files hold it: W + (alpha / r) B A for each adapted weight, whichever format it came in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tuneval.errors import Problems, UserError
from tuneval.files import read_object

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"
"""What peft calls a model's only adapter unless told otherwise."""
PEFT_PREFIX = "base_model.model."
"""What peft's own saving puts before a transformers name."""


@dataclass(frozen=True)
class Factor:
    """A [r, in] or B [out, r] of one layer, read when asked for."""

    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Adapter:
    """An adapter of Hugging Face modules."""

    folder: Path
    """Where it was read from."""
    r: int
    """Rank."""
    scaling: float
    """Factor of B A."""
    factors: dict[str, tuple[Factor, Factor]]
    """Module, such as `model.layers.0.self_attn.q_proj` -> (A, B)."""

    @property
    def alpha(self) -> float:
        """What divided by the rank gives the scaling."""
        return self.scaling * self.r

    @property
    def targets(self) -> tuple[str, ...]:
        """Last parts of the modules' names, sorted."""
        return tuple(sorted({name.rpartition(".")[2] for name in self.factors}))

    def delta(self, weight: str) -> torch.Tensor | None:
        """What is added to a weight, by its Hugging Face name: fp32 [out, in]; None where it is left alone."""
        if not weight.endswith(".weight") or weight.removesuffix(".weight") not in self.factors:
            return None
        a, b = self.factors[weight.removesuffix(".weight")]
        return b.read().float() @ a.read().float() * self.scaling

    def shares_a(self, groups: list[tuple[str, ...]]) -> bool:
        """Whether the adapted members of each group have the same A.

        Args:
            groups: modules of one fused layer each.
        """
        for group in groups:
            a = [self.factors[module][0].read() for module in group if module in self.factors]
            if any(not torch.equal(a[0], other) for other in a[1:]):
                return False
        return True

    def peft_tensors(self) -> dict[str, torch.Tensor]:
        """Every factor under the name that a PEFT folder gives it."""
        return {
            f"{PEFT_PREFIX}{module}.lora_{half}.weight": factor.read().clone()  # a shared A is written for each module
            for module, pair in self.factors.items()
            for half, factor in zip("AB", pair)
        }

    def check_fits(self, names: list[str], shape: Callable[[str], tuple[int, ...]], base: Path) -> None:
        """Raise one UserError for every factor that has no weight in the base, or one of another size.

        Args:
            names: the base's weights.
            shape: of each.
            base: where they lie, for the text.
        """
        problems, known = Problems(), set(names)
        for module, pair in self.factors.items():
            weight = f"{module}.weight"
            if weight not in known:
                problems.add(f"{self.folder}: adapts {module}, which {base} does not have")
                continue
            for half, factor, axis in zip("AB", pair, (1, 0)):
                size, needed = factor.shape[axis], shape(weight)[axis]
                name = f"{module}.lora_{half}"
                problems.check(size == needed, f"{self.folder}: {name} has {size}, {base} needs {needed}")
        problems.raise_if_any()


def is_peft(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG_FILE).is_file()


def read_peft(folder: str | Path) -> Adapter:
    """The adapter of a PEFT folder; its tensors stay on disk.

    Raises:
        UserError: no adapter there, or a kind that is more than W + scaling * B A.
    """
    folder = Path(folder)
    config, shapes = _check_peft(folder)
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    factors = {}
    for name in shapes:
        stem, is_a, _ = name.partition(".lora_A.weight")
        if is_a:
            pair = (name, f"{stem}.lora_B.weight")
            factors[stem.removeprefix(PEFT_PREFIX)] = tuple(Factor(shapes[n], _reader(folder, n)) for n in pair)
    return Adapter(folder, config["r"], scaling, factors)


_UNSUPPORTED: dict[str, Any] = {
    "use_dora": "DoRA",
    "bias": "trained biases",
    "lora_bias": "biases of A and B",
    "modules_to_save": "whole modules beside A and B",
    "rank_pattern": "a rank for each layer",
    "alpha_pattern": "an alpha for each layer",
    "layer_replication": "replicated layers",
    "fan_in_fan_out": "transposed weights",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "adapters of bare parameters",
    "alora_invocation_tokens": "activation by a text",
}
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of starting an adapter that take what it starts with out of the weights under it: B A is no difference to the model."""


def _check_peft(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The config, and the tensors' shapes by name; refuses what is more than B A."""
    if not is_peft(folder):
        raise UserError(f"{folder}: no {CONFIG_FILE} in it. Give a PEFT adapter folder.")
    config, weights = read_object(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder}: an adapter of kind {config.get('peft_type')}; only LORA is supported")
    if not weights.is_file():
        raise UserError(f"{folder}: no {WEIGHTS_FILE}. Save the adapter as safetensors (peft's default).")
    problems = Problems()
    for key, what in _UNSUPPORTED.items():
        if config.get(key) not in (None, False, {}, [], "none"):
            problems.add(f"{folder}: uses {what} ({key}), which can't be merged here. Merge it with peft first.")
    start = config.get("init_lora_weights")
    problems.check(
        not str(start).lower().startswith(_CHANGES_THE_BASE),
        f"{folder}: started as {start} (init_lora_weights), which changed the weights under it. Save it in peft with "
        "path_initial_model_for_weight_conversion, or merge it with peft first.",
    )
    r, alpha = config.get("r"), config.get("lora_alpha")
    problems.check(type(r) is int and r >= 1, f"{folder}/{CONFIG_FILE}: r is {r!r}, not a rank from 1 on")
    usable = type(alpha) in (int, float) and math.isfinite(alpha)
    problems.check(usable, f"{folder}/{CONFIG_FILE}: lora_alpha is {alpha!r}, not a number")
    try:
        with safe_open(weights, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise UserError(f"{weights}: not a safetensors file, or cut off ({error}). Copy it again.") from None
    problems.check(shapes, f"{weights}: holds no tensor")
    for name, shape in shapes.items():
        half = re.fullmatch(r"(.*\.layers\..*)\.lora_([AB])\.weight", name)
        plain = half is not None and name.startswith(PEFT_PREFIX)
        problems.check(plain, f"{folder}: {name}: not A or B of a linear layer in a block")
        other = half and f"{half[1]}.lora_{'B' if half[2] == 'A' else 'A'}.weight"
        problems.check(not plain or other in shapes, f"{folder}: {name}: without its {other}")
        fits = len(shape) == 2 and (half is None or type(r) is not int or shape[0 if half[2] == "A" else 1] == r)
        problems.check(fits, f"{folder}: {name}: {list(shape)} is not a factor of rank {r}")
    problems.raise_if_any()
    return config, shapes


def _reader(folder: Path, name: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        with safe_open(folder / WEIGHTS_FILE, "pt") as tensors:
            return tensors.get_tensor(name)

    return read

"""A word where the chosen number type is slow on this machine, for commands that multiply large matrices."""

from __future__ import annotations

from tuneval import console, runtime

WORTH_A_WORD = 1.5
"""Times as fast as the chosen type. Below, half the memory is worth more."""


def tell_slow_type(dtype: str, flag: str, *, trains: bool) -> None:
    """Say so if this processor computes much faster in fp32. Of several processes the first one finds out.

    Args:
        dtype: `bf16`, `fp16` or `fp32`.
        flag: what stands before a type on the command line: `--`, or `--dtype ` with its space.
        trains: whether a backward pass follows.
    """
    if runtime.device().type != "cpu" or dtype == "fp32" or not runtime.is_main():
        return
    advantage = runtime.fp32_advantage(runtime.DTYPES[dtype], trains=trains)
    if advantage > WORTH_A_WORD:
        console.note(
            f"{flag}{dtype}: this processor multiplies fp32 matrices {advantage:.1f} times as fast; {flag}fp32 may be "
            f"faster, with twice the memory for weights{' and activations' if trains else ''}"
        )

"""`--split`: weights -> where training, validation and test data begin and end."""

from __future__ import annotations

from tuneval.errors import UserError


def split_borders(n: int, split: str) -> tuple[int, int, int, int]:
    """Borders of train, validation and test in a file of `n` documents, as Megatron rounds them.

    Args:
        n: documents.
        split: up to three weights, comma-separated, such as "969,30,1".

    Returns:
        (0, train end, validation end, n).

    Raises:
        UserError: not numbers, negative, more than three, or all zero.

    Source: reference 4.4; golden: 1000 documents at 969,30,1 -> 0, 969, 999, 1000.
    """
    try:
        weights = [float(word) for word in split.split(",")]
    except ValueError:
        raise UserError(f"--split {split}: give up to three numbers, such as 98,2,0") from None
    if len(weights) > 3 or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(f"--split {split}: give up to three weights of at least 0, one above 0, such as 98,2,0")
    weights += [0.0] * (3 - len(weights))
    borders = [0]
    for weight in weights:
        borders.append(borders[-1] + round(weight / sum(weights) * n))
    surplus = borders[-1] - n
    a, b, c = (border - surplus for border in borders[1:])
    return 0, a, b, c

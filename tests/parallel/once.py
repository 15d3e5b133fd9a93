"""A launch that many tests look at: made once, and where it failed, not made again for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def once(function: Callable) -> Callable:
    """`function`, run once for the same arguments; what it returned or raised is given again.

    (`functools.lru_cache` forgets what was raised: every test would launch, wait and fail anew.)
    """
    done: dict[tuple, tuple[Any, Exception | None]] = {}

    def call(*arguments: Any) -> Any:
        if arguments not in done:
            try:
                done[arguments] = function(*arguments), None
            except Exception as error:
                done[arguments] = None, error
        result, error = done[arguments]
        if error is not None:
            raise error
        return result

    return call

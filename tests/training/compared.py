"""A prediction and what was measured, as a row of docs/costs.md: `pytest -s tests/costs` prints them."""

from __future__ import annotations

import pytest


def compare(what: str, predicted: float, measured: float, rel: float, abs: float = 0.0) -> None:
    """Print both, and fail where they are further apart than the share `rel` or the amount `abs`."""
    apart = predicted / measured - 1 if measured else 0.0
    print(f"\n| {what} | {predicted:,.0f} | {measured:,.0f} | {apart:+.1%} |")
    assert predicted == pytest.approx(measured, rel=rel, abs=abs), what

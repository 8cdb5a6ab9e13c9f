"""The sizes that we give DeepSpeed's ZeRO; memory and traffic follow from them."""

from __future__ import annotations

BUCKET = 50_000_000  # numbers per bucket of gradient reduction and parameter gathering
SMALL = 100_000  # numbers; ZeRO-3 keeps smaller parameters whole on every rank

"""Which places lie in which shard: pure functions of the catalogue's counts and the options.

Contract: every shard can be built by itself, by any process of any machine, since its places are known from the sizes
of the sources before anything is read. What turns out unusable makes a shard smaller and never moves another place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How places are laid out in tars."""

    shard_bytes: int = 256 * 2**20  # of the sources; a shard ends before the place that would take it beyond
    images_per_sample: int = 100  # larger places are split into parts
    min_images: int = 2  # a place with fewer usable images is dropped


@dataclass(frozen=True)
class ShardPlan:
    """The places of one shard: all from key `first` to key `last` that have images enough."""

    number: int
    first: str
    last: str
    images: int
    size: int  # bytes of the sources

    @property
    def name(self) -> str:
        """Name of the tar."""
        return f"shard-{self.number:06d}.tar"


def lay_out(places: Iterable[tuple[str, int, int]], shard_bytes: int) -> list[ShardPlan]:
    """Shards of consecutive places. `places`: (key, images, bytes) in order of key.

    A shard holds at least one place, and no more than `shard_bytes` unless one place alone is larger.
    """
    plans: list[ShardPlan] = []
    for key, images, size in places:
        last = plans[-1] if plans else None
        if last is None or last.size + size > shard_bytes:
            plans.append(ShardPlan(len(plans), key, key, images, size))
        else:
            plans[-1] = ShardPlan(last.number, last.first, key, last.images + images, last.size + size)
    return plans


def share(plans: list[ShardPlan], part: int, parts: int) -> list[ShardPlan]:
    """The shards that part `part` (from 1) of `parts` builds."""
    return plans[part - 1 :: parts]

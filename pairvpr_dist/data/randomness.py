"""Random numbers that belong to a place and not to a process.

Contract: every random choice about a view is a pure function of (seed, epoch, place, repeat, view) and of the purpose
that it serves; the repeat counts how often the place came before in the epoch. A key is a signed 64-bit integer; `fold`
hashes a further number into it by the splitmix64 finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014). The same code runs on NumPy arrays and on torch tensors of either device, in wrapping 64-bit
integer arithmetic, and gives the same bits everywhere.

Arrays have one dimension at least: NumPy warns about the overflow of scalars, which is wanted here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import torch

Keys = TypeVar("Keys", np.ndarray, torch.Tensor)


class Purpose(IntEnum):
    """Names of independent streams. The values are far from view numbers, so that no stream meets a view's key."""

    SHARDS = int.from_bytes(b"shards", "big")
    PLACES = int.from_bytes(b"places", "big")
    BATCHES = int.from_bytes(b"batches", "big")
    WINDOW = int.from_bytes(b"window", "big")
    REPEAT = int.from_bytes(b"repeat", "big")
    SAMPLE = int.from_bytes(b"sample", "big")
    CROP = int.from_bytes(b"crop", "big")
    RAND_AUGMENT = int.from_bytes(b"augment", "big")
    COLOUR = int.from_bytes(b"colour", "big")
    BLUR = int.from_bytes(b"blur", "big")
    MASK = int.from_bytes(b"mask", "big")
    NEGATIVES = int.from_bytes(b"negative", "big") >> 1


def _signed(value: int) -> int:
    """The signed 64-bit integer with the same bits as `value` modulo 2**64."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def mix(keys: Keys) -> Keys:
    """splitmix64's finaliser, a bijection of 64-bit integers; int64 in, int64 out, any shape but scalar."""
    # `>>` of a signed integer copies the sign; the mask makes it a logical shift.
    keys = (keys ^ ((keys >> 30) & (2**34 - 1))) * _MIX_1
    keys = (keys ^ ((keys >> 27) & (2**37 - 1))) * _MIX_2
    return keys ^ ((keys >> 31) & (2**33 - 1))


def fold(keys: Keys, values: Keys | int) -> Keys:
    """The keys with a further number hashed in; int64, shapes broadcast."""
    return mix((keys + _GOLDEN) ^ values)


def root_key(seed: int, epoch: int) -> np.ndarray:
    """The key of an epoch, int64 (1,)."""
    return fold(fold(np.zeros(1, np.int64), _signed(seed)), _signed(epoch))


def seed_key(seed: int, purpose: Purpose) -> np.ndarray:
    """The key of what stays the same over all epochs, int64 (1,)."""
    return fold(fold(np.zeros(1, np.int64), _signed(seed)), purpose)


def repeat_keys(keys: np.ndarray, repeats: np.ndarray | int) -> np.ndarray:
    """The keys of places that came `repeats` times before in the epoch, int64 (n,); 0 leaves a key as it is."""
    if not np.any(repeats):
        return keys
    return np.where(np.equal(repeats, 0), keys, fold(fold(keys, Purpose.REPEAT), repeats))


def place_keys(seed: int, epoch: int, stable_ids: np.ndarray, repeats: np.ndarray | int = 0) -> np.ndarray:
    """One key per place, int64 (n,), from the places' stable ids (uint64 or int64 (n,)) and `EpochPlan.repeats`."""
    return repeat_keys(fold(root_key(seed, epoch), stable_ids.view(np.int64)), repeats)


def view_keys(seed: int, epoch: int, stable_ids: np.ndarray, views: int, repeats: np.ndarray | int = 0) -> np.ndarray:
    """One key per view, int64 (n, views): the `Batch.keys` of the places."""
    return fold(place_keys(seed, epoch, stable_ids, repeats)[:, None], np.arange(views, dtype=np.int64))


def seeds(keys: np.ndarray, purpose: Purpose) -> list[Any]:
    """A seed for each key (int64, any shape) and a purpose: nested lists of that shape, 0 <= seed < 2**64."""
    found: list[Any] = fold(keys, purpose).view(np.uint64).tolist()
    return found


_philox = np.random.Philox(key=0)
_draws, _state = np.random.Generator(_philox), _philox.state


def generator(seed: int) -> np.random.Generator:
    """NumPy's counter-based generator, Philox, with a seed as its key; good until the next call.

    There is one in a process, which is set anew: to make one takes ten times as long.
    """
    _state["state"]["key"][0] = seed
    _philox.state = _state
    return _draws


def keyed_bits(keys: torch.Tensor, n: int) -> torch.Tensor:
    """n splitmix64 outputs per key: int64 (B,) -> int64 (B, n), on the device of `keys`."""
    counter = torch.arange(1, n + 1, device=keys.device, dtype=torch.int64)
    return mix(keys[:, None] + counter * _GOLDEN)


def keyed_uniform(keys: torch.Tensor, n: int) -> torch.Tensor:
    """n numbers of U[0, 1) per key: int64 (B,) -> float32 (B, n), multiples of 2**-24, the same on every device."""
    return ((keyed_bits(keys, n) >> 40) & (2**24 - 1)).to(torch.float32) * 2.0**-24

"""Distributed training of Pair-VPR, and the model itself: `from pairvpr_dist import PairVPR`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairvpr_dist.models.pair_vpr import PairVPR

__all__ = ["PairVPR"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that the command line answers before torch is imported.
    if name == "PairVPR":
        from pairvpr_dist.models.pair_vpr import PairVPR

        return PairVPR
    raise AttributeError(f"module 'pairvpr_dist' has no attribute '{name}'")

"""For `torch.hub.load("path/to/this/clone", "pairvpr", source="local", path="model.pth")`.

The clone need not be installed. Nothing is downloaded, and loading runs no code from a file.
"""

from __future__ import annotations

from pathlib import Path

from pairvpr_dist.models.pair_vpr import PairVPR

dependencies = ["torch", "timm", "safetensors", "omegaconf"]


def pairvpr(path: str | Path) -> PairVPR:
    """The model in `path`, an export folder or a released Pair-VPR .pth, ready for inference on the CPU."""
    return PairVPR.from_pretrained(path)

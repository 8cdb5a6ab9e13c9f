"""Files as Pair-VPR's authors released them, with the parameters of the golden numbers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pairvpr_dist.models.patches import resize_positions, sincos_positions
from pairvpr_dist.settings import PATCH

SPEC = json.loads((Path(__file__).parents[1] / "fixtures" / "stage1_stage2_vits14.json").read_text())
STAGE2_ONLY = ("decoder_clstoken", "dec_pos_embed_cls")


@pytest.fixture(scope="session")
def released_state() -> Callable[[int], dict[str, Tensor]]:
    """The state of a released file of stage 1 or 2, by the released names."""
    return state_of_stage


def state_of_stage(stage: int) -> dict[str, Tensor]:
    tables = {}
    table = sincos_positions(SPEC["dim"], SPEC["s1"] // PATCH)
    if stage == 2:
        table = resize_positions(table, (SPEC["s2"] // PATCH,) * 2)
        tables["dec_pos_embed_cls"] = torch.cat([torch.zeros(1, SPEC["dim"]), table])
    tables["dec_pos_embed"] = table
    names = {k: s for k, s in SPEC["shapes"].items() if not k.startswith("dec_pos_embed")}
    if stage == 1:
        names = {k: s for k, s in names.items() if k not in STAGE2_ONLY}
    return {**{k: released_parameter(k, s) for k, s in names.items()}, **tables}


def released_parameter(name: str, shape: list[int]) -> Tensor:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith(("norm.weight", "gamma")) or (".norm" in name and name.endswith("weight")):
        return torch.from_numpy(1 + np.float32(0.1) * noise)
    return torch.from_numpy(np.float32(0.02 if len(shape) <= 1 else 0.05) * noise)

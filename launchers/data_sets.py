"""`data=NAME`: the shard sets of a stage by one name, from `configs/data/NAME.yaml`.

Contract: such a file has a section a stage, with `shards` and, where they differ, `weights`; what it says stands for
`data.shards=` and `data.weights=` in the place of `data=NAME`. Folders lie below the one that PAIRVPR_SHARDS names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from pairvpr_dist.config import CONFIGS
from pairvpr_dist.errors import UserError, nearest

ROOT = "PAIRVPR_SHARDS"
KEY = "data="


def with_data_sets(stage: str, overrides: Sequence[str]) -> list[str]:
    """The overrides of a stage, or of a pipeline, with every `data=NAME` written out. Raises `UserError`."""
    written: list[str] = []
    for override in overrides:
        written += _written_out(stage, override.removeprefix(KEY)) if override.startswith(KEY) else [override]
    return written


def _written_out(stage: str, name: str) -> list[str]:
    folder = CONFIGS / "data"
    known = [path.stem for path in folder.glob("*.yaml")]
    if name not in known:
        raise UserError(f"data={name}: no such data set; {nearest(name, known)}; or give data.shards=...")
    root = os.environ.get(ROOT)
    if not root:
        raise UserError(f"data={name}: its shards lie below a folder of your site; set {ROOT} to it")
    sets: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))  # type: ignore[assignment]
    if stage not in (*sets, "pipeline"):
        raise UserError(f"data={name}: has no shards for {stage}")
    overrides = []
    for of_stage in sets if stage == "pipeline" else [stage]:
        prefix = f"{of_stage}." if stage == "pipeline" else ""
        where = [f"{root.rstrip('/')}/{shards}" for shards in sets[of_stage]["shards"]]
        overrides.append(f"{prefix}data.shards={_yaml_list(where)}")
        if weights := sets[of_stage].get("weights"):
            overrides.append(f"{prefix}data.weights={_yaml_list(weights)}")
    return overrides


def _yaml_list(values: Sequence[object]) -> str:
    return f"[{','.join(quoted(value) if isinstance(value, str) else str(value) for value in values)}]"


def quoted(text: str) -> str:
    """A text as a value of an override, whatever YAML would take its letters for. Pure."""
    return json.dumps(text, ensure_ascii=False)

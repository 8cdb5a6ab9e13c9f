"""What a launcher is asked to run, as configurations. Pure: no processes, no files.

Contract: `jobs("pipeline", ...)` is stage1, stage2 and eval, each taking the other's result by path. An override goes
to every stage that knows its key, `objective=NAME` to the one that has recipes; `stage1.KEY=VALUE` and
`stage2.KEY=VALUE` go to that stage alone, `init.*` to the first. `data=NAME` gives the shards of every stage; see
data_sets.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launchers.data_sets import quoted, with_data_sets
from pairvpr_dist.config import RECIPES, has_key, load_config
from pairvpr_dist.errors import UserError, nearest

PIPELINE = ("stage1", "stage2", "eval")
STAGE_NAMES = (*PIPELINE, "pipeline")


def jobs(stage: str, size: str, overrides: Sequence[str]) -> list[Any]:
    """The configurations to run one after another. `UserError` for an unknown stage, size or key."""
    check_stage_name(stage)
    overrides = with_data_sets(stage, overrides)
    if stage != "pipeline":
        return [load_config(stage, size, overrides)]
    routed: dict[str, list[str]] = {name: [] for name in PIPELINE}
    for override in overrides:
        for name, text in _route(override).items():
            routed[name].append(text)
    stage1 = load_config("stage1", size, routed["stage1"])
    links = {
        "stage2": f"init.model={quoted(f'{stage1.run}/stage1/export')}",
        "eval": f"eval.model={quoted(f'{stage1.run}/stage2/export')}",
    }
    return [stage1, *(load_config(name, size, [link, *routed[name]]) for name, link in links.items())]


def check_stage_name(stage: str) -> None:
    """That a stage, or a pipeline of all, has this name. Raises `UserError`."""
    if stage not in STAGE_NAMES:
        raise UserError(f"stage '{stage}' is unknown; {nearest(stage, STAGE_NAMES)}")


def _route(override: str) -> dict[str, str]:
    """The stages that an override of a pipeline goes to, with its text there."""
    prefix, _, rest = override.partition(".")
    if prefix in ("stage1", "stage2"):
        return {prefix: rest}
    key = override.partition("=")[0]
    if prefix == "init":  # stage 2 starts from stage 1
        return {"stage1": override}
    if key == "objective":  # names a recipe, which not every stage has
        return dict.fromkeys(RECIPES, override)
    # Where no stage knows the key, one of them says so, with the nearest key that it knows.
    takers = [name for name in PIPELINE if has_key(name, key)] or ["eval" if prefix == "eval" else "stage1"]
    return dict.fromkeys(takers, override)

"""A run with compiled blocks is the run without, within rounding, and goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launched_runs import METRICS, Launched, command, finish
from small_runs import log_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # blocks are compiled in every start
COMPILED = ["launch.processes=2", "train.compile=blocks", "train.max_steps=12"]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_compiled_run(city_shards: Path, tmp_path: Path, stage: str) -> None:
    runs = {name: tmp_path / name for name in ("plain", "whole", "killed")}
    finish(command(stage, city_shards, runs["plain"], [*COMPILED, "train.compile=none"]))
    finish(command(stage, city_shards, runs["whole"], COMPILED))
    launched = Launched(command(stage, city_shards, runs["killed"], COMPILED))
    launched.until_step(runs["killed"] / stage, 4)
    launched.kill()
    finish(command(stage, city_shards, runs["killed"], COMPILED))

    plain, whole, killed = (log_of(runs[name] / stage, METRICS[stage]) for name in runs)
    assert len(whole) == 12
    np.testing.assert_allclose(whole, plain, rtol=1e-3)
    assert whole != plain  # else nothing was compiled
    assert killed == whole
    model = Path(stage) / "export" / "model.safetensors"
    assert (runs["killed"] / model).read_bytes() == (runs["whole"] / model).read_bytes()

from pathlib import Path

import pytest
from small_runs import PLACES

from shards.build import main as build


@pytest.fixture(scope="session")
def city_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of a small synthetic city."""
    folder = tmp_path_factory.mktemp("city") / "shards"
    build(
        ["synthetic", "--places", str(PLACES), "--views", "4", "--size", "96", "--out", str(folder), "--workers", "1"]
    )
    return folder

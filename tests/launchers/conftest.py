from pathlib import Path

import pytest

from shards.build import main as build


@pytest.fixture(scope="session")
def few_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of a small synthetic city."""
    folder = tmp_path_factory.mktemp("few") / "shards"
    build(["synthetic", "--places", "6", "--views", "4", "--size", "32", "--out", str(folder), "--workers", "1"])
    return folder

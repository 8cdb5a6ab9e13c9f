from collections.abc import Sequence
from pathlib import Path

import pytest
from small_shards import BuildShards, SmallPlace, write_places


@pytest.fixture(scope="session")
def build_shards(tmp_path_factory: pytest.TempPathFactory) -> BuildShards:
    """`write_places` into a folder of its own."""

    def build(places: Sequence[SmallPlace], shard_bytes: int = 60_000) -> str:
        return write_places(Path(tmp_path_factory.mktemp("sets")) / "shards", places, shard_bytes)

    return build

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, running_cluster

from shards.build import main as build


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A real SLURM of two nodes on this machine; skips where there can be none."""
    with running_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(scope="session")
def city_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of a small synthetic city."""
    folder = tmp_path_factory.mktemp("city") / "shards"
    build(["synthetic", "--places", "12", "--views", "4", "--size", "64", "--out", str(folder), "--workers", "1"])
    return folder

"""SUP-VPR from shards to its figures, by the commands that people type."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchers.local import main
from pairvpr_dist import PairVPR
from pairvpr_dist.files import read_json
from shards.build import main as build
from shards.synthetic_city import write_format


def test_the_recipe_end_to_end(few_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two cities to shards, stage 1, SUP-VPR's stage 2 with synthetic places and recall, evaluation, report."""
    tree, shards, run = tmp_path / "tree", tmp_path / "shards", tmp_path / "run"
    write_format(tree, "cities", places=6, test_places=3, cities=2, views=4)
    build(["gsv-cities", "--source", str(tree / "train"), "--out", str(shards), "--workers", "1"])
    main([
        "pipeline", "tiny", "objective=supvpr", f"data.shards={shards}", f"data.synthetic={few_shards}",
        f"eval.data={tree / 'test'}", "eval.protocol=cities", f"run={run}", "data.places_per_batch=6",
        "train.max_steps=2", "train.self_check=false", f"stage2.data.validation={shards}",
        f"recall.data={tree / 'test'}", "recall.protocol=cities", "launch.threads=1",
    ])  # fmt: skip
    assert PairVPR.from_pretrained(run / "stage2" / "export").config.city_blocks == 12
    lines = (run / "stage2" / "metrics.jsonl").read_text()
    for name in ("validation/loss/city", "validation/city_accuracy", "validation/recall@1"):
        assert f'"{name}"' in lines, name
    found = read_json(run / "eval" / "results.json", "results")["cities"]
    assert found["names"] == ["Bangkok", "BuenosAires"]
    assert sum(map(sum, found["confusion"])) == 12
    assert "Bangkok" in (run / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "report:" in shown

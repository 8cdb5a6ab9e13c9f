"""A SUP-VPR model goes in and out as an export; what has pairs in it is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from two_cities import sup_vpr, write_two_cities

from pairvpr_dist import PairVPR
from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.pair_scorer import PairScorer
from pairvpr_dist.retrieval.place_index import PlaceIndex

REFUSED = (
    "a SUP-VPR model has no pair classifier; measure it with pairvpr eval --protocol cities, or name a Pair-VPR model"
)


@pytest.fixture(scope="module")
def sup_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sup") / "export"
    sup_vpr().save_pretrained(folder, {"stage": "stage2"})
    return folder


@pytest.fixture(scope="module")
def cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_cities(tmp_path_factory.mktemp("cities"))


def test_an_export_of_an_export_holds_the_same_model_and_says_what_it_is(
    sup_export: Path, cities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--data", str(cities), "--protocol", "cities", "--top-k", "10", "eval.workers=0"]
    run(["eval", "--model", str(sup_export), *rest, "--out", str(tmp_path / "eval")])
    run(["export", str(sup_export), "--out", str(tmp_path / "out"), "--results", str(tmp_path / "eval")])
    assert f"{sup_export}: stage2 by SUP-VPR, tiny, 70 px" in capsys.readouterr().out
    ours, theirs = (PairVPR.from_pretrained(path) for path in (tmp_path / "out", sup_export))
    assert ours.config == theirs.config
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    card = (tmp_path / "out" / "README.md").read_text()
    for told in ("# SUP-VPR model", "has no pair classifier", "| cities | `", "| place | 10 |", "| city | 10 |"):
        assert told in card


@pytest.mark.parametrize("form", ["released", "onnx", "torch-export"])
def test_forms_that_hold_a_pair_classifier_are_refused(
    sup_export: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as told:
        run(["export", str(sup_export), "--out", str(tmp_path / "out"), "--format", form])
    assert str(told.value) == f"{sup_export}: {REFUSED}"
    assert not (tmp_path / "out").exists()


def test_what_scores_pairs_is_refused(sup_export: Path, cities: Path, tmp_path: Path) -> None:
    photographs = shutil.copytree(cities / "bern" / "database", tmp_path / "photographs")
    first, second, *_ = map(str, sorted(photographs.iterdir()))
    for queries in ([first, second], [first, "--database", str(photographs)]):
        with pytest.raises(UserError) as told:
            run(["match", "--model", str(sup_export), *queries])
        assert str(told.value) == f"--model {sup_export}: {REFUSED}"
    with pytest.raises(UserError, match="an index of places: a SUP-VPR model has no pair classifier"):
        PlaceIndex.open(photographs, sup_export)
    with pytest.raises(UserError, match="scoring pairs: a SUP-VPR model has no pair classifier"):
        PairScorer(PairVPR.from_pretrained(sup_export))
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]
    assert all(path.suffix == ".jpg" for path in photographs.iterdir())  # no index was begun

"""Models in and out again: what promise holds for which file, bit for bit, and what the card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, write_json
from pairvpr_dist.interop.sources import open_file, open_source
from pairvpr_dist.interop.writing import add_results, write_released, write_safetensors
from pairvpr_dist.retrieval.evaluate import FORMAT, weights_digest
from pairvpr_dist.settings import ModelConfig

ReleasedState = Callable[[int], dict[str, Tensor]]
CONFIG = ModelConfig(
    encoder="tiny", image_size=70, frozen_blocks=2, decoder_dim=64, decoder_depth=2, decoder_heads=1,
    descriptor_dim=32, pair_hidden_dim=16,
)  # fmt: skip


def bits(state: dict[str, Tensor]) -> dict[str, Any]:
    """Every tensor as what makes it the same: dtype, shape and bytes, so that -0.0 is not 0.0."""
    return {key: (t.dtype, tuple(t.shape), t.contiguous().numpy().tobytes()) for key, t in state.items()}


def write_results(folder: Path, sha256: str, **more: Any) -> Path:
    """The results of an evaluation, as far as they go into a card."""
    truth = {
        "queries_counted": 1234,
        "descriptor_recall": {"1": 50, "5": 75.5},
        "reranked_recall": {"1": 60.1, "5": 80},
    }
    content = {
        "format": FORMAT, "protocol": "msls-val", "split": "5f3a" * 16, "queries": 1240, "database": 9, "top_k": 100,
        "image_size": 70, "precision": "fp32", "model": {"path": "m", "sha256": sha256},
        "ground_truths": {"25 m": truth}, **more,
    }  # fmt: skip
    folder.mkdir()
    write_json(folder / "results.json", content)
    return folder


@pytest.mark.parametrize("stage", [1, 2])
def test_a_released_file_comes_out_again_bit_for_bit(released_state: ReleasedState, tmp_path: Path, stage: int) -> None:
    state = released_state(stage)
    state["encoder.model.cls_token"][0, 0, :2] = torch.tensor([-0.0, 1e-30])
    state["encoder.model.pos_embed"][0, 0, :2] = torch.tensor([-0.0, 1.0])  # 1e-30 is lost in the sum
    state["mask_token"] += 1
    torch.save({"model": state, "epoch": 7} if stage == 1 else state, tmp_path / "released.pth")
    write_safetensors(open_file(tmp_path / "released.pth"), tmp_path / "imported")
    write_safetensors(open_source(tmp_path / "imported"), tmp_path / "copied")
    write_released(open_source(tmp_path / "copied"), tmp_path / "again")
    content = torch.load(tmp_path / "again/pairvpr.pth", weights_only=True)
    assert bits(content["model"] if stage == 1 else content) == bits(state)


def test_a_file_in_half_precision_comes_back_as_the_model_that_it_gave(
    released_state: ReleasedState, tmp_path: Path
) -> None:
    torch.save({key: value.half() for key, value in released_state(2).items()}, tmp_path / "half.pth")
    source = open_file(tmp_path / "half.pth")
    write_safetensors(source, tmp_path / "imported")
    write_released(open_source(tmp_path / "imported"), tmp_path / "again")
    again = PairVPR.from_pretrained(tmp_path / "again/pairvpr.pth")
    assert bits(again.state_dict()) == bits(source.model.state_dict())


def test_any_model_comes_back_from_a_released_file_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PairVPR(CONFIG)
    with torch.no_grad():
        model.encoder.vit.cls_token[0, 0, :2] = torch.tensor([-0.0, 0.0])
    model.save_pretrained(tmp_path / "export")
    write_released(open_source(tmp_path / "export"), tmp_path / "released")
    again = PairVPR.from_pretrained(tmp_path / "released/pairvpr.pth")
    assert again.config == replace(CONFIG, frozen_blocks=0)  # the form does not say which blocks were trained
    assert bits(again.state_dict()) == bits(model.state_dict())


def test_a_class_token_that_was_changed_after_the_import_is_the_one_that_goes_out(
    released_state: ReleasedState, tmp_path: Path
) -> None:
    torch.save(released_state(2), tmp_path / "released.pth")
    source = open_file(tmp_path / "released.pth")
    with torch.no_grad():
        source.model.encoder.vit.cls_token += 1
    write_released(source, tmp_path / "again")
    again = PairVPR.from_pretrained(tmp_path / "again/pairvpr.pth")
    assert bits(again.state_dict()) == bits(source.model.state_dict())


def test_stage_1_goes_out_without_the_head_that_its_form_has_no_place_for(tmp_path: Path) -> None:
    model = PairVPR(CONFIG)
    model.save_pretrained(tmp_path / "export", {"stage": "stage1"})
    (told,) = write_released(open_source(tmp_path / "export"), tmp_path / "released")
    assert "decoder.class_token" in told
    back, all_of_it = open_file(tmp_path / "released/pairvpr.pth"), bits(model.state_dict())
    all_of_it.pop("decoder.class_token")
    assert {key: value for key, value in bits(back.model.state_dict()).items() if key in all_of_it} == all_of_it
    assert (back.stage, back.facts["from scratch"]) == ("stage1", ["decoder.class_token"])


def test_what_the_released_form_cannot_tell_is_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 decoder heads; a released file does not say how many"):
        write_released(open_source(export), tmp_path / "out")
    PairVPR(CONFIG).save_pretrained(tmp_path / "encoder", {"stage": "encoder only"})
    with pytest.raises(UserError, match="untrained decoder and heads"):
        write_released(open_source(tmp_path / "encoder"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_of_an_export_holds_the_same_bytes_and_what_was_measured(export: Path, tmp_path: Path) -> None:
    calibration = {"slope": 1.5, "intercept": -2.0, "pairs": 60, "expected_error": 0.01}
    digest = weights_digest(export)
    first = write_results(tmp_path / "first", digest, calibration=calibration, deviation="739 of 740 queries")
    second = write_results(tmp_path / "second", digest, protocol="tokyo247", calibration=None)
    source = open_source(export)
    add_results(source, [first, second])
    write_safetensors(source, tmp_path / "out")
    assert weights_digest(tmp_path / "out") == digest
    facts = read_json(tmp_path / "out/config.json", "a configuration")["facts"]
    assert facts["calibration"] == calibration
    assert [results["split"] for results in facts["results"]] == ["5f3a" * 16] * 2
    card = (tmp_path / "out/README.md").read_text()
    row = "| `5f3a5f3a5f3a` | 25 m | 1,234 | 70 | 100 | 1 / 5 | 50.0 / 75.5 | 60.1 / 80.0 |"
    assert f"| msls-val (739 of 740 queries) {row}" in card
    assert f"| tokyo247 {row}" in card


def test_results_are_added_to_those_of_other_protocols_and_splits(export: Path, tmp_path: Path) -> None:
    digest, source = weights_digest(export), open_source(export)
    evaluations: dict[str, dict[str, Any]] = {
        "first": {"calibration": {"slope": 1.0, "intercept": 0.0}},
        "other protocol": {"protocol": "tokyo247", "calibration": {"slope": 2.0, "intercept": 0.0}},
        "again": {"top_k": 50, "calibration": None},
    }
    for name, content in evaluations.items():
        add_results(source, [write_results(tmp_path / name, digest, **content)])
        write_safetensors(source, tmp_path / f"with {name}")
        source = open_source(tmp_path / f"with {name}")
        assert source.facts.get("calibration") == content["calibration"]
    told = [(results["protocol"], results["top_k"]) for results in source.facts["results"]]
    assert told == [("tokyo247", 100), ("msls-val", 50)]


def test_results_for_a_checkpoint_are_refused(export: Path, tmp_path: Path) -> None:
    checkpoint = replace(open_source(export), digests=set())
    with pytest.raises(UserError, match="export it first and evaluate the export"):
        add_results(checkpoint, [write_results(tmp_path / "eval", weights_digest(export))])


def test_results_of_other_weights_are_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measured m, which has other weights"):
        add_results(open_source(export), [write_results(tmp_path / "eval", "0" * 64)])


def test_results_of_the_released_file_are_those_of_its_import(released_state: ReleasedState, tmp_path: Path) -> None:
    torch.save(released_state(2), tmp_path / "released.pth")
    write_safetensors(open_file(tmp_path / "released.pth"), tmp_path / "imported")
    source = open_source(tmp_path / "imported")
    add_results(source, [write_results(tmp_path / "eval", weights_digest(tmp_path / "released.pth"))])
    assert json.dumps(source.facts["results"])  # plain values

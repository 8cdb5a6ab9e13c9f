"""Where models come from: runs, checkpoints, exports, released files, DINOv2 encoders; and what is refused how."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_shards import photo_place, write_places
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import append_json_line, read_json, write_json
from pairvpr_dist.interop.sources import open_file, open_source
from pairvpr_dist.models.released import ENCODER, to_released
from pairvpr_dist.training.checkpoint import MANIFEST, Progress, record_of
from pairvpr_dist.training.engine import Stretch
from pairvpr_dist.training.saving import Saver

ReleasedState = Callable[[int], dict[str, Tensor]]


class Program:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def encoder_of(model: PairVPR) -> dict[str, Tensor]:
    """The encoder of a model under DINOv2's released names."""
    state = to_released(model.state_dict())
    return {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}


def test_the_stage_and_the_making_of_a_released_file(released_state: ReleasedState, tmp_path: Path) -> None:
    torch.save({"model": released_state(1), "epoch": 499, "args": argparse.Namespace(lr=1)}, tmp_path / "first.pth")
    torch.save(released_state(2), tmp_path / "second.pth")
    first, second = open_file(tmp_path / "first.pth"), open_file(tmp_path / "second.pth")
    assert first.summary.startswith("stage1, dinov2_vits14_reg, 70 px, ")
    assert first.facts["epoch"] == 499
    assert first.facts["from scratch"] == ["decoder.class_token"]
    assert second.summary.startswith("stage2, dinov2_vits14_reg, 98 px, ")
    assert "from scratch" not in second.facts
    assert second.digests == {second.facts["sha256 of the file"]}


def test_what_a_file_lacks_is_the_same_at_every_import(released_state: ReleasedState, tmp_path: Path) -> None:
    torch.save(released_state(1), tmp_path / "first.pth")
    one = open_file(tmp_path / "first.pth").model.decoder.class_token
    torch.randn(3)
    assert torch.equal(one, open_file(tmp_path / "first.pth").model.decoder.class_token)


def test_half_precision_is_widened_and_told(released_state: ReleasedState, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in released_state(2).items()}, tmp_path / "half.pth")
    source = open_file(tmp_path / "half.pth")
    assert source.facts["numbers of the file"] == "float16, here float32"
    assert {tensor.dtype for tensor in source.model.state_dict().values()} == {torch.float32}


def test_a_model_is_made_around_a_dinov2_encoder(
    model: PairVPR, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(encoder_of(model), tmp_path / "dinov2.pth")
    save_file(model.encoder.vit.state_dict(), tmp_path / "timm.safetensors")
    with caplog.at_level(logging.WARNING):
        released, timm = open_file(tmp_path / "dinov2.pth"), open_file(tmp_path / "timm.safetensors")
    assert "decoder and heads start from scratch" in caplog.text
    assert released.stage == timm.stage == "encoder only"
    assert released.model.config == timm.model.config == load_config("stage1", "tiny", ["data.shards=none"]).model
    for name, tensor in model.encoder.vit.state_dict().items():
        assert torch.equal(released.model.encoder.vit.state_dict()[name], tensor)
        assert torch.equal(timm.model.encoder.vit.state_dict()[name], tensor)
    assert "encoder.mask_token" in timm.facts["from scratch"]
    assert "encoder.mask_token" not in released.facts["from scratch"]


def test_a_run_gives_the_export_of_its_last_stage(model: PairVPR, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model.save_pretrained(run / "stage1/export", {"stage": "stage1"})
    assert open_source(run).stage == "stage1"
    model.save_pretrained(run / "stage2/export", {"stage": "stage2"})
    assert open_source(run).path == run / "stage2/export"
    assert open_source(run / "stage1").path == run / "stage1/export"


def test_a_checkpoint_gives_its_weights_and_the_facts_of_its_step(tmp_path: Path) -> None:
    shards = write_places(tmp_path / "shards", [photo_place(number, 2) for number in range(2)])
    config = load_config("stage2", "tiny", [f"data.shards={shards}"])
    run, trained = tmp_path / "run", PairVPR(config.model)
    run.mkdir()
    saver = Saver(run, config)
    saver.save({f"weight/{k}": Stretch(0, v.flatten()) for k, v in trained.state_dict().items()}, 2, Progress(2), True)
    saver.close()
    for step in (1, 2, 3):
        append_json_line(run / "metrics.jsonl", {"step": step, "loss": step / 2})
    source = open_source(run / "checkpoints/best")
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in source.model.state_dict().items())
    assert (source.stage, source.facts["steps"], source.facts["metrics"]) == ("stage2", 2, {"loss": 1.0})
    damaged = run / "checkpoints/step-00000002/rank-0000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"step-00000002: damaged: rank-0000.safetensors differs from the manifest"):
        open_source(run / "checkpoints/best")


def test_a_checkpoint_of_another_version_is_told(tmp_path: Path, model: PairVPR) -> None:
    shards = write_places(tmp_path / "shards", [photo_place(number, 2) for number in range(2)])
    config = load_config("stage2", "tiny", [f"data.shards={shards}"])
    run, state = tmp_path / "run", PairVPR(config.model).state_dict()
    run.mkdir()
    saver = Saver(run, config)
    saver.save({f"weight/{k}": Stretch(0, v.flatten()) for k, v in state.items()}, 2, Progress(2), True)
    saver.close()
    checkpoint = run / "checkpoints/step-00000002"
    content = read_json(checkpoint / "state.json", "a state")
    content["config"]["train"]["of_old"] = 1
    write_json(checkpoint / "state.json", content)
    manifest = read_json(checkpoint / MANIFEST, "a manifest")
    write_json(checkpoint / MANIFEST, manifest | {"state.json": record_of(checkpoint / "state.json")})
    with pytest.raises(UserError, match=r"step-00000002: made by another version .*of_old.*; use the export/"):
        open_source(checkpoint)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ([1], "'facts' is no table"),
        ({"sha256 of the file": 3}, "'sha256 of the file' is no text"),
        ({"from scratch": "decoder"}, "'from scratch' is no list"),
        ({"results": {"protocol": "folder"}}, "'results' is no list"),
        ({"results": [{"protocol": "folder"}]}, "'results' is no list"),
    ],
)
def test_an_export_whose_facts_are_none_is_told(export: Path, tmp_path: Path, facts: Any, told: str) -> None:
    copy = shutil.copytree(export, tmp_path / "copy")
    write_json(copy / "config.json", read_json(copy / "config.json", "a configuration") | {"facts": facts})
    with pytest.raises(UserError, match=rf"config.json: .*{told}.*; export the model again"):
        open_source(copy)


def test_what_was_kept_of_another_file_is_told(export: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(export, tmp_path / "copy")
    save_file({"mask_token": torch.zeros(1)}, copy / "released.safetensors")
    with pytest.raises(UserError, match=r"released.safetensors: not what was kept"):
        open_source(copy)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"weight": torch.zeros(1)}, "neither a released Pair-VPR file nor a DINOv2 encoder; it begins with weight"),
        ({}, "it begins with nothing"),
        ({"model": 3}, "holds no state dict"),
        ({"model": {"weight": 3}}, "holds no state dict"),
        ([1, 2], "holds a list"),
    ],
)
def test_files_of_another_kind_are_told_what_they_are(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other.pth: .*{told}"):
        open_source(tmp_path / "other.pth")


def test_encoders_that_fit_no_model_are_refused(model: PairVPR, tmp_path: Path) -> None:
    state = encoder_of(model)
    cases = {
        "plain": ({k: v for k, v in state.items() if k != "register_tokens"}, "without register tokens"),
        "short": ({k: v for k, v in state.items() if "blocks.2." not in k}, "96 wide and 2 blocks deep"),
        "broken": ({k: v for k, v in state.items() if k != "norm.bias"}, "missing: vit.norm.bias"),
        "flat": (state | {"cls_token": torch.zeros(())}, r"cls_token has the shape \(\)"),
        "far": (state | {"blocks.999999999.x": torch.zeros(1)}, "its 4 blocks are not numbered 0 to 3"),
    }
    for name, (content, told) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=rf"{name}.pth: .*{told}"):
            open_file(tmp_path / f"{name}.pth")


def test_files_that_would_run_code_are_refused_and_not_run(tmp_path: Path) -> None:
    program = Program(tmp_path / "ran")
    torch.save({"model": {"decoder_embed.weight": program}}, tmp_path / "zip.pth")
    torch.save({"model": program}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "array.npy", np.array([program]), allow_pickle=True)
    for name in ("zip.pth", "old.pth", "array.npy"):
        with pytest.raises(UserError, match=rf"{name}: not readable as weights: ") as refused:
            open_source(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_folders_without_a_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model; name a run folder"):
        open_source(tmp_path)
    (tmp_path / "run/stage2/checkpoints").mkdir(parents=True)
    (tmp_path / "run/stage2/checkpoints/latest").write_text("step-00000003\n")
    with pytest.raises(
        UserError, match=r"has no export yet; name one of its checkpoints, as .*stage2/checkpoints/latest"
    ):
        open_source(tmp_path / "run")
    with pytest.raises(UserError, match="step-00000003: no such file"):
        open_source(tmp_path / "run/stage2/checkpoints/latest")

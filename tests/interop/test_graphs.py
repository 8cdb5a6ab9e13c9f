"""ONNX and torch.export of a model give PyTorch's numbers at any batch, and are refused where they cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pairvpr_dist import PairVPR
from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.interop import graphs
from pairvpr_dist.interop.sources import open_source
from pairvpr_dist.interop.writing import write_safetensors

SIZE, PATCHES, BATCH = 98, 49, 5  # pixels, not the model's own; and a batch that the writing did not try


@pytest.fixture(scope="module")
def expected(model: PairVPR) -> dict[str, torch.Tensor]:
    """What the model makes of random images, as it is used here."""
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model.describe(images)
        score = model.similarity(out.dense, out.dense.flip(0))
    return {"images": images, "descriptor": out.descriptors, "dense": out.dense, "score": score}


@pytest.mark.parametrize("one_file", [graphs.ONE_FILE, pytest.param(0, marks=pytest.mark.slow)])
def test_onnx_gives_pytorchs_numbers(
    export: Path, tmp_path: Path, expected: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, one_file: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(graphs, "ONE_FILE", one_file)
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra pairvpr_dist[onnx]")
    pytest.importorskip("onnxscript", reason="needs the extra pairvpr_dist[onnx]")
    run(["export", str(export), "--out", str(tmp_path / "out"), "--format", "onnx", "--image-size", str(SIZE)])
    told = capsys.readouterr().out
    assert "opset 20" in told
    assert "pair_head.onnx: differs from PyTorch by" in told
    encoder = onnxruntime.InferenceSession(tmp_path / "out/encoder.onnx")
    descriptor, dense = encoder.run(["descriptor", "dense"], {"images": expected["images"].numpy()})
    head = onnxruntime.InferenceSession(tmp_path / "out/pair_head.onnx")
    (score,) = head.run(["score"], {"query": dense, "candidate": dense[::-1].copy()})
    for name, value in {"descriptor": descriptor, "dense": dense, "score": score}.items():
        np.testing.assert_allclose(value, expected[name].numpy(), atol=2e-5, err_msg=name)
    assert (tmp_path / "out/encoder.onnx.data").exists() == (one_file == 0)
    assert "| ONNX opset | 20 |" in (tmp_path / "out/README.md").read_text()


def test_torch_export_gives_pytorchs_numbers(export: Path, tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    graphs.write_torch_export(open_source(export), tmp_path / "out", SIZE)
    encoder, head = (torch.export.load(tmp_path / f"out/{name}.pt2").module() for name in ("encoder", "pair_head"))
    descriptor, dense = encoder(expected["images"])
    torch.testing.assert_close(descriptor, expected["descriptor"])
    torch.testing.assert_close(dense, expected["dense"])
    torch.testing.assert_close(head(dense, dense.flip(0)), expected["score"])
    with pytest.raises(Exception, match="98"):  # one image size
        encoder(torch.zeros(1, 3, 70, 70))


def test_what_differs_from_pytorch_is_not_left_behind(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"encoder.pt2 differs from PyTorch by"):
        graphs.write_torch_export(open_source(export), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_its_packages_onnx_is_refused_in_one_line(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    with pytest.raises(UserError, match=r"not installed; pip install onnx onnxruntime onnxscript$"):
        graphs.write_onnx(open_source(export), tmp_path / "out")


def test_a_model_without_trained_heads_has_no_graphs(model: PairVPR, tmp_path: Path) -> None:
    source = open_source(_of_stage_1(model, tmp_path))
    with pytest.raises(UserError, match="stage 'stage1', its descriptor and pair head are untrained"):
        graphs.write_torch_export(source, tmp_path / "out")
    write_safetensors(source, tmp_path / "out")


def _of_stage_1(model: PairVPR, folder: Path) -> Path:
    model.save_pretrained(folder / "stage1", {"stage": "stage1"})
    return folder / "stage1"


def test_an_image_size_must_fit_the_patches(export: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--image-size=71: must be a multiple of 14"):
        graphs.write_torch_export(open_source(export), tmp_path / "out", 71)
    with pytest.raises(UserError, match="--image-size: weights fit any image size"):
        run(["export", str(export), "--out", str(tmp_path / "out"), "--image-size", "70"])

"""SUP-VPR's head: what its parts compute, and how it starts from a Pair-VPR model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, layer_norm, softmax

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.city_head import CELLS, CityAttention, DepthFusion, cell_means
from pairvpr_dist.models.decoder import EPS
from pairvpr_dist.models.encoder import spaced_depths
from pairvpr_dist.models.weights import load_pretrained
from pairvpr_dist.settings import ModelConfig


def supvpr_config(size: str = "tiny", *changes: str) -> ModelConfig:
    config: ModelConfig = load_config("stage2", size, ["objective=supvpr", "data.shards=none", *changes]).model
    return config


@pytest.fixture(scope="module")
def supvpr() -> PairVPR:
    torch.manual_seed(0)
    return PairVPR(supvpr_config("tiny", "model.frozen_blocks=1")).eval()


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter noise, so that none is left out unseen."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.3)
    return module


def test_depths_are_evenly_spaced_and_end_with_the_last() -> None:
    assert spaced_depths(12, 4) == [3, 6, 9, 12]
    assert spaced_depths(40, 4) == [10, 20, 30, 40]
    assert spaced_depths(3, 3) == [1, 2, 3]


def test_fusion_is_the_weighted_sum_of_normalised_depths_pooled() -> None:
    fusion = randomised(DepthFusion(8, 3, 32))
    tokens = torch.randn(2, 3, 64, 8)
    added = torch.zeros(2, 64, 8)
    for k in range(3):
        norm = fusion.norms[k]
        added += fusion.weights[k] * layer_norm(tokens[:, k], (8,), norm.weight, norm.bias, EPS)
    parts = []
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            cell = added.unflatten(1, (8, 8))[:, row : row + 2, column : column + 2].mean(dim=(1, 2))
            parts.append(cell @ fusion.project.weight.T + fusion.project.bias)
    torch.testing.assert_close(fusion(tokens), torch.cat(parts, dim=1))


@pytest.mark.parametrize("side", [3, 4, 5, 16, 23])
def test_cells_are_those_of_adaptive_pooling(side: int) -> None:
    dense = torch.randn(2, side**2, 6)
    expected = adaptive_avg_pool2d(dense.transpose(1, 2).unflatten(2, (side, side)), CELLS)
    torch.testing.assert_close(cell_means(dense), expected.flatten(2).transpose(1, 2))


def attended(attention: CityAttention, x: Tensor, context: Tensor) -> Tensor:
    """Equation 2 for one image with all of its context, block after block, a head at a time."""
    y = layer_norm(context, context.shape[-1:], attention.context_norm.weight, attention.context_norm.bias, EPS)
    for norm, block in zip(attention.norms, attention.blocks, strict=True):
        query = block.q(layer_norm(x, x.shape, norm.weight, norm.bias, EPS))
        keys, values = block.k(y), block.v(y)
        width = len(query) // block.heads
        parts = []
        for head in range(block.heads):
            own = slice(head * width, (head + 1) * width)
            shares = softmax(keys[:, own] @ query[own] / width**0.5, dim=0)
            parts.append(shares @ values[:, own])
        x = x + block.proj(torch.cat(parts))
    return x


def test_attention_follows_equation_2_and_sees_only_what_is_there() -> None:
    attention = randomised(CityAttention(12, 3, 2))
    x, context = torch.randn(2, 12), torch.randn(2, 5, 12)
    seen = torch.tensor([[True] * 5, [True, False, True, False, False]])
    got = attention(x, context, seen)
    torch.testing.assert_close(got[0], attended(attention, x[0], context[0]))
    torch.testing.assert_close(got[1], attended(attention, x[1], context[1, [0, 2]]))


def test_descriptor_and_embedding_of_an_image(supvpr: PairVPR) -> None:
    images = torch.randn(3, 3, 70, 70)
    described = supvpr.describe(images)
    assert described.descriptors.shape == (3, 1024)
    torch.testing.assert_close(described.descriptors.norm(dim=1), torch.ones(3))
    assert described.dense.shape == (3, 1, 96)
    torch.testing.assert_close(described.dense[:, 0], supvpr.embed(images))
    dense = supvpr.encoder(images)[1]
    torch.testing.assert_close(supvpr.embed(images), supvpr.city_head.embed.map(dense.mean(dim=1)))


def test_the_last_of_several_depths_is_the_encoders_output(supvpr: PairVPR) -> None:
    images = torch.randn(2, 3, 70, 70)
    tokens = supvpr.encoder(images, depths=3)[1]
    assert tokens.shape == (2, 3, 25, 96)
    torch.testing.assert_close(tokens[:, -1], supvpr.encoder(images)[1])
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])


@pytest.mark.parametrize("recompute", [False, True])
def test_every_trained_parameter_gets_a_gradient(supvpr: PairVPR, recompute: bool) -> None:
    supvpr.zero_grad()
    images = torch.randn(4, 3, 70, 70)
    descriptors = supvpr.describe(images, recompute=recompute).descriptors
    embeddings = supvpr.embed(images, recompute=recompute)
    moved = supvpr.among_cities(embeddings, embeddings[None].expand(4, -1, -1), torch.ones(4, 4, dtype=torch.bool))
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(4))
    (descriptors.sum() + moved.sum()).backward()
    silent = [name for name, p in supvpr.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    assert all(p.grad is None for p in supvpr.encoder.vit.blocks[0].parameters())


def test_an_export_is_read_back(supvpr: PairVPR, tmp_path: Path) -> None:
    supvpr.save_pretrained(tmp_path / "export")
    again = PairVPR.from_pretrained(tmp_path / "export")
    assert again.config == supvpr.config
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in supvpr.state_dict().items())


def test_it_starts_from_the_encoder_of_a_pair_vpr_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    stage1 = PairVPR(load_config("stage1", "tiny", ["data.shards=none"]).model)
    stage1.save_pretrained(tmp_path / "export")
    ours = PairVPR(supvpr_config())
    before = ours.city_head.fusion.project.weight.clone()
    load_pretrained(ours, tmp_path / "export")
    for name, parameter in ours.encoder.state_dict().items():
        assert torch.equal(parameter, stage1.encoder.state_dict()[name]), name
    assert torch.equal(ours.city_head.fusion.project.weight, before)
    assert "no city_head: a Pair-VPR model; that starts from scratch" in caplog.text


def test_an_export_without_its_head_is_refused(supvpr: PairVPR, tmp_path: Path) -> None:
    supvpr.save_pretrained(tmp_path / "export")
    state = {name: p for name, p in supvpr.state_dict().items() if not name.startswith("city_head.")}
    save_file(state, tmp_path / "export" / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: city_head\.fusion\.weights"):
        PairVPR.from_pretrained(tmp_path / "export")
    with pytest.raises(UserError, match=r"missing: city_head\.fusion\.weights"):
        load_pretrained(PairVPR(supvpr.config), tmp_path / "export")


def refuse_other_encoder(folder: Path) -> str:
    PairVPR(load_config("stage1", "tiny", ["data.shards=none", "model.encoder=tiny_s"]).model).save_pretrained(folder)
    load_pretrained(PairVPR(supvpr_config()), folder)
    return ""


def refuse_pair_vpr_of_supvpr(folder: Path) -> str:
    PairVPR(supvpr_config()).save_pretrained(folder)
    load_pretrained(PairVPR(load_config("stage2", "tiny", ["data.shards=none"]).model), folder)
    return ""


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (refuse_other_encoder, "encoder is tiny_s, here tiny"),
        (refuse_pair_vpr_of_supvpr, "city_blocks is 12, here 0"),
    ],
)
def test_models_that_do_not_fit_are_refused(refused: Callable[[Path], str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        refused(tmp_path / "export")


def test_more_depths_than_blocks_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.fused_depths=4: the encoder has only 3 blocks"):
        PairVPR(supvpr_config("tiny", "model.fused_depths=4"))

"""Stage 2 stays finite for all finite input, in fp32 and bf16, and its losses are computed in fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import unit_length
from pairvpr_dist.objectives.place_recognition import PlaceRecognition

PRECISIONS = [torch.float32, torch.bfloat16]


def photographs(kind: str) -> torch.Tensor:
    """4 places with 2 views each, uint8."""
    draws = torch.Generator().manual_seed(0)
    return {
        "noise": torch.randint(0, 256, (4, 2, 3, 42, 42), generator=draws),
        "black": torch.zeros(4, 2, 3, 42, 42),
        "white": torch.full((4, 2, 3, 42, 42), 255),
        "one image everywhere": torch.randint(0, 256, (3, 42, 42), generator=draws).expand(4, 2, 3, 42, 42),
        "black beside noise": torch.stack(
            [torch.zeros(4, 3, 42, 42), torch.randint(0, 256, (4, 3, 42, 42), generator=draws)], dim=1
        ),
    }[kind].to(torch.uint8)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("weights", ["fresh", "large", "no descriptor"])
@pytest.mark.parametrize("kind", ["noise", "black", "white", "one image everywhere", "black beside noise"])
def test_losses_and_gradients_are_finite(model: PairVPR, kind: str, weights: str, precision: torch.dtype) -> None:
    own = PairVPR(model.config)
    own.load_state_dict(model.state_dict())
    with torch.no_grad():
        if weights == "large":  # descriptors of 1e20 and logits of thousands
            own.descriptor_head.weight.mul_(1e20)
            own.pair_head[2].weight.mul_(1e4)
        if weights == "no descriptor":
            own.descriptor_head.weight.zero_()
            own.descriptor_head.bias.zero_()
    config = load_config("stage2", "vitb", ["data.shards=none"])
    objective = PlaceRecognition(own.to(precision), config.objective, config.data.augment, ["one"])
    images = photographs(kind)
    keys = torch.arange(8).reshape(4, 2)
    loss, metrics = objective(Batch(images, keys, torch.arange(4), *[torch.zeros(4, dtype=torch.int64)] * 2), 0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(value.isfinite() for value in metrics.values())
    for name, parameter in own.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_bf16_gives_the_losses_of_fp32_within_its_rounding(model: PairVPR) -> None:
    config = load_config("stage2", "vitb", ["data.shards=none"])
    batch = Batch(photographs("noise"), torch.arange(8).reshape(4, 2), torch.arange(4), *[torch.zeros(4).long()] * 2)
    measured = []
    for precision in PRECISIONS:
        own = PairVPR(model.config)
        own.load_state_dict(model.state_dict())
        objective = PlaceRecognition(own.to(precision), config.objective, config.data.augment, ["one"])
        measured.append(objective(batch, 0)[1])
    for name in ("loss/descriptor", "loss/pair"):
        torch.testing.assert_close(measured[1][name], measured[0][name], rtol=2e-2, atol=0)


@pytest.mark.parametrize("logit", [-1e30, -1e4, -50.0, 0.0, 50.0, 1e4, 1e30])
def test_the_pair_loss_of_any_logit_is_finite(logit: float) -> None:
    """Through a sigmoid of its own it would be infinite from 17 on in fp32."""
    value = torch.tensor([logit, logit], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(value, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.isfinite()
    assert value.grad is not None
    assert value.grad.isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@given(exponent=st.integers(-37, 37), seed=st.integers(0, 99))
def test_a_vector_of_any_size_has_unit_length(precision: torch.dtype, exponent: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    plain = torch.randn(3, 16, generator=draws).to(precision)
    vector = (plain.double() * 10.0**exponent).to(precision).requires_grad_()
    weights = torch.randn(3, 16, generator=draws)
    unit = unit_length(vector)
    (unit * weights).sum().backward()
    assert unit.dtype == torch.float32
    assert unit.isfinite().all()
    assert vector.grad is not None
    assert vector.grad.isfinite().all()
    if exponent >= -5:
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(3), rtol=1e-5, atol=0)
    if -5 <= exponent <= 15:  # where torch's own squares stay within fp32
        reference = vector.detach().clone().requires_grad_()
        expected = F.normalize(reference.float(), dim=1)
        (expected * weights).sum().backward()
        torch.testing.assert_close(unit, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            vector.grad, reference.grad, rtol=1e-2, atol=1e-6 * float(reference.grad.abs().max())
        )


def test_no_vector_has_no_direction_and_a_finite_gradient() -> None:
    zero = torch.zeros(2, 8, requires_grad=True)
    unit = unit_length(zero)
    unit.sum().backward()
    assert not unit.any()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()

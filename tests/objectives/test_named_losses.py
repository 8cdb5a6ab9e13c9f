"""Losses and miners by name: what is accepted, what is refused, and that each trains."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MultiSimilarityLoss

from pairvpr_dist.errors import UserError
from pairvpr_dist.objectives.named_losses import build_loss, build_miner, parse_call

LOSSES = [
    "MultiSimilarityLoss(alpha=1, beta=50, base=0)",
    "TripletMarginLoss(margin=0.1)",
    "ContrastiveLoss",
    "NTXentLoss(temperature=0.1)",
    "CircleLoss(m=0.4, gamma=80)",
    "FastAPLoss",
    "SupConLoss()",
]


@pytest.mark.parametrize("text", LOSSES)
@pytest.mark.parametrize("case", ["random", "all alike", "all of one place", "no two of a place"])
def test_a_loss_and_its_gradient_are_finite(text: str, case: str) -> None:
    torch.manual_seed(0)
    raw = torch.randn(12, 8) if case != "all alike" else torch.ones(12, 8)
    labels = {"all of one place": torch.zeros(12), "no two of a place": torch.arange(12)}.get(
        case, torch.arange(12) // 3
    )
    raw.requires_grad_()
    loss = build_loss(text)(F.normalize(raw), labels.long())
    loss.backward()
    assert loss.isfinite()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    if case == "random":
        assert raw.grad.any()


def test_arguments_reach_the_loss() -> None:
    loss = build_loss("MultiSimilarityLoss(alpha=3, beta=40, base=0.5)")
    assert isinstance(loss, MultiSimilarityLoss)
    assert (loss.alpha, loss.beta, loss.base) == (3, 40, 0.5)
    assert build_miner("TripletMarginMiner(margin=0.3)").margin == 0.3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("MultiSimilarityLos", "did you mean 'MultiSimilarityLoss'"),
        ("MultiSimilarityLoss(gamma=1)", "gamma"),
        ("MultiSimilarityLoss(alpha='x')", "does not work"),
        ("VICRegLoss", "does not work"),
        ("SubCenterArcFaceLoss", "does not work"),
        ("TripletMarginLoss(triplets_per_anchor=2)", "draws at random"),
        ("DynamicSoftMarginLoss", "remembers batches"),
        ("ArcFaceLoss(num_classes=4, embedding_size=8)", "weights of its own"),
        ("__import__('os').system('true')", "write Name(argument=number"),
        ("MultiSimilarityLoss(alpha=open('x'))", "write Name(argument=number"),
        ("MultiSimilarityLoss(1)", "write Name(argument=number"),
        ("", "write Name(argument=number"),
        ("losses", "has no losses"),
    ],
)
def test_others_are_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UserError, match=r"objective\.descriptor_loss=") as refused:
        build_loss(text)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_call_is_read_without_being_run() -> None:
    assert parse_call("A(b=1, c=-0.5, d=[1, 2])", "key") == ("A", {"b": 1, "c": -0.5, "d": [1, 2]})


def test_a_miner_that_draws_at_random_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.descriptor_miner=DistanceWeightedMiner: draws at random"):
        build_miner("DistanceWeightedMiner")

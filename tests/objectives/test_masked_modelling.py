"""Stage 1: the loss against a plain loop, and what it does not look at."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.patches import hidden_first, normalised, patchify, take_rows, unpatchify
from pairvpr_dist.objectives.masked_modelling import MaskedModelling
from pairvpr_dist.settings import AugmentConfig, MaskedModellingConfig

AUGMENT = AugmentConfig(
    crop_area=[1.0, 1.0], crop_aspect=[1.0, 1.0], colour_jitter=0.4, rand_augment_ops=0, copies=False
)


def make_batch(places: int = 4, size: int = 70) -> Batch:
    draws = torch.Generator().manual_seed(1)
    return Batch(
        torch.randint(0, 256, (places, 2, 3, size, size), generator=draws, dtype=torch.uint8),
        torch.randint(0, 2**62, (places, 2), generator=draws),
        torch.arange(places),
        torch.arange(places) % 2,
        torch.zeros(places, dtype=torch.int64),
    )


@pytest.fixture
def objective(model: PairVPR) -> MaskedModelling:
    own = PairVPR(model.config)
    own.load_state_dict(model.state_dict())
    return MaskedModelling(own, MaskedModellingConfig(mask_ratio=0.9, drop_hidden=False), AUGMENT, ["land", "sea"])


def plain_loss(prediction: Tensor, image: Tensor, mask: Tensor) -> float:
    """The definition, one hidden patch after another."""
    errors = []
    for place in range(len(image)):
        for patch in range(mask.shape[1]):
            if mask[place, patch]:
                row, column = patch // 5 * 14, patch % 5 * 14
                pixels = image[place, :, row : row + 14, column : column + 14].double()
                target = (pixels - pixels.mean()) / (pixels.var(unbiased=True) + 1e-6).sqrt()
                guess = prediction[place, patch].double().reshape(14, 14, 3).permute(2, 0, 1)
                errors.append(((guess - target) ** 2).mean())
    return float(torch.stack(errors).mean())


def test_the_loss_is_the_definition(objective: MaskedModelling) -> None:
    batch = make_batch()
    image, other, mask = objective.views(batch)
    assert mask.sum(dim=1).tolist() == [22] * 4  # int(0.9 * 25)
    with torch.no_grad():
        prediction = objective.model.reconstruct(image, mask, other)
        loss, _ = objective(batch, 0)
    assert float(loss) == pytest.approx(plain_loss(prediction, image, mask), rel=1e-5)


def straightforward_loss(objective: MaskedModelling, batch: Batch) -> Tensor:
    """Each view by itself, all patches predicted, those that are not hidden left out afterwards."""
    model = objective.model
    image, other, mask = objective.views(batch)
    x = model.encoder(image, mask)[1]
    predicted = model.pixel_head(model.decoder(x, model.encoder(other)[1], with_class_token=False))
    errors = (predicted - normalised(patchify(image))).square().mean(dim=-1)
    return (errors * mask).sum() / mask.sum()


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("frozen", [0, 2])
def test_loss_and_gradients_are_those_of_a_straightforward_step(
    objective: MaskedModelling, frozen: int, checkpointing: str
) -> None:
    torch.manual_seed(0)
    model = PairVPR(replace(objective.model.config, frozen_blocks=frozen))
    objective = MaskedModelling(model, MaskedModellingConfig(mask_ratio=0.9, drop_hidden=False), AUGMENT, [])
    batch = make_batch()
    plain = straightforward_loss(objective, batch)
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.run_blocks(checkpointing)
    loss, _ = objective(batch, 0)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_dropped_patches_are_not_looked_at_and_their_token_is_trained(objective: MaskedModelling) -> None:
    model = PairVPR(replace(objective.model.config, frozen_blocks=2))
    dropping = MaskedModelling(model, MaskedModellingConfig(mask_ratio=0.9, drop_hidden=True), AUGMENT, [])
    image, other, mask = dropping.views(make_batch())
    with torch.no_grad():
        rows = dropping.predict(image, other, mask)[1]
        assert torch.equal(torch.zeros_like(mask).scatter(1, rows, True), mask)
        hidden = unpatchify(mask.float().unsqueeze(-1).expand(-1, -1, 588), (5, 5)).bool()
        noise = torch.where(hidden, torch.randn_like(image), image)
        assert torch.equal(dropping.predict(image, other, mask)[0], dropping.predict(noise, other, mask)[0])
        seen = torch.where(hidden, image, torch.randn_like(image))
        assert not torch.allclose(dropping.predict(image, other, mask)[0], dropping.predict(seen, other, mask)[0])
    dropping(make_batch(), 0)[0].backward()
    assert model.encoder.mask_token.grad is not None
    assert model.encoder.mask_token.grad.any()


def test_gradients_reach_encoder_decoder_and_head_alone(objective: MaskedModelling) -> None:
    objective(make_batch(), 0)[0].backward()
    without = {name for name, p in objective.model.named_parameters() if p.grad is None or not p.grad.any()}
    stage2_only = {
        name
        for name, _ in objective.model.named_parameters()
        if name.startswith(("decoder.class_token", "descriptor_head", "pair_head"))
    }
    assert without == stage2_only
    assert all(not p.requires_grad for name, p in objective.model.named_parameters() if name in stage2_only)


def test_the_loss_of_every_data_set(objective: MaskedModelling) -> None:
    batch = make_batch()
    with torch.no_grad():
        loss, metrics = objective(batch, 0)
        by_hand = {
            name: objective(Batch(*(getattr(batch, f.name)[rows] for f in fields(Batch))), 0)[0]
            for name, rows in {"loss/land": [0, 2], "loss/sea": [1, 3]}.items()
        }
    assert metrics.keys() == by_hand.keys()
    for name, expected in by_hand.items():
        torch.testing.assert_close(metrics[name], expected)
    torch.testing.assert_close(sum(metrics.values()) / 2, loss)


def test_a_data_set_that_the_batch_lacks_is_nan_and_a_single_one_is_not_told(objective: MaskedModelling) -> None:
    batch = replace(make_batch(), datasets=torch.zeros(4, dtype=torch.int64))
    _, metrics = objective(batch, 0)
    assert metrics["loss/sea"].isnan()
    objective.datasets = ["land"]
    assert objective(batch, 0)[1] == {}


def test_a_view_is_the_same_in_every_batch(objective: MaskedModelling) -> None:
    batch = make_batch()
    turned = Batch(*(getattr(batch, f.name).flip(0) for f in fields(Batch)))
    for ours, theirs in zip(objective.views(batch), objective.views(turned), strict=True):
        assert torch.equal(ours, theirs.flip(0))


def test_the_cross_view_gain_is_the_loss_with_a_wrong_second_view_less_that_with_the_right_one(
    objective: MaskedModelling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that copies the second view gains from it: here both views of a place are the same image."""
    batch = make_batch()
    batch.images[:, 1] = batch.images[:, 0]
    batch.keys[:, 1] = batch.keys[:, 0]

    def copy_the_other(image: Tensor, mask: Tensor, other: Tensor, hidden: int, *, drop: bool) -> tuple[Tensor, Tensor]:
        rows = hidden_first(mask)[:, :hidden]
        return normalised(take_rows(patchify(other), rows)), rows

    monkeypatch.setattr(objective.model, "reconstruct_hidden", copy_the_other)
    metrics = objective.validate(batch, 0)
    assert float(metrics["loss"]) == pytest.approx(0, abs=1e-6)
    assert float(metrics["cross_view_gain"]) == pytest.approx(2, rel=0.1)  # two independent normalised patches

    def blind(image: Tensor, mask: Tensor, other: Tensor, hidden: int, *, drop: bool) -> tuple[Tensor, Tensor]:
        return torch.zeros(4, hidden, 588), hidden_first(mask)[:, :hidden]

    monkeypatch.setattr(objective.model, "reconstruct_hidden", blind)
    assert float(objective.validate(batch, 0)["cross_view_gain"]) == 0


def test_the_picture_shows_four_columns_a_place(objective: MaskedModelling) -> None:
    batch = make_batch()
    picture = objective.picture(batch)
    assert picture.shape == (3, 4 * 70, 4 * 70)
    assert picture.dtype == torch.uint8
    image, other, _ = objective.views(batch)
    assert (picture[:, :70, 140:210].float() - objective.picture(batch)[:, :70, 140:210].float()).abs().max() == 0
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for column, expected in ((2, image), (3, other)):
        shown = picture[:, :70, 70 * column : 70 * column + 70].float() / 255
        pixels = expected[0] * std[:, None, None] + mean[:, None, None]
        torch.testing.assert_close(shown, pixels, atol=0.003, rtol=0)

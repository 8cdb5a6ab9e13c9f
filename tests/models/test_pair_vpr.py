"""The public face: what `PairVPR` gives for images and pairs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pairvpr_dist import PairVPR


@pytest.fixture(autouse=True)
def _without_gradient() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("size", [42, 70, 98])
def test_describe(model: PairVPR, size: int) -> None:
    out = model.describe(torch.randn(3, 3, size, size))
    assert out.descriptors.shape == (3, model.config.descriptor_dim)
    assert out.descriptors.dtype == torch.float32
    torch.testing.assert_close(out.descriptors.norm(dim=1), torch.ones(3))
    assert out.dense.shape == (3, (size // 14) ** 2, 96)


def test_images_and_pairs_of_a_batch_do_not_mix(model: PairVPR) -> None:
    images, others = torch.randn(2, 3, 3, 70, 70)
    mask = torch.rand(3, 25) < 0.9
    a, b = model.describe(images), model.describe(others)
    scores, predicted = model.score_pairs(a.dense, b.dense), model.reconstruct(images, mask, others)
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(model.describe(images[one]).descriptors, a.descriptors[one])
        torch.testing.assert_close(model.score_pairs(a.dense[one], b.dense[one]), scores[one])
        torch.testing.assert_close(model.reconstruct(images[one], mask[one], others[one]), predicted[one])


def test_a_pair_score_depends_on_the_order_and_similarity_does_not(model: PairVPR) -> None:
    a, b = (model.describe(torch.randn(4, 3, 70, 70)).dense for _ in range(2))
    forward, backward = model.score_pairs(a, b), model.score_pairs(b, a)
    assert forward.shape == (4,)
    assert not torch.allclose(forward, backward, atol=1e-4)
    torch.testing.assert_close(model.similarity(a, b), forward + backward)
    torch.testing.assert_close(model.similarity(a, b), model.similarity(b, a))


@pytest.mark.parametrize("size", [42, 70])
def test_reconstruct_sees_the_other_view_and_not_what_is_hidden(model: PairVPR, size: int) -> None:
    patches = (size // 14) ** 2
    image, other = torch.randn(2, 2, 3, size, size)
    mask = torch.zeros(2, patches, dtype=torch.bool)
    mask[:, 0] = True
    predicted = model.reconstruct(image, mask, other)
    assert predicted.shape == (2, patches, 588)
    hidden_changed = image.clone()
    hidden_changed[:, :, :14, :14] += 1
    assert torch.equal(model.reconstruct(hidden_changed, mask, other), predicted)
    other_changed = other.clone()
    other_changed[:, :, :14, :14] += 1
    assert not torch.allclose(model.reconstruct(image, mask, other_changed), predicted, atol=1e-4)


def test_images_that_are_not_square_are_refused(model: PairVPR) -> None:
    with pytest.raises(ValueError, match="not square"):
        model.describe(torch.randn(1, 3, 56, 126))  # 4 x 9 patches would pass for 6 x 6

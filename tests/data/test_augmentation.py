import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import functional

from pairvpr_dist.data.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DeviceAugment,
    blurred,
    jitter,
    normalise,
    random_masks,
)
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.data.randomness import view_keys


def make_batch(places: int = 6, views: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (places, views, 3, 14, 14), generator=generator, dtype=torch.uint8)
    ids = np.arange(places, dtype=np.int64)
    keys = torch.from_numpy(view_keys(0, 0, ids, views))
    return Batch(images, keys, torch.from_numpy(ids), *[torch.zeros(places, dtype=torch.int64)] * 2)


def test_normalise() -> None:
    images = make_batch().images
    expected = functional.normalize(functional.to_dtype(images, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(normalise(images), expected, atol=1e-5)
    assert torch.equal(DeviceAugment(0.0)(make_batch()), normalise(images))


@pytest.mark.parametrize("factors", [(1.3, 1.0, 1.0), (1.0, 0.7, 1.0), (1.0, 1.0, 1.35), (0.6, 1.4, 0.8)])
def test_jitter_is_torchvisions_one_after_another(factors: tuple[float, float, float]) -> None:
    images = make_batch().images.flatten(0, 1).float() / 255
    expected = functional.adjust_brightness(images, factors[0])
    expected = functional.adjust_contrast(expected, factors[1])
    expected = functional.adjust_saturation(expected, factors[2])
    ours = jitter(images, *(torch.full((len(images), 1, 1, 1), factor) for factor in factors))
    assert torch.allclose(ours, expected, atol=2e-3)  # torchvision's luma weights have four digits


def test_colour_depends_on_the_view_alone() -> None:
    batch = make_batch()
    whole = DeviceAugment(0.4)(batch)
    assert whole.shape == batch.images.shape
    assert whole.dtype == torch.float32
    part = Batch(*(values[2:4] for values in vars(batch).values()))
    assert torch.allclose(DeviceAugment(0.4)(part), whole[2:4], atol=1e-6)


def test_brightness_factors_fill_their_range() -> None:
    """Grey pictures keep their hue, contrast and saturation: what is left is brightness, U(0.6, 1.4)."""
    batch = make_batch(places=500, views=2)
    batch.images.fill_(100)
    out = DeviceAugment(0.4)(batch)[:, :, 0, 0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    factors = out / (100 / 255)
    assert factors.min() == pytest.approx(0.6, abs=0.01)
    assert factors.max() == pytest.approx(1.4, abs=0.01)
    assert factors.mean() == pytest.approx(1.0, abs=0.03)
    assert abs(torch.corrcoef(factors.T)[0, 1]) < 0.15  # the two views are drawn on their own


def test_blur_is_scipys_with_a_deviation_of_its_own_for_each_image() -> None:
    images = torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    deviations = (0.0, 0.7, 1.9)
    got = blurred(images, torch.tensor(deviations), reach=6)
    assert torch.allclose(got[0], images[0], atol=1e-6)
    for image, expected, deviation in list(zip(got, images, deviations, strict=True))[1:]:
        by_scipy = gaussian_filter(expected.numpy(), (0, deviation, deviation), mode="nearest", radius=(0, 6, 6))
        assert np.allclose(image.numpy(), by_scipy, atol=2e-6)


def test_half_of_the_views_are_blurred_each_by_its_key() -> None:
    batch = make_batch(places=200, views=2)
    batch.images.copy_(torch.randint(0, 256, batch.images.shape[2:], dtype=torch.uint8))
    views = DeviceAugment(0.0, 1.5)(batch).flatten(0, 1)
    apart = (views - normalise(batch.images).flatten(0, 1)).abs().flatten(1).amax(dim=1)
    assert 0.4 < float((apart < 1e-4).float().mean()) < 0.6
    part = Batch(*(values[7:9] for values in vars(batch).values()))
    assert torch.allclose(DeviceAugment(0.0, 1.5)(part).flatten(0, 1), views[14:18], atol=1e-5)


@pytest.mark.parametrize(("patches", "ratio", "hidden"), [(256, 0.9, 230), (25, 0.9, 22), (529, 0.75, 396)])
def test_masks_hide_exactly_their_share(patches: int, ratio: float, hidden: int) -> None:
    keys = make_batch(places=300).keys[:, 0]
    masks = random_masks(keys, patches, ratio)
    assert masks.shape == (300, patches)
    assert masks.dtype == torch.bool
    assert (masks.sum(dim=1) == hidden).all()
    share = masks.float().mean(dim=0)  # every patch is hidden equally often
    assert (share - hidden / patches).abs().max() < 0.1
    assert torch.equal(random_masks(keys[5:7], patches, ratio), masks[5:7])
    assert len(torch.unique(masks, dim=0)) > 260  # of 2,300 possible ones at least


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_the_same() -> None:
    batch = make_batch(places=64)
    assert torch.equal(random_masks(batch.keys[:, 0].cuda(), 256, 0.9).cpu(), random_masks(batch.keys[:, 0], 256, 0.9))
    assert torch.allclose(DeviceAugment(0.4)(batch.to("cuda")).cpu(), DeviceAugment(0.4)(batch), atol=1e-5)

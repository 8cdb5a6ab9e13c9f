"""The encoder: what is hidden, what is frozen, and the sizes of the presets."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.encoder import PRESETS, Encoder
from pairvpr_dist.settings import PATCH


def inputs_and_output(module: nn.Module, run: Encoder, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    """What `module` saw and gave while `run(*arguments)` ran."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    run(*arguments)
    hook.remove()
    return seen[0]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("tiny", frozen_blocks=0).eval()


@pytest.mark.parametrize(
    ("size", "encoder_millions", "all_millions"),
    [("vits", 22, 138), ("vitb", 86, 202), ("vitl", 304, 420), ("vitg", 1136, 1253)],
)
def test_published_sizes_on_the_meta_device(size: str, encoder_millions: int, all_millions: int) -> None:
    with torch.device("meta"):
        model = PairVPR(load_config("stage1", size, ["data.shards=none"]).model)
    counts = {
        part: sum(p.numel() for name, p in model.named_parameters() if name.startswith(part)) / 1e6
        for part in ("encoder.", "decoder.", "")
    }
    assert counts["encoder."] == pytest.approx(encoder_millions, abs=1)
    assert counts["decoder."] == pytest.approx(114, abs=1.2)  # 12 blocks of 9.45 M and a projection
    assert counts[""] == pytest.approx(all_millions, abs=2)


def test_vitg_trains_what_the_paper_trains() -> None:
    """The last 20 of 40 blocks and the decoder: about 0.68 B parameters."""
    with torch.device("meta"):
        model = PairVPR(load_config("stage1", "vitg", ["data.shards=none"]).model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == pytest.approx(0.68e9, rel=0.01)


def test_exactly_the_hidden_patches_become_the_mask_token(encoder: Encoder) -> None:
    images = torch.randn(2, 3, 70, 70)
    mask = torch.rand(2, 25) < 0.5
    open_eyes, _ = inputs_and_output(encoder.vit.blocks[0], encoder, images)
    tokens, _ = inputs_and_output(encoder.vit.blocks[0], encoder, images, mask)
    position = inputs_and_output(encoder.vit.blocks[0], encoder, torch.zeros_like(images))[0][:, 5:]
    position = position - encoder.vit.patch_embed(torch.zeros_like(images)).flatten(1, 2)
    assert torch.equal(tokens[:, :5], open_eyes[:, :5])  # class and register tokens
    patches, untouched = tokens[:, 5:], open_eyes[:, 5:]
    assert torch.equal(patches[~mask], untouched[~mask])
    torch.testing.assert_close(patches[mask], (encoder.mask_token + position)[mask])


def test_hidden_pixels_do_not_matter_and_visible_ones_do(encoder: Encoder) -> None:
    images = torch.randn(1, 3, 70, 70)
    mask = torch.zeros(1, 25, dtype=torch.bool)
    mask[0, 7] = True  # row 1, column 2
    changed = images.clone()
    changed[:, :, 14:28, 28:42] += 1
    for before, after in zip(encoder(images, mask), encoder(changed, mask), strict=True):
        assert torch.equal(before, after)
    changed[:, :, 14:28, 42:43] += 1
    assert not torch.equal(encoder(images, mask)[1], encoder(changed, mask)[1])


def test_frozen_blocks_run_without_graph_and_get_no_gradient() -> None:
    encoder = Encoder("tiny", frozen_blocks=2)
    images, mask = torch.randn(2, 3, 42, 42), torch.rand(2, 9) < 0.5
    _, last_frozen = inputs_and_output(encoder.vit.blocks[1], encoder, images, mask)
    first_trained, out = inputs_and_output(encoder.vit.blocks[2], encoder, images, mask)
    assert last_frozen.grad_fn is None
    assert first_trained.grad_fn is None
    assert out.grad_fn is not None
    sum(t.sum() for t in encoder(images, mask)).backward()
    with_gradient = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {
        name for name, _ in encoder.named_parameters() if name.startswith(("vit.blocks.2.", "vit.norm."))
    }


def test_with_nothing_frozen_everything_is_trained() -> None:
    encoder = Encoder("tiny", frozen_blocks=0)
    sum(t.square().sum() for t in encoder(torch.randn(2, 3, 42, 42), torch.rand(2, 9) < 0.5)).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@given(rows=st.integers(1, 9), columns=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_any_size_that_the_patch_divides(encoder: Encoder, rows: int, columns: int) -> None:
    with torch.no_grad():
        class_token, patches = encoder(torch.zeros(1, 3, rows * PATCH, columns * PATCH))
    assert class_token.shape == (1, 96)
    assert patches.shape == (1, rows * columns, 96)


def test_the_position_table_stays_at_its_size(encoder: Encoder) -> None:
    encoder(torch.zeros(1, 3, 28, 28))
    assert encoder.vit.get_parameter("pos_embed").shape == (1, 37 * 37, 96)


def test_a_table_of_the_image_size_is_used_as_it_stands() -> None:
    """At 37 x 37 patches nothing is resized: timm's own forward without dynamic sizes gives the same."""
    torch.manual_seed(0)
    encoder = Encoder("dinov2_vits14_reg", frozen_blocks=0).eval()
    plain: Any = timm.create_model(
        "vit_small_patch14_reg4_dinov2", pretrained=False, img_size=518, num_classes=0
    ).eval()
    plain.load_state_dict(encoder.vit.state_dict())
    image = torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        class_token, patches = encoder(image)
        features = plain.forward_features(image)
    torch.testing.assert_close(class_token, features[:, 0])
    torch.testing.assert_close(patches, features[:, 5:])


def test_unknown_encoders_and_too_many_frozen_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'dinov2_vitb14_reg'"):
        Encoder("dinov2_vitb14", 0)
    for blocks in (-1, 4):
        with pytest.raises(UserError, match=r"model.frozen_blocks=-?\d: tiny has 3 blocks"):
            Encoder("tiny", blocks)


def test_presets_have_heads_of_64() -> None:
    for name, shape in PRESETS.items():
        assert name.startswith("tiny") or shape.dim == 64 * shape.heads

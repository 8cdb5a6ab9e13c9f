"""The decoder: which view is updated, where positions go, and that all attention is SDPA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pairvpr_dist.models.decoder import CrossAttention, Decoder, DecoderBlock
from pairvpr_dist.models.encoder import Encoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # FlashAttention on GPU is for half precision


def make_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(encoder_dim=96, dim=128, depth=2, heads=2, grid=5).eval()


def encode(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    encoder = Encoder("tiny", 0).to(device, dtype).eval()
    images = torch.randn(2, 3, 70, 70, device=device, dtype=dtype)
    return lambda: encoder(images)[1]


def decoder_part(part: str, device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    module: nn.Module = DecoderBlock(128, 2).to(device, dtype).eval().get_submodule(part)
    x, y = torch.randn(2, 2, 26, 128, device=device, dtype=dtype)
    return lambda: module(x, y) if part == "cross_attn" else module(x)


ATTENTIONS: dict[str, Callable[[str, torch.dtype], Callable[[], Tensor]]] = {
    "encoder": encode,
    "decoder self-attention": lambda *where: decoder_part("attn", *where),
    "decoder cross-attention": lambda *where: decoder_part("cross_attn", *where),
}


def under(backend: SDPBackend, run: Callable[[], Tensor]) -> Tensor | None:
    """What `run` gives with this backend alone; None where the machine has none such."""
    try:
        with torch.no_grad(), sdpa_kernel(backend):
            return run().float()
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            return None
        raise


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_backend_of_this_machine_agrees(name: str) -> None:
    run = ATTENTIONS[name](DEVICE, HALF)
    expected, flash, efficient = (
        under(b, run) for b in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    )
    assert flash is not None  # torch has it for CPUs, and for every GPU that trains this
    tolerance = 3e-2 if torch.bfloat16 == HALF else 1e-5
    for given in (flash, efficient):
        if given is not None:
            torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_goes_through_sdpa(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = F.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    run = ATTENTIONS[name]("cpu", torch.float32)
    run()
    assert len(calls) == {"encoder": 3}.get(name, 1)


def test_cross_attention_is_torch_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = CrossAttention(48, 3), nn.MultiheadAttention(48, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]).detach()
    theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x, y = torch.randn(2, 7, 48), torch.randn(2, 11, 48)
    torch.testing.assert_close(ours(x, y), theirs(x, y, y)[0])


def test_the_second_view_is_projected_once_and_never_updated() -> None:
    decoder = make_decoder()
    x, y = torch.randn(2, 25, 96), torch.randn(2, 25, 96)
    seen: list[Tensor] = []
    for block in decoder.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append(given[1]))
    decoder(x, y, with_class_token=True)
    assert torch.equal(seen[0], seen[1])
    torch.testing.assert_close(seen[0], decoder.embed(y) + decoder.pos_embed)


def test_the_class_token_stands_first_in_x_alone_without_position() -> None:
    decoder = make_decoder()
    x, y = torch.randn(2, 25, 96), torch.randn(2, 25, 96)
    seen: list[tuple[Tensor, Tensor]] = []
    decoder.blocks[0].register_forward_hook(lambda _, given, out: seen.append(given))
    assert decoder(x, y, with_class_token=True).shape == (2, 26, 128)
    assert decoder(x, y, with_class_token=False).shape == (2, 25, 128)
    (with_x, with_y), (without_x, without_y) = seen
    assert torch.equal(with_x[:, :1], decoder.class_token.expand(2, -1, -1))
    assert torch.equal(with_x[:, 1:], without_x)
    assert torch.equal(with_y, without_y)


def test_the_order_of_the_second_views_tokens_matters_only_by_position() -> None:
    """Without positions, attention to y is blind to the order of y."""
    decoder = make_decoder()
    x, y = torch.randn(1, 25, 96), torch.randn(1, 25, 96)
    shuffled = y[:, torch.randperm(25)]
    assert not torch.allclose(decoder(x, y, with_class_token=True), decoder(x, shuffled, with_class_token=True))
    decoder.pos_embed.zero_()
    torch.testing.assert_close(
        decoder(x, y, with_class_token=True), decoder(x, shuffled, with_class_token=True), rtol=1e-4, atol=1e-5
    )


def test_a_grid_of_another_size_gets_a_resized_table() -> None:
    decoder = make_decoder()
    out = decoder(torch.randn(1, 49, 96), torch.randn(1, 49, 96), with_class_token=False)
    assert out.shape == (1, 49, 128)
    assert decoder.pos_embed.shape == (25, 128)


def test_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(RuntimeError):
        make_decoder()(torch.randn(1, 12, 96), torch.randn(1, 12, 96), with_class_token=False)

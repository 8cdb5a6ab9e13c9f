"""However blocks are run, the numbers are the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pairvpr_dist.models.blocks import BlockRunner
from pairvpr_dist.models.decoder import Decoder
from pairvpr_dist.models.encoder import Encoder

WAYS = ("none", "selective", "full")


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gradients(encoder: Encoder, decoder: Decoder, images: Tensor) -> dict[str, Tensor]:
    """Of all that is trained, from a loss over both, after the loss itself."""
    encoder.zero_grad()
    decoder.zero_grad()
    _, dense = encoder(images)
    x, y = dense.chunk(2)
    loss = decoder(x, y, with_class_token=True).square().mean()
    loss.backward()
    modules = {"encoder": encoder, "decoder": decoder}
    found = {
        f"{part}.{name}": parameter.grad.clone()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return {"loss": loss.detach(), **found}


def run_by(way: str, compiled: str, encoder: Encoder, decoder: Decoder) -> None:
    encoder.run_block = decoder.run_block = BlockRunner(way, compiled)


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("frozen", [0, 1])
def test_recomputed_blocks_have_the_same_gradients_bit_for_bit(way: str, frozen: int) -> None:
    encoder, decoder = Encoder("tiny", frozen), Decoder(96, 96, 2, 3, 5)
    images = torch.randn(4, 3, 70, 70)
    plain = gradients(encoder, decoder, images)
    run_by(way, "none", encoder, decoder)
    again = gradients(encoder, decoder, images)
    assert again.keys() == plain.keys()
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_selective_checkpointing_computes_no_product_again() -> None:
    encoder, decoder = Encoder("tiny", 0), Decoder(96, 96, 2, 3, 5)
    images = torch.randn(4, 3, 70, 70)
    counted = {}
    for way in WAYS:
        run_by(way, "none", encoder, decoder)
        with FlopCounterMode(display=False) as counter:
            gradients(encoder, decoder, images)
        counted[way] = counter.get_total_flops()
    assert counted["selective"] == counted["none"] < counted["full"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_compiled_blocks_have_the_same_gradients_within_rounding(way: str) -> None:
    encoder, decoder = Encoder("tiny", 1), Decoder(96, 96, 2, 3, 5)
    images = torch.randn(4, 3, 70, 70)
    plain = gradients(encoder, decoder, images)
    run_by(way, "blocks", encoder, decoder)
    compiled = gradients(encoder, decoder, images)
    assert compiled.keys() == plain.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=1e-6, msg=name)

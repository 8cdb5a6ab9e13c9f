"""Patches there and back, and the position tables."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.models.patches import normalised, patchify, resize_positions, sincos_positions, unpatchify
from pairvpr_dist.settings import PATCH

sides = st.integers(1, 5)


@given(batch=st.integers(1, 3), rows=sides, columns=sides, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_patches_come_back(batch: int, rows: int, columns: int, seed: int) -> None:
    images = torch.rand(batch, 3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(seed))
    patches = patchify(images)
    assert patches.shape == (batch, rows * columns, 588)
    assert torch.equal(unpatchify(patches, (rows, columns)), images)


@given(row=st.integers(0, 27), column=st.integers(0, 41), channel=st.integers(0, 2))
@settings(deadline=None, max_examples=40)
def test_numbers_run_over_row_column_channel(row: int, column: int, channel: int) -> None:
    image = torch.zeros(1, 3, 2 * PATCH, 3 * PATCH)
    image[0, channel, row, column] = 1
    patch = row // PATCH * 3 + column // PATCH
    number = (row % PATCH * PATCH + column % PATCH) * 3 + channel
    assert patchify(image).nonzero().tolist() == [[0, patch, number]]


def test_targets_have_mean_0_and_unbiased_variance_1() -> None:
    targets = normalised(patchify(torch.rand(2, 3, 28, 28) * 7 + 3))
    torch.testing.assert_close(targets.mean(-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1, unbiased=True), torch.ones(2, 4), atol=1e-4, rtol=0)


def test_targets_of_a_plain_patch_are_0_and_of_half_precision_are_fp32() -> None:
    targets = normalised(patchify(torch.full((1, 3, 14, 14), 0.5, dtype=torch.bfloat16)))
    assert targets.dtype == torch.float32
    assert torch.equal(targets, torch.zeros(1, 1, 588))


def test_sincos_against_its_formula() -> None:
    dim, grid = 16, 5
    table = sincos_positions(dim, grid)
    for row, column in ((0, 0), (1, 3), (4, 2)):
        frequencies = [10000 ** (-i / (dim // 4)) for i in range(dim // 4)]
        expected = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in frequencies]
        torch.testing.assert_close(table[row * grid + column], torch.tensor(expected))


@given(side=st.integers(2, 24), dim=st.sampled_from([4, 8, 32]))
@settings(deadline=None, max_examples=20)
def test_positions_are_distinct(side: int, dim: int) -> None:
    table = sincos_positions(dim, side)
    assert table.shape == (side * side, dim)
    assert len(torch.unique(table, dim=0)) == side * side


def test_a_table_of_the_right_size_is_left_alone() -> None:
    table = sincos_positions(32, 16)
    assert resize_positions(table, (16, 16)) is table


@given(side=st.integers(2, 9), rows=st.integers(1, 12), columns=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_resizing_keeps_a_constant_and_turns_with_the_table(side: int, rows: int, columns: int) -> None:
    constant = torch.full((side * side, 3), 2.5)
    torch.testing.assert_close(resize_positions(constant, (rows, columns)), torch.full((rows * columns, 3), 2.5))
    cells = torch.rand(side, side, 2, generator=torch.Generator().manual_seed(side))
    there = resize_positions(cells.flatten(0, 1), (rows, columns)).unflatten(0, (rows, columns))
    turned = resize_positions(cells.transpose(0, 1).flatten(0, 1), (columns, rows)).unflatten(0, (columns, rows))
    torch.testing.assert_close(there, turned.transpose(0, 1))


def test_stage_2_positions_lie_between_those_of_stage_1() -> None:
    """16 x 16 to 23 x 23: an increasing coordinate stays increasing, and its ends stay within bicubic overshoot."""
    ramp = torch.arange(16.0).repeat(16)[:, None]
    line = resize_positions(ramp, (23, 23))[:23, 0]
    assert (line.diff() > 0).all()
    torch.testing.assert_close(line + line.flip(0), torch.full((23,), 15.0))

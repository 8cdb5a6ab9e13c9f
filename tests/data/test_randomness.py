import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.data.randomness import Purpose, fold, generator, keyed_uniform, mix, seeds, view_keys

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1


def reference_mix(x: int) -> int:
    """splitmix64's finaliser in unbounded integers, as published."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(st.lists(INT64, min_size=1, max_size=20))
def test_mix_is_splitmix64_in_numpy_and_torch(values: list[int]) -> None:
    array = np.array(values, np.int64)
    expected = [reference_mix(v & MASK) for v in values]
    assert mix(array).view(np.uint64).tolist() == expected
    assert torch.equal(mix(torch.from_numpy(array)), torch.from_numpy(mix(array)))


@given(st.lists(INT64, min_size=1, max_size=8), INT64)
def test_fold_is_the_same_in_numpy_and_torch(keys: list[int], value: int) -> None:
    array = np.array(keys, np.int64)
    assert torch.equal(fold(torch.from_numpy(array), value), torch.from_numpy(fold(array, value)))


def test_keys_depend_on_seed_epoch_place_and_view_and_nothing_else() -> None:
    ids = np.array([3, 2**64 - 5, 77], np.uint64)
    keys = view_keys(1, 2, ids, 4)
    assert keys.shape == (3, 4)
    assert len(np.unique(keys)) == 12
    assert np.array_equal(view_keys(1, 2, ids[1:2], 2), keys[1:2, :2])
    for other in (view_keys(0, 2, ids, 4), view_keys(1, 3, ids, 4), view_keys(2, 1, ids, 4)):
        assert not np.isin(other, keys).any()


def test_a_place_that_comes_again_has_keys_of_its_own() -> None:
    ids = np.array([3, 2**64 - 5, 77], np.uint64)
    keys = view_keys(1, 2, ids, 4)
    assert np.array_equal(view_keys(1, 2, ids, 4, repeats=0), keys)
    repeats = np.array([0, 1, 2], np.int16)
    mixed = view_keys(1, 2, ids, 4, repeats)
    assert np.array_equal(mixed[0], keys[0])
    for i, repeat in enumerate(repeats.tolist()):
        assert np.array_equal(mixed[i], view_keys(1, 2, ids[i : i + 1], 4, repeat)[0])
    everything = [view_keys(1, 2, ids, 4, repeat) for repeat in range(5)]
    assert len(np.unique(everything)) == 5 * 12


def test_keys_stay_the_same_between_versions() -> None:
    """A change here changes the data order of every run that is resumed."""
    keys = view_keys(0, 0, np.array([1], np.uint64), 2)
    assert keys.tolist() == [[7108066972471032027, -3175827403059953644]]
    assert keyed_uniform(torch.tensor([1]), 2).tolist() == [[0.5665615200996399, 0.7457817196846008]]


def test_purposes_have_streams_of_their_own() -> None:
    key = view_keys(0, 0, np.array([1], np.uint64), 1)[0]
    first = [generator(seeds(key, purpose)[0]).random() for purpose in Purpose]
    assert len(set(first)) == len(Purpose)
    assert first == [generator(seeds(key, purpose)[0]).random() for purpose in Purpose]


def test_seeds_have_the_shape_of_the_keys() -> None:
    keys = view_keys(3, 1, np.arange(5, dtype=np.uint64), 2)
    found = seeds(keys, Purpose.CROP)
    assert np.shape(found) == (5, 2)
    assert found[3] == seeds(keys[3], Purpose.CROP)
    assert all(0 <= seed <= MASK for row in found for seed in row)


@given(st.integers(0, MASK), st.integers(0, MASK))
def test_a_generator_starts_anew_with_each_seed(seed: int, other: int) -> None:
    """It draws what one that was made for the seed draws, whatever was drawn before."""
    generator(other).choice(9, size=4, replace=False)
    generator(other).integers(1000, dtype=np.uint32)  # leaves half of a 64-bit number behind
    ours, made = generator(seed), np.random.Generator(np.random.Philox(key=seed))
    for draw in (lambda g: g.integers(50, dtype=np.uint32), lambda g: g.random(), lambda g: list(g.permutation(9))):
        assert draw(ours) == draw(made)


def test_keyed_uniform_is_uniform_and_per_key() -> None:
    keys = torch.from_numpy(view_keys(5, 1, np.arange(100, dtype=np.uint64), 2).reshape(-1))
    numbers = keyed_uniform(keys, 500)
    assert numbers.shape == (200, 500)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram = torch.histc(numbers, bins=20, min=0, max=1)
    assert (histogram - 5000).abs().max() < 350  # 5 standard deviations
    assert abs(torch.corrcoef(numbers)[0, 1]) < 0.2
    assert torch.equal(keyed_uniform(keys[7:9], 500), numbers[7:9])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_keyed_uniform_is_the_same_on_the_gpu() -> None:
    keys = torch.from_numpy(view_keys(5, 1, np.arange(64, dtype=np.uint64), 2).reshape(-1))
    assert torch.equal(keyed_uniform(keys.cuda(), 300).cpu(), keyed_uniform(keys, 300))

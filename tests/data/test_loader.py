import hashlib
import multiprocessing
import os
import pickle
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_shards import BuildShards, ListImporter, panorama_place, photo_place

from pairvpr_dist.data.decoding import resize
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.data.randomness import view_keys
from pairvpr_dist.data.shard_format import stable_id
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig, DataConfig, RemoteConfig

GLOBAL = 6  # places per batch, shared by 1, 2 and 3 ranks
SIZE = 28


@pytest.fixture(scope="module")
def mixture(build_shards: BuildShards) -> list[str]:
    """Two sets: photographs of two cities, some places with one image; panoramas of a third city."""
    photos = [photo_place(i, images=1 if i % 10 == 9 else 2 + i % 4, city=("Lund", "Oslo")[i % 2]) for i in range(40)]
    panoramas = [panorama_place(i, images=4) for i in range(13)]
    return [build_shards(photos), build_shards(panoramas, shard_bytes=200_000)]


def data_config(shards: list[str], single_city: bool = False, views: int = 2, workers: int = 0) -> DataConfig:
    augment = AugmentConfig(
        crop_area=[0.7, 1.0], crop_aspect=[0.75, 4 / 3], colour_jitter=0.4, rand_augment_ops=1, copies=False
    )
    remote = RemoteConfig("ranges", None, 1.0, 3, 5.0)
    return DataConfig(shards, [], [], GLOBAL, views, views, single_city, workers, 9, 0.01, remote, augment)


def loader(config: DataConfig, rank: int = 0, world: int = 1, seed: int = 7) -> EpochLoader:
    return EpochLoader(config, SIZE, seed, rank, world)


def epoch_of(one: EpochLoader, epoch: int, first_step: int = 0) -> Iterator[Batch]:
    """The batches of one epoch from its step `first_step` on."""
    return one.batches(epoch * one.steps_per_epoch + first_step, (epoch + 1) * one.steps_per_epoch)


def digests(batches: Iterable[Batch]) -> list[str]:
    """One digest of all bytes of each batch."""
    tensors = ([batch.images, batch.keys, batch.places, batch.datasets] for batch in batches)
    return [hashlib.sha256(b"".join(t.numpy().tobytes() for t in group)).hexdigest() for group in tensors]


def global_batches(config: DataConfig, world: int, epoch: int, first_step: int = 0) -> list[Batch]:
    """Batches of all ranks, one rank after another in each."""
    parts = [list(epoch_of(loader(config, rank, world), epoch, first_step)) for rank in range(world)]
    names = [f.name for f in fields(Batch)]
    return [
        Batch(*(torch.cat([getattr(b, name) for b in step]) for name in names)) for step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("single_city", [False, True])
def test_same_global_batches_for_any_number_of_ranks(mixture: list[str], single_city: bool) -> None:
    config = data_config(mixture, single_city)
    expected = digests(epoch_of(loader(config), 3))
    assert len(expected) == loader(config).steps_per_epoch == (7 if single_city else 8)
    for world in (1, 2, 3):
        assert digests(global_batches(config, world, 3)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_weighted_mixture_is_the_same_for_any_number_of_ranks_and_workers(mixture: list[str], workers: int) -> None:
    expected = digests(epoch_of(loader(replace(data_config(mixture), weights=[0.5, 2.0])), 3))
    assert len(expected) == (36 // 2 + 13 * 2) // GLOBAL
    config = replace(data_config(mixture, workers=workers), weights=[0.5, 2.0])
    for world in (1, 2, 3):
        assert digests(global_batches(config, world, 3)) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 4])
def test_same_batches_for_any_number_of_workers(mixture: list[str], workers: int) -> None:
    for world in (1, 2):
        expected = digests(global_batches(data_config(mixture), world, 3))
        assert digests(global_batches(data_config(mixture, workers=workers), world, 3)) == expected


def test_batches_do_not_depend_on_other_generators(mixture: list[str]) -> None:
    torch.manual_seed(0)
    first = digests(epoch_of(loader(data_config(mixture)), 0))
    state = torch.get_rng_state()
    np.random.seed(5)
    torch.manual_seed(9)
    assert digests(epoch_of(loader(data_config(mixture)), 0)) == first
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_resume_at_any_step_is_the_tail_of_the_epoch(mixture: list[str]) -> None:
    config = data_config(mixture)
    expected = digests(epoch_of(loader(config), 2))
    one = loader(config)
    for step in (1, 4, 7, 8):
        assert digests(epoch_of(one, 2, first_step=step)) == expected[step:]
    assert digests(global_batches(config, 2, 2, first_step=5)) == expected[5:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_through_the_ends_of_epochs(mixture: list[str], workers: int) -> None:
    """Entered at any step, it gives the epochs one after another, read by one set of workers."""
    expected = digests(batch for epoch in range(3) for batch in epoch_of(loader(data_config(mixture)), epoch))
    stream = loader(data_config(mixture, workers=workers)).batches(5, 23)
    found = digests([next(stream)])
    readers = {process.pid for process in multiprocessing.active_children()}
    assert len(readers) == workers
    for batch in stream:
        found += digests([batch])
        assert {process.pid for process in multiprocessing.active_children()} <= readers
    assert found == expected[5:23]


def test_an_epoch_left_early_does_not_disturb_the_next(mixture: list[str]) -> None:
    one = loader(data_config(mixture, workers=1))
    expected = digests(epoch_of(loader(data_config(mixture)), 1))
    next(epoch_of(one, 0))
    assert digests(epoch_of(one, 1)) == expected


def test_epochs_and_seeds_differ(mixture: list[str]) -> None:
    config = data_config(mixture)
    runs = [digests(epoch_of(loader(config, seed=s), e)) for s, e in ((7, 0), (7, 1), (8, 0))]
    assert len({digest for run in runs for digest in run}) == sum(map(len, runs))


def test_batch_and_its_keys(mixture: list[str]) -> None:
    config = data_config(mixture)
    one = loader(config)
    assert (one.places, one.left_out, one.datasets) == (36 + 13, 4, ["photos", "panoramas"])
    seen = []
    for batch in epoch_of(one, 4):
        assert batch.images.shape == (GLOBAL, 2, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.uint8
        assert np.array_equal(batch.keys.numpy(), view_keys(7, 4, batch.places.numpy(), 2))
        for name, label, dataset in zip(one.place_names(batch), batch.places, batch.datasets, strict=True):
            assert stable_id(*name.split("/")) == int(label) & (2**64 - 1)
            assert name.split("/")[0] == one.datasets[int(dataset)]
            seen.append(name)
        assert (batch.images[:, 0] != batch.images[:, 1]).flatten(1).any(dim=1).all()
    assert len(set(seen)) == len(seen) == 48
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)


def test_views_depend_on_seed_epoch_and_place_alone(mixture: list[str]) -> None:
    """The same place looks the same in another mixture, batch size and position."""

    def views(config: DataConfig) -> dict[int, bytes]:
        batches = list(epoch_of(loader(config), 3))
        return {int(p): image.numpy().tobytes() for b in batches for p, image in zip(b.places, b.images, strict=True)}

    mixed, alone = views(data_config(mixture)), views(data_config(mixture[1:]))
    shared = mixed.keys() & alone.keys()
    assert len(shared) >= 11
    assert all(mixed[place] == alone[place] for place in shared)


def test_single_city_batches_have_one_city(mixture: list[str]) -> None:
    one = loader(data_config(mixture, single_city=True))
    cities = set()
    for batch in epoch_of(one, 0):
        names = one.place_names(batch)
        city = {"street" if name.startswith("pano") else ("Lund", "Oslo")[int(name[-3:]) % 2] for name in names}
        assert len(city) == 1
        cities |= city
    assert cities == {"street", "Lund", "Oslo"}


def test_a_panorama_view_is_the_crop_of_the_whole(build_shards: BuildShards) -> None:
    """Wherever the crop begins, also across the seam, it is cut from the panorama as drawn."""
    config = data_config([build_shards([panorama_place(i, images=4) for i in range(GLOBAL)])])
    config.augment = AugmentConfig(
        crop_area=[1.0, 1.0], crop_aspect=[1, 1], colour_jitter=0.0, rand_augment_ops=0, copies=False
    )
    one = loader(config)
    lefts = set()
    for epoch in range(4):
        batch = next(epoch_of(one, epoch))
        for name, views in zip(one.place_names(batch), batch.images, strict=True):
            crops = all_crops(int(name[-3:]))
            for view in views:
                distance = (crops - view.float()).abs().mean(dim=(1, 2, 3))
                assert distance.min() < 2
                lefts.add(int(distance.argmin()) % 832)
    assert any(left > 832 - 128 for left in lefts)  # some wrap


@cache
def all_crops(place: int) -> torch.Tensor:
    """Every wrapping square crop of the place's panoramas as drawn, (4 * 832, 3, SIZE, SIZE)."""
    crops = []
    drawn = panorama_place(place, images=4)
    for image in drawn.images:
        pixels = ListImporter([drawn]).load(image.name)
        doubled = np.concatenate([pixels, pixels[:, :128]], axis=1)
        crops += [resize(doubled[:, left : left + 128], SIZE) for left in range(832)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()


def damage(folder: str, target: str, places: set[str]) -> str:
    """A copy of a shard set where one byte in an image of each of the places differs."""
    Path(target).mkdir()
    for file in Path(folder).iterdir():
        Path(target, file.name).write_bytes(file.read_bytes())
    shards = ShardSet.open(target)
    for row, key in enumerate(shards.keys):
        if key.decode() in places:
            images = shards.places[row]["first_image"] + np.arange(shards.places[row]["images"])
            for member in shards.members[shards.images["first_member"][images]]:
                tar = shards.shard_path(int(member["shard"]))
                content = bytearray(tar.read_bytes())
                content[int(member["offset"]) + int(member["size"]) // 2] ^= 0xFF
                tar.write_bytes(content)
    return target


def test_a_bad_place_is_replaced_the_same_for_all(mixture: list[str], tmp_path: Path) -> None:
    whole = list(epoch_of(loader(data_config(mixture)), 0))
    bad = loader(data_config(mixture)).place_names(whole[2])
    keys = [name.split("/")[1] for name in bad if name.startswith("photos")][:2]
    assert len(keys) == 2
    shards = [damage(mixture[0], str(tmp_path / "damaged"), set(keys)), mixture[1]]
    one = loader(data_config(shards))
    batches = list(epoch_of(one, 0))
    told = one.take_bad()
    list(epoch_of(one, 0))
    assert one.take_bad() == []  # each place is told once
    assert {stable_id("photos", key) for key in keys} == {place.place & (2**64 - 1) for place in told}
    for place in told:
        assert re.search(r"damaged/shard-\d{6}\.tar: place place\d{3}: checksum", place.message)
    names = one.place_names(batches[2])
    assert not {f"photos/{key}" for key in keys} & set(names)
    for column, name in enumerate(bad):
        if name.split("/")[1] in keys:  # its stand-in is the same column of the next step
            assert batches[2].places[column] == whole[3].places[column]
            assert torch.equal(batches[2].images[column], whole[3].images[column])
        else:
            assert torch.equal(batches[2].images[column], whole[2].images[column])
    others = [i for i in range(len(whole)) if i != 2]
    assert digests(batches[i] for i in others) == digests(whole[i] for i in others)
    for world, workers in ((2, 0), (3, 0), (1, 2)):
        assert digests(global_batches(data_config(shards, workers=workers), world, 0)) == digests(batches)


def test_nothing_readable_ends_the_run(build_shards: BuildShards, tmp_path: Path) -> None:
    places = [photo_place(i, images=2) for i in range(GLOBAL)]
    folder = damage(build_shards(places), str(tmp_path / "damaged"), {place.key for place in places})
    with pytest.raises(UserError, match="no place left"):
        list(epoch_of(loader(data_config([folder])), 0))


def test_too_few_places_are_refused(build_shards: BuildShards) -> None:
    places = [photo_place(i, images=2, city=f"city{i % 2}") for i in range(8)]
    folder = build_shards([*places[:5], photo_place(9, images=1)])
    with pytest.raises(UserError, match=r"data\.places_per_batch=6: there are only 5 places .*\(1 have fewer\)"):
        loader(data_config([folder]))
    with pytest.raises(UserError, match=r"data\.places_per_batch=6: there are only 4 places in the largest city"):
        loader(data_config([build_shards(places)], single_city=True))
    with pytest.raises(UserError, match=r"data\.places_per_batch=6: must be a multiple of the 4"):
        loader(data_config([folder]), world=4)


def test_what_workers_get_can_be_pickled(mixture: list[str]) -> None:
    """Workers that are spawned and not forked open the shards anew."""
    corpus = pickle.loads(pickle.dumps(loader(data_config(mixture)).corpus))
    assert corpus.locate(40)[0].read_member(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2])
def test_preemption_and_interrupt_pass_workers_by(mixture: list[str], number: signal.Signals) -> None:
    """Workers neither run the training process's handler nor die of the signal."""
    previous = signal.signal(number, lambda *_: os._exit(3))
    try:
        batches = epoch_of(loader(data_config(mixture, workers=1)), 0)
        first = next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, number)
        rest = list(batches)
    finally:
        signal.signal(number, previous)
    assert digests([first, *rest]) == digests(epoch_of(loader(data_config(mixture)), 0))


def test_workers_end_by_sigterm_without_the_inherited_handler(mixture: list[str]) -> None:
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    try:
        batches = epoch_of(loader(data_config(mixture, workers=1)), 0)
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        worker.join(timeout=20)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert worker.exitcode == 0

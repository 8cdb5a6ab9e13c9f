import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from small_shards import BuildShards, panorama_place, photo_place

from pairvpr_dist.data import corpus as corpus_module
from pairvpr_dist.data.corpus import Corpus, Synthetic
from pairvpr_dist.data.plan import draw
from pairvpr_dist.errors import UserError


def test_rows_of_several_sets(build_shards: BuildShards) -> None:
    first = build_shards([photo_place(i, images=1 + i % 3, dataset="a", city="Lund") for i in range(12)])
    second = build_shards([photo_place(i, images=2, dataset="a", city="Oslo") for i in range(20, 23)])
    third = build_shards([photo_place(i, images=2, dataset="b", city="Oslo") for i in range(23, 26)])
    corpus = Corpus([first, second, third], min_images=2)
    assert corpus.left_out == 4
    assert corpus.datasets == ["a@shards.1", "a@shards.2", "b"]
    assert len(corpus.table) == len(corpus.dataset) == 8 + 6
    for row, label in enumerate(corpus.table.ids):
        shard_set, place = corpus.locate(row)
        assert shard_set is corpus.sets[int(row >= 8) + int(row >= 11)]
        assert shard_set.places["stable_id"][place].view(np.int64) == label
        assert shard_set.places["images"][place] >= 2
        dataset = shard_set.manifest.datasets[shard_set.places["dataset"][place]]
        assert corpus.name(int(label)) == f"{dataset}/{shard_set.place_key(place)}"
        assert corpus.datasets[corpus.dataset[row]] == {"a": f"a@shards.{1 + (row >= 8)}", "b": "b"}[dataset]
        assert corpus.table.shard_set[row] == int(row >= 8) + int(row >= 11)
    shards = [len(one.manifest.shards) for one in corpus.sets]
    assert corpus.table.shard[:8].max() < shards[0] <= corpus.table.shard[8:].min()
    assert corpus.table.shard.max() < sum(shards)


def test_a_city_belongs_to_its_data_set_and_may_spread_over_shard_sets(build_shards: BuildShards) -> None:
    sets = [[("a", "Lund"), ("a", "")], [("b", "Lund"), ("b", "")], [("b", "Lund")], [("a", "")]]
    folders = [
        build_shards([photo_place(10 * number + i, 2, *place) for i, place in enumerate(places)])
        for number, places in enumerate(sets)
    ]
    city = Corpus(folders, min_images=2).table.city
    assert len(set(city[:4])) == 4
    assert city[4] == city[2]
    assert city[5] == city[1]


def test_cities_are_known_by_name_over_all_sets_and_synthetic_ones_are_none(build_shards: BuildShards) -> None:
    sets = [[("a", "Lund"), ("a", "Oslo")], [("b", "LUND")], [("world", "Lund")]]
    folders = [
        build_shards([photo_place(10 * number + i, 2, *place) for i, place in enumerate(places)])
        for number, places in enumerate(sets)
    ]
    corpus = Corpus(folders, min_images=2, synthetic=Synthetic(1, 0.5))
    cities = corpus.cities(np.arange(4)).tolist()
    names = [corpus.sets[n].manifest.cities[corpus.sets[n].places["city"][p]] for n, p in ((0, 0), (0, 1))]
    assert cities[2] == cities[names.index("Lund")]
    assert cities[0] != cities[1]
    assert cities[3] == -1
    corpus.require_cities("data.shards")


def test_shards_without_cities_are_refused_in_one_line(build_shards: BuildShards) -> None:
    towns = build_shards([photo_place(i, 2, "a", city) for i, city in enumerate(["Lund", "Oslo"])])
    nowhere = build_shards([photo_place(10 + i, 2, "b") for i in range(3)])
    with pytest.raises(UserError) as refused:
        Corpus([towns, nowhere], min_images=2).require_cities("data.shards")
    text = str(refused.value)
    assert f"{nowhere}: 3 places have no city" in text
    assert "build data.shards with cities (gsv-cities, or folder with --city)" in text
    assert "\n" not in text
    Corpus([towns, nowhere], min_images=2, synthetic=Synthetic(1, 0.5)).require_cities("data.shards")
    one = build_shards([photo_place(20 + i, 2, "c", "Lund") for i in range(2)])
    with pytest.raises(UserError, match=r"data\.validation: all places lie in one city"):
        Corpus([one], min_images=2).require_cities("data.validation")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("weights", [(), (2.0, 0.5)])
def test_synthetic_sets_have_their_share_of_an_epoch(
    build_shards: BuildShards, share: float, weights: tuple[float, ...]
) -> None:
    counts = (20, 12, 7, 5)
    folders = [
        build_shards([photo_place(100 * number + i, 2, f"set{number}", "Lund") for i in range(count)])
        for number, count in enumerate(counts)
    ]
    corpus = Corpus(folders, min_images=2, weights=weights, synthetic=Synthetic(2, share))
    for epoch in range(3):
        drawn = draw(corpus.table, 0, epoch, single_city=False).rows
        synthetic = (corpus.table.shard_set[drawn] >= 2).sum()
        assert abs(synthetic - share / (1 - share) * (len(drawn) - synthetic)) <= 2


def test_synthetic_sets_of_which_nothing_would_come_are_refused(build_shards: BuildShards) -> None:
    real, few = (build_shards([photo_place(100 * k + i, 2 + k, f"s{k}", "Lund") for i in range(8)]) for k in (1, 0))
    for views, share, told in ((3, 0.5, "data.synthetic=.*data.min_images_per_place"), (2, 0.01, "raise it"),
                               (2, 0.9999, "lower it")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            Corpus([real, few], min_images=views, synthetic=Synthetic(1, share))


def test_places_count_their_photographs_or_their_panoramas(build_shards: BuildShards) -> None:
    mixed, wide = photo_place(0, images=1), panorama_place(0, images=2)
    mixed.images.extend(replace(image, place=mixed.images[0].place) for image in wide.images)
    mixed.pictures.extend(wide.pictures)
    folder = build_shards([mixed, panorama_place(1, images=3), photo_place(2, images=3)])
    assert [len(Corpus([folder], views).table) for views in (2, 3)] == [3, 2]


def test_what_cannot_be_used_is_refused(build_shards: BuildShards) -> None:
    folder = build_shards([photo_place(i, images=2) for i in range(3)])
    with pytest.raises(UserError, match=r"data\.shards"):
        Corpus([], min_images=2)
    with pytest.raises(UserError, match=r"place photos/place00\d is in .* and .*name every place once"):
        Corpus([folder, folder], min_images=2)
    with pytest.raises(UserError, match="no such folder"):
        Corpus([folder + "-absent"], min_images=2)


def test_shard_sets_of_one_data_set_are_told_apart_by_their_folders(build_shards: BuildShards, tmp_path: Path) -> None:
    folders = [shutil.copytree(build_shards([photo_place(i, 2, "gsv")]), tmp_path / f"gsv-{i}") for i in range(2)]
    folders.append(Path(build_shards([photo_place(5, 2, "gldv2")])))
    assert Corpus([str(f) for f in folders], 2).datasets == ["gsv@gsv-0", "gsv@gsv-1", "gldv2"]


def test_weights_must_bring_something_of_every_set(build_shards: BuildShards) -> None:
    few, more = build_shards([photo_place(0, 2)]), build_shards([photo_place(i, 2) for i in range(1, 5)])
    corpus = Corpus([few, more], 2, [3, 0.5])
    assert corpus.table.weights.tolist() == [3, 0.5]
    assert [line.split(": ")[1] for line in corpus.mixture()] == [
        "photos@shards.1, 1 places, weight 3, 3 places an epoch",
        "photos@shards.2, 4 places, weight 0.5, 2 places an epoch",
    ]
    with pytest.raises(UserError, match=r"data\.weights=0\.2 for .*: must lie between 0\.25 .*4 places\) and 1000"):
        Corpus([few, more], 2, [1, 0.2])
    with pytest.raises(UserError, match=r"data\.weights=1001"):
        Corpus([few, more], 2, [1, 1001])


@pytest.mark.parametrize(
    ("field", "value"), [("dataset", 1), ("city", 7), ("shard", -1), ("images", 0), ("first_image", 2**62)]
)
def test_an_index_that_cannot_be_is_refused(build_shards: BuildShards, field: str, value: int) -> None:
    folder = Path(build_shards([photo_place(i, 2) for i in range(3)]))
    places = np.load(folder / "places.npy")
    places[field][1] = value
    np.save(folder / "places.npy", places)
    with pytest.raises(UserError, match=r"places\.npy: damaged in record 1; .*verify"):
        Corpus([str(folder)], min_images=2)


def test_portions_make_no_difference(build_shards: BuildShards, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_shards([photo_place(i, 1 + i % 2, city=("Lund", "Oslo", "")[i % 3]) for i in range(20)])
    whole = Corpus([folder], min_images=2)
    monkeypatch.setattr(corpus_module, "ROWS_AT_ONCE", 3)
    portions = Corpus([folder], min_images=2)
    for field in fields(whole.table):
        assert np.array_equal(getattr(whole.table, field.name), getattr(portions.table, field.name))
    with pytest.raises(UserError, match="name every place once"):
        Corpus([folder, folder], min_images=2)

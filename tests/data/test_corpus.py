import numpy as np
import pytest
from small_shards import BuildShards, panorama_place, photo_place

from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.errors import UserError


def test_rows_of_several_sets(build_shards: BuildShards) -> None:
    first = build_shards([photo_place(i, images=1 + i % 3, dataset="a", city="Lund") for i in range(12)])
    second = build_shards([photo_place(i, images=2, dataset=("b", "a")[i % 2], city="Oslo") for i in range(20, 26)])
    corpus = Corpus([first, second], min_images=2)
    assert corpus.left_out == 4
    assert corpus.datasets == ["a", "b"]
    assert len(corpus.table) == len(corpus.dataset) == 8 + 6
    for row, label in enumerate(corpus.table.ids):
        shard_set, place = corpus.locate(row)
        assert shard_set is corpus.sets[row >= 8]
        assert shard_set.places["stable_id"][place].view(np.int64) == label
        assert shard_set.places["images"][place] >= 2
        assert corpus.name(int(label)) == f"{corpus.datasets[corpus.dataset[row]]}/{shard_set.place_key(place)}"
    shards = [len(one.manifest.shards) for one in corpus.sets]
    assert corpus.table.shard[:8].max() < shards[0] <= corpus.table.shard[8:].min()
    assert corpus.table.shard.max() < sum(shards)


def test_a_city_belongs_to_its_data_set_and_may_spread_over_shard_sets(build_shards: BuildShards) -> None:
    places = [("a", "Lund"), ("a", ""), ("b", "Lund"), ("b", "")]
    first = build_shards([photo_place(i, 2, dataset, city) for i, (dataset, city) in enumerate(places)])
    second = build_shards([photo_place(9, 2, "b", "Lund"), photo_place(10, 2, "a", "")])
    city = Corpus([first, second], min_images=2).table.city
    assert len(set(city[:4])) == 4
    assert city[4] == city[2]
    assert city[5] == city[1]


def test_places_count_their_photographs_or_their_panoramas(build_shards: BuildShards) -> None:
    mixed = photo_place(0, images=1)
    mixed.images.extend(panorama_place(0, images=2).images)
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

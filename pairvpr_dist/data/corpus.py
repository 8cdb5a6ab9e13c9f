"""All shard sets of a run as one table of places.

Contract: reads the indexes only. Rows number the places that have enough images to draw views from, set after set in
the order of the folders; the others are counted in `left_out`. A place is known to the outside by its stable id, so a
place that comes twice is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.plan import PlaceTable
from pairvpr_dist.errors import UserError


class Corpus:
    """Places of the shard sets in `folders` with at least `min_images` photographs, or as many panoramas.

    sets: the opened sets; datasets: names of the data sets over all of them; table: what the plan needs, n rows;
    dataset: int64 (n,), rows of `datasets`.
    """

    def __init__(self, folders: Sequence[str], min_images: int) -> None:
        if not folders:
            raise UserError("data.shards=[]: name at least one folder written by shards/build.py")
        self.sets = [ShardSet.open(folder) for folder in folders]
        self.datasets = list(dict.fromkeys(name for one in self.sets for name in one.manifest.datasets))
        self._place = [np.flatnonzero(_images_to_draw(one) >= min_images) for one in self.sets]
        self._first_row = np.cumsum([0, *map(len, self._place)])
        self.left_out = sum(len(one.places) for one in self.sets) - int(self._first_row[-1])
        self.table = PlaceTable(
            ids=np.concatenate([s.places["stable_id"][p].view(np.int64) for s, p in self._parts()]),
            shard=self._shard_numbers(),
            city=self._city_numbers(),
        )
        self.dataset = np.concatenate([self._dataset_numbers(s)[s.places["dataset"][p]] for s, p in self._parts()])
        self._by_id = np.argsort(self.table.ids, kind="stable")
        self._check_distinct()

    def locate(self, row: int) -> tuple[ShardSet, int]:
        """The shard set of a row and the place's own row in it."""
        number = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return self.sets[number], int(self._place[number][row - self._first_row[number]])

    def name(self, stable_id: int) -> str:
        """`data set/key` of the place with this id."""
        return self._name_of_row(int(self._by_id[np.searchsorted(self.table.ids, stable_id, sorter=self._by_id)]))

    def _name_of_row(self, row: int) -> str:
        shard_set, place = self.locate(row)
        return f"{self.datasets[self.dataset[row]]}/{shard_set.place_key(place)}"

    def _parts(self) -> list[tuple[ShardSet, np.ndarray]]:
        return list(zip(self.sets, self._place, strict=True))

    def _shard_numbers(self) -> np.ndarray:
        """Number of the shard where each place begins, counted over all sets."""
        offsets = np.cumsum([0, *(len(one.manifest.shards) for one in self.sets)])
        parts = zip(self._parts(), offsets, strict=False)
        return np.concatenate([one.places["shard"][place].astype(np.int64) + offset for (one, place), offset in parts])

    def _city_numbers(self) -> np.ndarray:
        """Number of each place's (data set, city), counted over all sets; unknown is a city of its data set."""
        known: dict[tuple[str, str | None], int] = {}
        numbers = []
        for one, place in self._parts():
            pairs = np.stack([one.places["dataset"][place], one.places["city"][place]], axis=1).astype(np.int64)
            distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
            names = [(one.manifest.datasets[d], one.manifest.cities[c] if c >= 0 else None) for d, c in distinct]
            found = np.array([known.setdefault(name, len(known)) for name in names], np.int64)
            numbers.append(found[inverse.reshape(-1)])
        return np.concatenate(numbers)

    def _dataset_numbers(self, shard_set: ShardSet) -> np.ndarray:
        return np.array([self.datasets.index(name) for name in shard_set.manifest.datasets], np.int64)

    def _check_distinct(self) -> None:
        ids = self.table.ids[self._by_id]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            a, b = self._by_id[twice[0]], self._by_id[twice[0] + 1]
            where = " and ".join(str(self.locate(int(row))[0].folder) for row in (a, b))
            raise UserError(f"data.shards: place {self._name_of_row(int(a))} is in {where}; name every place once")


def _images_to_draw(shard_set: ShardSet) -> np.ndarray:
    """How many views of each place can be drawn, int32 (places,): see `sampling.choose_views`."""
    return np.maximum(shard_set.places["photographs"], shard_set.places["panoramas"])

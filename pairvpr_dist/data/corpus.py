"""All shard sets of a run as one table of places.

Contract: reads places.npy alone, once and front to back, and checks what it says against the manifest. Rows number the
places that have enough images to draw views from, set after set in the order of the folders; the others are counted in
`left_out`. A place is known to the outside by its stable id, so a place that comes twice is an error. Costs 24 bytes
of memory a place, and while it is made one more and some 20 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.plan import PlaceTable, drawn_of
from pairvpr_dist.data.shard_format import PLACE
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import RemoteConfig

ROWS_AT_ONCE = 2**18  # records of places.npy
ID_PARTS = 16  # that are searched for places that come twice, one after another
MAX_WEIGHT = 1000  # repeats are counted in 16 bits


class Synthetic(NamedTuple):
    """Which sets hold synthetic places."""

    sets: int  # so many, the last ones
    share: float  # of the places of an epoch


class Corpus:
    """Places of the shard sets in `folders` with at least `min_images` photographs, or as many panoramas.

    sets: the opened sets; datasets: labels of the data sets of each of them; table: what the plan needs, n rows;
    dataset: int16 (n,), rows of `datasets`. `weights` are those of the sets, 1 each where there are none; synthetic
    sets have the weight that gives them their share. `remote` says how sets at URLs are read; without it there are
    none.
    """

    def __init__(
        self,
        folders: Sequence[str],
        min_images: int,
        weights: Sequence[float] = (),
        remote: RemoteConfig | None = None,
        synthetic: Synthetic | None = None,
    ) -> None:
        self._real = len(folders) - (synthetic.sets if synthetic else 0)
        if not self._real:
            raise UserError("data.shards=[]: name at least one folder written by shards/build.py")
        self.sets = [ShardSet.open(folder, remote) for folder in folders]
        self.datasets, first_label = _labels(self.sets)
        places = sum(len(one.places) for one in self.sets)
        self.table = PlaceTable(
            ids=np.empty(places, np.int64),
            shard=np.empty(places, np.int32),
            city=np.empty(places, np.int32),
            shard_set=np.empty(places, np.int16),
            weights=np.array([*(weights or [1.0] * self._real), *[1.0] * (len(folders) - self._real)]),
        )
        self.dataset, self._place = np.empty(places, np.int16), np.empty(places, np.int32)
        self._first_row = [0]
        cities: dict[tuple[str, str | None], int] = {}
        for number, one in enumerate(self.sets):
            self._read(number, min_images, first_label[number])
            self._number_cities(one, self._rows(number), cities)
        self._shorten(self._first_row[-1])
        self._city_by_name = _numbers_by_name(cities)
        self.left_out = places - len(self.table)
        if synthetic:
            self._weigh(synthetic.share)
        self._check_distinct()
        self._check_weights()

    def locate(self, row: int) -> tuple[ShardSet, int]:
        """The shard set of a row and the place's own row in it."""
        return self.sets[self.table.shard_set[row]], int(self._place[row])

    def name(self, stable_id: int) -> str:
        """`data set/key` of the place with this id; looks through all of them."""
        return self._name_of_row(int(np.flatnonzero(self.table.ids == stable_id)[0]))

    def cities(self, rows: np.ndarray) -> np.ndarray:
        """Number of the city of each row, (m,) int64, the same for one name in all sets; -1: unknown, or synthetic."""
        return np.where(self.table.shard_set[rows] < self._real, self._city_by_name[self.table.city[rows]], -1)

    def require_cities(self, key: str) -> None:
        """That every place which is not synthetic has a city, and that there are two. Raises `UserError`."""
        rows = np.arange(self._first_row[self._real])
        cities = self.cities(rows)
        if (cities < 0).any():
            first = int(np.argmin(cities))
            raise UserError(
                f"{self.locate(first)[0].folder}: {(cities < 0).sum():,} places have no city (one is "
                f"{self._name_of_row(first)}); build {key} with cities (gsv-cities, or folder with --city), or give "
                "them as data.synthetic"
            )
        if len(np.unique(cities)) < 2:
            raise UserError(f"{key}: all places lie in one city; SUP-VPR tells cities apart and needs two at least")

    def mixture(self) -> list[str]:
        """One line for each shard set: what of it comes in an epoch."""
        lines = []
        for number, one in enumerate(self.sets):
            rows, weight = self._rows(number), float(self.table.weights[number])
            places = rows.stop - rows.start
            names = " and ".join(dict.fromkeys(self.datasets[label] for label in np.unique(self.dataset[rows])))
            drawn = drawn_of(places, weight)
            lines.append(f"{one.folder}: {names}, {places} places, weight {weight:g}, {drawn} places an epoch")
        return lines

    def _rows(self, number: int) -> slice:
        return slice(self._first_row[number], self._first_row[number + 1])

    def _name_of_row(self, row: int) -> str:
        shard_set, place = self.locate(row)
        return f"{shard_set.manifest.datasets[shard_set.places['dataset'][place]]}/{shard_set.place_key(place)}"

    def _read(self, number: int, min_images: int, first_label: int) -> None:
        """Fill the columns with the places of a set; `city` with the code that `_number_cities` takes."""
        one = self.sets[number]
        first_shard = sum(len(before.manifest.shards) for before in self.sets[:number])
        row, codes = self._first_row[number], np.int32(len(one.manifest.cities) + 1)
        for first, places in _portions(one):
            kept = np.flatnonzero(np.maximum(places["photographs"], places["panoramas"]) >= min_images)
            rows, city = slice(row, row + len(kept)), places["dataset"] * codes + places["city"] + 1
            # Field by field: NumPy picks whole records ten times slower.
            self.table.ids[rows] = places["stable_id"].view(np.int64)[kept]
            self.table.shard[rows] = places["shard"][kept] + first_shard
            self.table.city[rows] = city[kept]
            self.table.shard_set[rows] = number
            self.dataset[rows] = places["dataset"][kept] + first_label
            self._place[rows] = first + kept
            row += len(kept)
        self._first_row.append(row)

    def _number_cities(self, one: ShardSet, rows: slice, known: dict[tuple[str, str | None], int]) -> None:
        """Number each (data set, city) over all sets; unknown is a city of its data set."""
        manifest, city = one.manifest, self.table.city[rows]
        codes = len(manifest.cities) + 1
        occurs = np.zeros(len(manifest.datasets) * codes, bool)
        occurs[city] = True
        number = np.zeros(len(occurs), np.int32)
        for code in np.flatnonzero(occurs).tolist():
            dataset, name = divmod(code, codes)
            pair = manifest.datasets[dataset], manifest.cities[name - 1] if name else None
            number[code] = known.setdefault(pair, len(known))
        for first in range(0, len(city), ROWS_AT_ONCE):
            part = city[first : first + ROWS_AT_ONCE]
            part[:] = number[part]

    def _weigh(self, share: float) -> None:
        """Weights of the synthetic sets, of which `share` of an epoch's places comes, alike for all of them."""
        places, weights = np.diff(self._first_row), self.table.weights
        if not places[self._real :].all():
            empty = self.sets[self._real + int(np.argmin(places[self._real :]))].folder
            raise UserError(
                f"data.synthetic={empty}: no place has enough images; lower data.min_images_per_place or take others"
            )
        drawn = sum(drawn_of(int(n), float(w)) for n, w in zip(places[: self._real], weights, strict=False))
        weights[self._real :] = share / (1 - share) * drawn / places[self._real :].sum()

    def _shorten(self, places: int) -> None:
        """Cut the columns to the places that are in; pages of them that were never touched cost nothing."""
        table = self.table
        ids, shard, city, shard_set = (c[:places] for c in (table.ids, table.shard, table.city, table.shard_set))
        self.table = PlaceTable(ids, shard, city, shard_set, table.weights)
        self.dataset, self._place = self.dataset[:places], self._place[:places]

    def _check_distinct(self) -> None:
        """That no id comes twice; those that end in the same bits at a time, which takes a byte of memory a place."""
        ids = self.table.ids
        for part in range(ID_PARTS):
            portions = (ids[first : first + ROWS_AT_ONCE] for first in range(0, len(ids), ROWS_AT_ONCE))
            some = np.concatenate([ids[:0], *(one[one & (ID_PARTS - 1) == part] for one in portions)])
            some.sort()
            for twice in some[1:][some[1:] == some[:-1]][:1]:
                a, b = np.flatnonzero(ids == twice)[:2].tolist()
                where = " and ".join(str(self.locate(row)[0].folder) for row in (a, b))
                raise UserError(f"data.shards: place {self._name_of_row(a)} is in {where}; name every place once")

    def _check_weights(self) -> None:
        """That something of every set comes in an epoch, and no place too often to be counted."""
        for number, (one, weight) in enumerate(zip(self.sets, self.table.weights.tolist(), strict=True)):
            rows = self._rows(number)
            places = rows.stop - rows.start
            too_few = places and drawn_of(places, weight) == 0
            if number >= self._real and (weight > MAX_WEIGHT or too_few):
                told = "none" if too_few else f"more than {MAX_WEIGHT} times each"
                raise UserError(f"data.synthetic_share: of the {places} places of {one.folder} {told} would come in an "
                                f"epoch; {'raise' if too_few else 'lower'} it")  # fmt: skip
            if weight > MAX_WEIGHT or too_few:
                least = f"{1 / places:.6g} (one of its {places} places)" if places else "0"
                raise UserError(f"data.weights={weight:g} for {one.folder}: must lie between {least} and {MAX_WEIGHT}")


def _numbers_by_name(cities: dict[tuple[str, str | None], int]) -> np.ndarray:
    """For each number of a (data set, city) the city's number by its name alone, -1 where it has none: int64.

    Capital letters do not count: data sets write names differently.
    """
    names: dict[str, int] = {}
    return np.array([-1 if n is None else names.setdefault(n.casefold(), len(names)) for _, n in cities], np.int64)


def _labels(sets: Sequence[ShardSet]) -> tuple[list[str], list[int]]:
    """A label for each data set of each shard set, and the number of each shard set's first.

    It is the data set's name; where several shard sets have that, the folder's name too, and where that is not enough
    the number of the shard set.
    """
    shared = Counter(name for one in sets for name in one.manifest.datasets)
    pairs = [(i, one.name, name) for i, one in enumerate(sets, 1) for name in one.manifest.datasets]
    folders = Counter((folder, name) for _, folder, name in pairs)
    labels = [
        name if shared[name] == 1 else f"{name}@{folder}" if folders[folder, name] == 1 else f"{name}@{folder}.{i}"
        for i, folder, name in pairs
    ]
    first = np.cumsum([0, *(len(one.manifest.datasets) for one in sets)]).tolist()
    return labels, first


def _portions(one: ShardSet) -> Iterator[tuple[int, np.ndarray]]:
    """The places of a set, some at a time, with the number of the first; `UserError` where they cannot be so."""
    manifest, mapped = one.manifest, cast(np.memmap, one.places)
    for first in range(0, len(mapped), ROWS_AT_ONCE):
        # Not through the map: its pages would count as memory of this process, and come one by one from a cold disk.
        offset = mapped.offset + first * PLACE.itemsize
        places = np.fromfile(str(mapped.filename), PLACE, ROWS_AT_ONCE, offset=offset)
        inside = (
            _within(places["dataset"], 0, len(manifest.datasets))
            & _within(places["city"], -1, len(manifest.cities))
            & _within(places["shard"], 0, len(manifest.shards))
            & _within(places["images"], 1, manifest.images + 1)
            & _within(places["first_image"], 0, manifest.images)
            & (places["first_image"] <= manifest.images - places["images"])
        )
        if not inside.all():
            row = first + int(np.argmin(inside))
            remedy = f"`python shards/verify.py {one.folder}` lists all damage"
            raise UserError(f"{one.folder}/places.npy: damaged in record {row}; {remedy}")
        yield first, places


def _within(values: np.ndarray, low: int, stop: int) -> np.ndarray:
    return (values >= low) & (values < stop)

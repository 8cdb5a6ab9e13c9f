"""The synthetic city: a world of its own for trying everything without gated data.

    python shards/synthetic_city.py --out DIR     writes train/ (a folder a place) and test/ (database, queries)

Contract: the files are a pure function of the arguments, byte for byte, on any number of workers. The cities that one
call trains and tests on are two worlds: other streets, other facade designs. The geometry of the images is told in
shards/city/camera.py, how hard the city is in shards/city/settings.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import utm
from tqdm import tqdm

from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import new_folder
from shards.city.camera import EYE
from shards.city.places import City, CityPlace, CityView
from shards.city.settings import Difficulty

__all__ = ["City", "CityPlace", "CityView", "Difficulty", "write_folder"]

ZONE, LETTER = 32, "U"  # UTM zone in which all cities lie
LEAST = {
    "places": 1,
    "test_places": 0,
    "seed": 0,
    "size": 1,
    "views": 1,
    "database_views": 1,
    "query_views": 1,
    "workers": 0,
}
TEST_WORLD = 1_000_000  # added to the seed for the city that is tested on


def file_name(view: CityView, identity: str) -> str:
    """The view's base name in the @-convention of SF-XL; `identity` goes into the field of the panorama id."""
    lat, lon = utm.to_latlon(view.east, view.north, ZONE, LETTER)
    fields = [f"{view.east:.2f}", f"{view.north:.2f}", ZONE, LETTER, f"{lat:.6f}", f"{lon:.6f}", identity, ""]
    fields += [f"{view.heading:.2f}", "", "", EYE, f"{view.time:%Y%m%d_%H%M%S}", view.weather]
    return "@" + "@".join(map(str, fields)) + "@.jpg"


def write_folder(
    out: Path,
    places: int,
    test_places: int,
    seed: int = 0,
    size: int = 96,
    views: int = 8,
    database_views: int = 4,
    query_views: int = 2,
    panoramas: bool = False,
    workers: int = 0,
    difficulty: Difficulty | None = None,
) -> int:
    """Write train/PLACE/*.jpg and, unless `test_places` is 0, test/{database,queries}/*.jpg.

    Returns the number of photographs. `workers` processes render beside this one; 0 renders here. Raises `UserError`
    when `out` already holds something.
    """
    with new_folder(out) as folder:
        train = City(seed, places, views, size, panoramas, difficulty)
        test = City(seed + TEST_WORLD, test_places, database_views + query_views, size, False, difficulty)
        jobs = [(f"train/{place.key}", place.key, v) for place in train.places for v in place.views]
        files = _write(folder, train, jobs, workers, "train")
        jobs = [
            ("test/database" if i < database_views else "test/queries", place.key, v)
            for place in test.places for i, v in enumerate(place.views)
        ]  # fmt: skip
        return files + _write(folder, test, jobs, workers, "test")


def _write(folder: Path, city: City, jobs: list[tuple[str, str, CityView]], workers: int, name: str) -> int:
    images = _jpegs(city, [view for _, _, view in jobs], workers)
    for (below, key, view), content in tqdm(zip(jobs, images, strict=True), name, len(jobs), unit="image"):
        path = folder / below / file_name(view, f"{city.name}_{key}_{view.visit_seed}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(jobs)


def _jpegs(city: City, views: Sequence[CityView], workers: int) -> Iterator[bytes]:
    if workers == 0:
        yield from map(city.render_jpeg, views)
    else:
        with ProcessPoolExecutor(workers, initializer=_adopt, initargs=(city,)) as pool:
            yield from pool.map(_adopted_jpeg, views, chunksize=16)


_adopted: City  # the city that a worker process renders


def _adopt(city: City) -> None:
    global _adopted
    _adopted = city


def _adopted_jpeg(view: CityView) -> bytes:
    return _adopted.render_jpeg(view)


def benchmark(repeats: int = 200) -> str:
    """One line: milliseconds of a 96 x 96 perspective view and of a 3328 x 512 panorama on this machine."""
    city, street_view = City(0, 24), City(0, 24, views=2, panoramas=True)
    views = [view for place in city.places for view in place.views]
    wide = [view for place in street_view.places for view in place.views]

    def milliseconds(city: City, views: Iterable[CityView]) -> float:
        times = []
        for view in views:
            start = time.perf_counter()
            city.render(view)
            times.append(time.perf_counter() - start)
        return 1000 * float(np.median(times))

    return (
        f"perspective 96 x 96: {milliseconds(city, views[:repeats]):.2f} ms   "
        f"panorama 3328 x 512: {milliseconds(street_view, wide[:10]):.0f} ms"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python shards/synthetic_city.py --out city\n"
        "  python shards/synthetic_city.py --out panoramas --places 24 --test-places 0 --panoramas --workers 2\n"
        "  python shards/synthetic_city.py --benchmark",
    )
    parser.add_argument("--out", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--places", type=int, default=240, help="places to train on (default %(default)s)")
    parser.add_argument("--test-places", type=int, default=80, help="places of another city (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="names the city (default %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="pixels, side of a view (default %(default)s)")
    parser.add_argument("--views", type=int, default=8, help="views of a training place (default %(default)s)")
    parser.add_argument("--database-views", type=int, default=4, help="of a test place (default %(default)s)")
    parser.add_argument("--query-views", type=int, default=2, help="of a test place (default %(default)s)")
    parser.add_argument("--panoramas", action="store_true", help="train on panoramas, 3328 x 512, within 15 m cells")
    parser.add_argument("--workers", type=int, default=0, help="processes that render (default: this one)")
    parser.add_argument("--benchmark", action="store_true", help="print the time of one image of each kind and end")
    return parser.parse_args()


def main() -> None:
    """The program."""
    args = _parse()
    if args.benchmark:
        print(benchmark())
        return
    if args.out is None:
        raise UserError("--out is missing; name a new folder to write the city into")
    for key, least in LEAST.items():
        if getattr(args, key) < least:
            raise UserError(f"--{key.replace('_', '-')}={getattr(args, key)}: must be at least {least}")
    start = time.perf_counter()
    settings = {k: v for k, v in vars(args).items() if k != "benchmark"}
    files = write_folder(**settings)
    print(
        f"{args.out}: {args.places} places to train on, {args.test_places} to test on, "
        f"{files:,} photographs in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    exit_on_user_error(main)

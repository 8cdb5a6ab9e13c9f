"""The synthetic city: a world of its own for trying everything without gated data.

    python shards/synthetic_city.py --out DIR     writes train/ (a folder a place) and test/ (database, queries)
    python shards/synthetic_city.py --format sfxl --out DIR     writes a tree as SF-XL lies on disk

Contract: the files are a pure function of the arguments, byte for byte, on any number of workers. The geometry of the
images is told in shards/city/camera.py, how hard the city is in shards/city/settings.py, the forms in shards/formats/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import new_folder
from shards.city.places import City, CityPlace, CityView
from shards.city.settings import Difficulty
from shards.formats import cities, folder, gldv2, gsv_cities, msls, nordland, pitts, sfxl, tokyo, write
from shards.formats.folder import TEST_WORLD
from shards.formats.names import file_name

__all__ = ["TEST_WORLD", "City", "CityPlace", "CityView", "Difficulty", "file_name", "write_folder", "write_format"]

FORMATS: dict[str, ModuleType] = {
    "folder": folder,
    "sfxl": sfxl,
    "gsv-cities": gsv_cities,
    "gldv2": gldv2,
    "msls": msls,
    "pitts": pitts,
    "tokyo": tokyo,
    "nordland": nordland,
    "cities": cities,
}
LEAST = {
    "places": 1,
    "test_places": 0,
    "seed": 0,
    "size": 1,
    "views": 1,
    "database_views": 1,
    "query_views": 1,
    "cities": 1,
    "panorama_width": 416,  # beyond one stored column
    "photograph_width": 16,
    "workers": 0,
}
OPTIONS = {  # of the forms
    "places": "places of each city, to train on unless the form is only for tests",
    "views": "images of a place to train on",
    "seed": "names the city",
    "cities": "cities, gsv-cities and cities only",
    "test_places": "places to test on: of another city, folder and sfxl; of other streets of each city, cities",
    "database_views": "of a test place",
    "query_views": "of a test place, but for sfxl",
    "size": "pixels, side of a view, folder, cities and the tests of sfxl",
    "panorama_width": "pixels, sfxl, msls and folder with --panoramas; the height follows",
    "photograph_width": "pixels, the longest of gldv2; the height follows",
}


def write_folder(out: Path, places: int, test_places: int, seed: int = 0, *, workers: int = 0, **settings: int) -> int:
    """Write train/PLACE/*.jpg and, unless `test_places` is 0, test/{database,queries}/*.jpg; see `write_format`."""
    return write_format(out, "folder", workers, places=places, test_places=test_places, seed=seed, **settings)


def write_format(out: Path, form: str, workers: int = 0, **settings: int) -> int:
    """Write the tree of a form of `FORMATS`; `settings` replace its DEFAULTS.

    Returns the number of photographs. `workers` processes render beside this one; 0 renders here. Raises `UserError`
    when `out` already holds something.
    """
    module = FORMATS[form]
    with new_folder(out) as aside:
        return write(module.plan(**module.DEFAULTS | settings), aside, workers)


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
        "  python shards/synthetic_city.py --out mine --places 24 --test-places 0 --panoramas --workers 2\n"
        "  python shards/synthetic_city.py --format sfxl --out sf_xl --places 12 --workers 2\n"
        "  python shards/synthetic_city.py --format gsv-cities --out gsv_cities --cities 3\n"
        "  python shards/synthetic_city.py --format cities --out cities --workers 2\n"
        "  python shards/synthetic_city.py --format gldv2 --out gldv2 --photograph-width 200\n"
        "  python shards/synthetic_city.py --format pitts --out pittsburgh\n"
        "  python shards/synthetic_city.py --format nordland --prepared --out nordland\n"
        "  python shards/synthetic_city.py --benchmark",
    )
    parser.add_argument("--out", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--format", choices=FORMATS, default="folder", help="form of the tree (default %(default)s)")
    for key, text in OPTIONS.items():
        values = {form: module.DEFAULTS[key] for form, module in FORMATS.items() if key in module.DEFAULTS}
        same = len(set(values.values())) == 1
        default = values.popitem()[1] if same else ", ".join(f"{form} {value}" for form, value in values.items())
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, metavar="N", help=f"{text} (default {default})")
    parser.add_argument("--panoramas", action="store_true", default=None, help="train on panoramas within 15 m cells: "
                        "one folder, and a csv of where they were taken, folder only")  # fmt: skip
    parser.add_argument("--prepared", action="store_true", default=None, help="write the form with positions in the "
                        "names, images/SPLIT/{database,queries}; pitts, tokyo, nordland only")  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, help="processes that render (default: this one)")
    parser.add_argument("--benchmark", action="store_true", help="print the time of one image of each kind and end")
    return parser.parse_args()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for of a form, completed by its defaults."""
    defaults = FORMATS[args.format].DEFAULTS
    given = {key: getattr(args, key) for key in (*OPTIONS, "panoramas", "prepared") if getattr(args, key) is not None}
    for key, value in {**given, "workers": args.workers}.items():
        option = f"--{key.replace('_', '-')}"
        if key in LEAST and value < LEAST[key]:
            raise UserError(f"{option}={value}: must be at least {LEAST[key]}")
        if key != "workers" and key not in defaults:
            known = ", ".join(f"--{name.replace('_', '-')}" for name in defaults)
            raise UserError(f"{option}: --format {args.format} has no such option; it has {known}")
    return defaults | given


def main() -> None:
    """The program."""
    args = _parse()
    if args.benchmark:
        print(benchmark())
        return
    if args.out is None:
        raise UserError("--out is missing; name a new folder to write the city into")
    start, settings = time.perf_counter(), _settings(args)
    files = write_format(args.out, args.format, args.workers, **settings)
    testing = f" to train on, {settings['test_places']} to test on" if "test_places" in settings else ""
    each = f" in each of {settings['cities']} cities" if "cities" in settings else ""
    print(
        f"{args.out}: {settings['places']} places{testing}{each}, {files:,} photographs "
        f"in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    exit_on_user_error(main)

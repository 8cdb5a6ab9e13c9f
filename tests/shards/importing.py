"""What the tests of all importers share."""

import argparse
from collections import defaultdict
from pathlib import Path
from types import ModuleType

from shards.importers import Dropped, Found, Importer


def importer(module: ModuleType, source: Path, *options: str) -> Importer:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.from_arguments(parser.parse_args(["--source", str(source), *options]))


def read(module: ModuleType, source: Path, *options: str) -> tuple[dict[str, list[Found]], list[Dropped]]:
    """Places with their images by name, and what was left out, by name."""
    places: dict[str, list[Found]] = defaultdict(list)
    dropped = []
    for item in importer(module, source, *options).scan():
        if isinstance(item, Found):
            places[item.place].append(item)
        else:
            dropped.append(item)
    in_order = {key: sorted(places[key], key=lambda image: image.name) for key in sorted(places)}
    return in_order, sorted(dropped, key=lambda item: item.what)

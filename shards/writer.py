"""Places in, a shard set out: on all cores, on one machine or many, and on again after any interruption.

Contract: the set is a function of the source and the options: the same input gives the same bytes, whatever the number
of workers, machines and interruptions. It appears under its name whole or not at all; until then its working folder
(shards/workspace.py) keeps every finished shard.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pairvpr_dist.data.shard_format import Manifest
from pairvpr_dist.errors import UserError
from shards.catalogue import Catalogue
from shards.images import ImageOptions
from shards.importers import Dropped, Importer
from shards.join import complete, no_place
from shards.layout import Layout, ShardPlan, lay_out, share
from shards.parallel import on_all_cores
from shards.part import index_tar, too_few, write_tar
from shards.records import by_frequency
from shards.workspace import Agreement, Workspace


@dataclass(frozen=True)
class Recipe:
    """All that decides the bytes of a set, but for the source itself."""

    importer: Importer
    layout: Layout
    images: ImageOptions

    @property
    def options(self) -> dict[str, str]:
        """Every option that decides the result, as the manifest keeps it."""
        writer = {
            "shard_mb": self.layout.shard_bytes / 2**20,
            "images_per_sample": self.layout.images_per_sample,
            "min_images": self.layout.min_images,
            "quality": self.images.quality,
            "short_side": self.images.short_side,
        }
        return self.importer.options | {name: f"{value:.10g}" for name, value in writer.items() if value is not None}


def write_shards(recipe: Recipe, out: Path, workers: int = 1, part: int = 1, parts: int = 1) -> Manifest | None:
    """Build the set `out`, or go on where a build of the same recipe was cut off.

    With `parts` > 1 only the share of `part` (from 1) is built, and `join` makes the set when all are done: None.
    Raises `UserError` when `out` already holds something, the working folder was begun with other options or another
    source, the importer refuses its source, and no place is left over.
    """
    space = Workspace(out)
    with space.open(part, parts):
        agreed = space.agreement()
        if agreed is not None:
            refuse_other_options(agreed.kind, agreed.options, recipe, f"{space.folder}: begun")
        else:
            space.forget_catalogues(part, parts)  # of a run that agreed on nothing: the source may have been mended
        catalogue = fill_catalogue(recipe.importer, space, part, parts)
        plans = lay_out(catalogue.places(recipe.layout.min_images), recipe.layout.shard_bytes)
        dropped = partial(dropped_by_scan, catalogue, recipe.layout.min_images)
        counts = Counter(item.reason for item in dropped())
        if not plans:
            if parts == 1:
                shutil.rmtree(space.folder)
            raise UserError(no_place(recipe.importer.source, counts))
        space.agree(_agreement(recipe, plans, counts, catalogue), dropped())
        to_do = [plan for plan in share(plans, part, parts) if space.finished(plan.number) is None]
        build_all(Builder(recipe, catalogue, space), to_do, workers)
        return complete(space) if parts == 1 else None


@dataclass(frozen=True)
class Builder:
    """Builds single shards into a working folder; travels to worker processes by pickle."""

    recipe: Recipe
    catalogue: Catalogue
    space: Workspace

    def build(self, plan: ShardPlan, tick: Callable[[int, int], None]) -> None:
        """Build one shard; `tick` counts its images and their bytes."""
        layout, tar = self.recipe.layout, self.space.set / plan.name
        for left in tar.parent.glob(f".{tar.name}.*"):  # of a build that was killed
            left.unlink(missing_ok=True)
        images = self.catalogue.images(plan.first, plan.last, layout.min_images)
        dropped = write_tar(tar, images, self.recipe.importer, layout, self.recipe.images, tick)
        self.space.finish(plan.number, tar, index_tar(tar), dropped)


def build_all(builder: Builder, plans: list[ShardPlan], workers: int) -> None:
    """Build shards, `workers` at a time, with a progress bar over their images."""
    images = sum(plan.images for plan in plans)
    on_all_cores(builder.build, plans, workers, total=images, description="build", unit="image")


def refuse_other_options(kind: str, options: dict[str, str], recipe: Recipe, what: str) -> None:
    """`UserError` when a set or build of `kind` with `options` is not what `recipe` makes; `what` begins the line."""
    if kind != recipe.importer.kind:
        raise UserError(f"{what} by the importer {kind}, not {recipe.importer.kind}; name it, or another --out")
    now = recipe.options
    for name in sorted(options.keys() | now.keys()):
        if options.get(name) != now.get(name):
            option = name.replace("_", "-")
            raise UserError(
                f"{what} with --{option} {options.get(name, 'not given')}, now {now.get(name, 'not given')}; "
                f"give the same, or name another --out"
            )


def fill_catalogue(importer: Importer, space: Workspace, part: int, parts: int) -> Catalogue:
    """The catalogue of what an importer finds; one that is complete already is not filled again."""
    # Named after the importer, with its path: a source that was moved is scanned anew, and compared by digest.
    name = hashlib.sha256(repr(importer).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    path = space.catalogue(part, parts, name)
    if path.exists():
        return Catalogue(path)
    for left in path.parent.glob(f".{path.name}.*"):  # of a build that was killed
        left.unlink(missing_ok=True)
    return Catalogue.fill(path, importer.scan())


def dropped_by_scan(catalogue: Catalogue, min_images: int) -> Iterator[Dropped]:
    """What is left out before any image is read."""
    small = (Dropped(key, too_few(min_images)) for key in catalogue.small_places(min_images))
    return itertools.chain(catalogue.dropped(), small)


def _agreement(recipe: Recipe, plans: list[ShardPlan], dropped: Counter[str], catalogue: Catalogue) -> Agreement:
    importer = recipe.importer
    return Agreement(
        kind=importer.kind,
        dataset=importer.dataset,
        source=importer.source,
        options=recipe.options,
        shards=len(plans),
        dropped=by_frequency(dropped),
        catalogue=catalogue.digest(),
    )

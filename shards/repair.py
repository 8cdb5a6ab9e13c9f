"""Damaged files of a set made again from the source.

Contract: what is put in place of a damaged file has the digest that the manifest states, or nothing is touched. Whole
tars are made again from the source, an index from its tars. The manifest is what all is measured by; a damaged one
cannot be repaired.
"""

from __future__ import annotations

import itertools
import os
import shutil
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pairvpr_dist.data.index import read_manifest, size_fault
from pairvpr_dist.data.shard_format import FileRecord, Manifest
from pairvpr_dist.errors import UserError
from shards.join import write_index
from shards.layout import lay_out
from shards.parallel import in_order
from shards.part import index_tar
from shards.records import DROPPED_LIST, file_record, write_dropped
from shards.workspace import Workspace
from shards.writer import Builder, Recipe, build_all, dropped_by_scan, fill_catalogue, refuse_other_options


def repair(recipe: Recipe, out: Path, workers: int) -> list[str]:
    """Make the damaged files of the set `out` again by the recipe that built it; returns their names.

    Raises `UserError` when the set was built by another recipe, its manifest is damaged, or the source has changed.
    """
    manifest = read_manifest(out)
    refuse_other_options(manifest.kind, manifest.options, recipe, f"{out}: built")
    damaged = damaged_files(out, manifest, workers)
    if not damaged:
        return []
    space = Workspace(Path(f"{os.path.abspath(out)}.repair"))
    with space.open(1, 1):
        _build(recipe, space, manifest, damaged, workers)
        if any(record in damaged for record in manifest.index):
            _index(space, out, manifest, workers)
        for record in damaged:
            if file_record(space.set / record.name) != record:
                shutil.rmtree(space.folder)
                raise UserError(
                    f"{out}: {record.name} does not come out as it was: the source has changed since; make it what it "
                    f"was, or build the set anew"
                )
        for record in damaged:
            os.replace(space.set / record.name, out / record.name)
        shutil.rmtree(space.folder)
    return [record.name for record in damaged]


def damaged_files(folder: Path, manifest: Manifest, workers: int) -> list[FileRecord]:
    """Files of the set that are missing or of another size or digest than the manifest says."""
    files = ((record, record) for record in manifest.files)
    checked = in_order(partial(_is_damaged, folder), files, workers)
    bar = tqdm(checked, "check", len(manifest.files), unit="file", disable=None)
    return [record for record, is_damaged in bar if is_damaged]


def _is_damaged(folder: Path, record: FileRecord) -> bool:
    return size_fault(folder, record) is not None or file_record(folder / record.name) != record


def _build(recipe: Recipe, space: Workspace, manifest: Manifest, damaged: list[FileRecord], workers: int) -> None:
    """Build the damaged tars in the working folder; all of them for a damaged list of what was dropped."""
    names = {record.name for record in damaged}
    if not any(name.endswith(".tar") or name == DROPPED_LIST for name in names):
        return
    catalogue = fill_catalogue(recipe.importer, space, 1, 1)
    plans = lay_out(catalogue.places(recipe.layout.min_images), recipe.layout.shard_bytes)
    if DROPPED_LIST not in names:
        plans = [plan for plan in plans if plan.name in names]
    to_do = [plan for plan in plans if space.finished(plan.number) is None]
    build_all(Builder(recipe, catalogue, space), to_do, workers)
    if DROPPED_LIST in names:
        by_scan = dropped_by_scan(catalogue, recipe.layout.min_images)
        by_shards = itertools.chain.from_iterable(space.dropped(plan.number) for plan in plans)
        write_dropped(space.set / DROPPED_LIST, itertools.chain(by_scan, by_shards))
    missing = [name for name in names if name.endswith(".tar") and not (space.set / name).exists()]
    if missing:
        raise UserError(f"{space.out}: {missing[0]} is no shard of this source any more; build the set anew")


def _index(space: Workspace, out: Path, manifest: Manifest, workers: int) -> None:
    """Write the index into the working folder, from the tars there and the sound ones of the set."""
    paths = [space.set / record.name for record in manifest.shards]
    paths = [path if path.exists() else out / path.name for path in paths]
    rows = Workspace(space.folder / "index")  # apart: shards of the plan have other numbers
    rows.parts.mkdir(parents=True, exist_ok=True)
    built = in_order(index_tar, ((path, path) for path in paths), workers)
    shards = [rows.finish(number, path, part, []) for number, (path, part) in enumerate(built)]
    parts = (rows.part(number) for number in range(len(shards)))
    write_index(space.set, parts, shards, manifest.cities)

"""Bringing the index of a folder up to date: what is new or changed is described, what is gone forgotten.

Contract: a file is the same while its size and time are, or its content is; what is already known of it then stays.
What was described is written down batch by batch, so that a kill loses one batch. An image that cannot be read is an
entry with its fault.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from pairvpr_dist.errors import UserError
from pairvpr_dist.models.pair_vpr import Description
from pairvpr_dist.retrieval.describe import Describer, require_finite
from pairvpr_dist.retrieval.index_cache import Entry, IndexCache
from pairvpr_dist.retrieval.protocols.protocol import IMAGE_SUFFIXES, image_names, is_utf8

log = logging.getLogger(__name__)
FEW = 64  # so few images are decoded without processes of their own, which take longer to start
Found = dict[str, os.stat_result]  # images of a folder by name


def photographs(folder: Path) -> list[str]:
    """The names of all images below a folder, sorted, hidden files and folders aside. `UserError` without any.

    A name that is not UTF-8 is left out, and told.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with photographs")
    names = [name for name in image_names(folder, ".") if not any(part.startswith(".") for part in Path(name).parts)]
    for name in names:
        if not is_utf8(name):
            log.warning("left out: %s: the name %r is not UTF-8; rename it", folder, os.fsencode(name))
    told = [name for name in names if is_utf8(name)]
    if not told:
        raise UserError(f"{folder}: holds no image; put {', '.join(IMAGE_SUFFIXES)} files there")
    return told


def scan(folder: Path) -> Found:
    """The `photographs` of a folder as they stand."""
    found = {}
    for name in photographs(folder):
        with suppress(FileNotFoundError):  # gone in this moment
            found[name] = (folder / name).stat()
    return found


def up_to_date(cache: IndexCache, found: Found) -> bool:
    """Whether there is nothing to do."""
    return cache.entries.keys() == found.keys() and all(
        _same_file(entry, found[name]) and _whole(cache, entry) for name, entry in cache.entries.items()
    )


def update(cache: IndexCache, folder: Path, found: Found, describer: Describer) -> None:
    """Bring the cache to what is in the folder: forget, note new times of old contents, describe."""
    damaged = [name for name, entry in cache.entries.items() if entry.fault is None and not cache.has(entry)]
    if damaged:
        log.warning("%s: damaged for %d images, %s first; made again", cache.folder, len(damaged), damaged[0])
    wanted = []
    for name, stat in found.items():
        known = cache.entries.get(name)
        if known and _same_file(known, stat) and _whole(cache, known):
            continue
        entry = Entry(name, stat.st_size, stat.st_mtime_ns, _digest(folder / name))
        if known and known.digest == entry.digest and _whole(cache, known):
            cache.note(replace(known, size=entry.size, mtime_ns=entry.mtime_ns))
        else:
            wanted.append(entry)
    cache.forget([*(cache.entries.keys() - found.keys()), *(e.name for e in wanted if e.name in cache.entries)])
    with tqdm(total=len(wanted), desc=f"index {folder}", unit="image", disable=None) as progress:
        for entries, out in _described(describer, folder, wanted):
            if isinstance(out, UserError):
                cache.note(replace(entries[0], fault=str(out)))
            else:
                descriptors = out.descriptors.cpu().numpy()
                require_finite(descriptors, "descriptors")
                cache.store(entries, descriptors, describer.project(out.dense).numpy())
            progress.update(len(entries))


def _same_file(entry: Entry, stat: os.stat_result) -> bool:
    return (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def _whole(cache: IndexCache, entry: Entry) -> bool:
    if entry.fault is not None:
        return bool(entry.digest)  # what could not be opened is tried again, what is no image only once it has changed
    return cache.has(entry) and not cache.wants_features(entry)


def _described(
    describer: Describer, folder: Path, entries: Sequence[Entry]
) -> Iterator[tuple[Sequence[Entry], Description | UserError]]:
    """Images with their description, some at a time, and those that cannot be read, each alone, with the reason."""
    done = 0
    workers = describer.workers if len(entries) > FEW else 0
    while done < len(entries):
        try:
            for out in describer.describe([folder / entry.name for entry in entries[done:]], workers):
                count = len(out.descriptors)
                yield entries[done : done + count], out
                done += count
        except UserError as error:
            if len(entries) == 1:
                yield entries, error
                return
            batch = entries[done : done + describer.batch_size]  # one of them at least
            for entry in batch:
                yield from _described(describer, folder, [entry])
            done += len(batch)


def _digest(path: Path) -> str:
    """Of the file's bytes; empty where it cannot be opened."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "blake2b").hexdigest()[:32]
    except OSError:
        return ""

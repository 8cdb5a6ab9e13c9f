"""The working folder of a build: what is agreed, what is finished, and the set that grows in it.

    OUT.building/
        build.json                importer, options, number of shards, digest of the catalogue
        catalogue-1-of-1.sqlite   what each machine found in the source
        scan.csv                  what the scan dropped
        parts/shard-000000.npz    a finished shard's part of the index; .csv: what it dropped; .json: its record
        set/                      becomes OUT

Contract: each file appears whole or not at all, so that a build goes on after any death, and folders of several
machines can be copied into one. `shard-N.json` comes last and says that shard N is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairvpr_dist.data.index import size_fault
from pairvpr_dist.data.shard_format import FileRecord
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, sole_owner, write_text
from shards.importers import Dropped
from shards.part import Part
from shards.records import file_record, read_dropped, write_dropped

AGREEMENT = "build.json"


@dataclass(frozen=True)
class Agreement:
    """What all machines of a build must agree on; build.json."""

    kind: str
    dataset: str
    source: str
    options: dict[str, str]
    shards: int
    dropped: dict[str, int]  # by the scan: reason -> images or places
    catalogue: str  # digest


@dataclass(frozen=True)
class Finished:
    """What is known of a finished shard beside its part of the index."""

    agreement: str  # digest of the build.json under which it was built
    record: FileRecord  # of the tar, which is not there where nothing in it is usable
    dropped: dict[str, int]  # reason -> images or places
    places: int
    images: int
    members: int
    panoramas: int
    key_length: int
    cities: list[str]
    licences: dict[str, int]


class Workspace:
    """The working folder for the set `out`."""

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.abspath(out))  # "." has no name to put a folder beside
        self.folder = self.out.with_name(f"{self.out.name}.building")
        self.set, self.parts = self.folder / "set", self.folder / "parts"
        self.scan_list = self.folder / "scan.csv"

    @contextmanager
    def open(self, part: int, parts: int) -> Iterator[None]:
        """Work as one of `parts` inside the block, and leave no half-written files of others that were killed.

        Raises `UserError` when the set is there already, or another process does the same share. One part of one is
        the whole: nobody else may work then.
        """
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out}: already holds something; name a new folder or remove it first")
        for folder in (self.set, self.parts):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--out {self.out}: no folder can be made there: {error.strerror}") from None
        remedy = f"wait for it, or remove {self.folder} when no build runs"
        whole, share = self.folder / ".lock", self.folder / f".lock-{part}-of-{parts}"
        with sole_owner(whole, remedy, shared=parts > 1), sole_owner(share, remedy):
            yield

    def catalogue(self, part: int, parts: int, importer: str) -> Path:
        """Where a machine keeps its catalogue of what `importer`, a name of it, finds."""
        return self.folder / f"catalogue-{part}-of-{parts}-{importer}.sqlite"

    def forget_catalogues(self, part: int, parts: int) -> None:
        """Remove what a machine noted of the source."""
        for path in self.folder.glob(f"catalogue-{part}-of-{parts}-*"):
            path.unlink()

    def agreement(self) -> Agreement | None:
        """What was agreed before, None in a new folder."""
        path = self.folder / AGREEMENT
        return Agreement(**read_json(path, "what a build agreed on")) if path.exists() else None

    def agree(self, agreement: Agreement, dropped: Iterable[Dropped]) -> None:
        """Agree with what other machines, or this one before, began; `dropped` by the scan."""
        before = self.agreement()
        if before is None:
            write_dropped(self.scan_list, dropped)
            _write_json(self.folder / AGREEMENT, asdict(agreement))
        elif before != agreement:
            raise UserError(
                f"{self.folder}: the source differs from the one that this build began with; "
                f"make it what it was, or remove {self.folder} to begin anew"
            )

    def finished(self, number: int) -> Finished | None:
        """What is known of a shard, None where it is not finished or its tar was not copied along.

        Raises `UserError` for one that was built from another source or with other options.
        """
        path = self.parts / f"shard-{number:06d}.json"
        if not path.exists():
            return None
        values: dict[str, Any] = read_json(path, "a finished shard")
        found = Finished(**values | {"record": FileRecord(**values["record"])})
        if found.agreement != self._digest():
            raise UserError(
                f"{path}: built from another source or with other options than {self.folder / AGREEMENT} says; "
                f"remove it and run the --part that builds it"
            )
        return found if not found.places or size_fault(self.set, found.record) is None else None

    def missing(self) -> list[int]:
        """The shards that no part has finished yet."""
        agreed = self.agreement()
        return [number for number in range(agreed.shards if agreed else 0) if self.finished(number) is None]

    def part(self, number: int) -> Part:
        """A finished shard's part of the index."""
        return Part.load(self.parts / f"shard-{number:06d}.npz")

    def dropped(self, number: int) -> Iterable[Dropped]:
        """What was left out of a finished shard."""
        return read_dropped(self.parts / f"shard-{number:06d}.csv")

    def finish(self, number: int, tar: Path, part: Part, dropped: list[Dropped]) -> Finished:
        """Note that a shard's tar and part are complete; a tar without a place is removed."""
        part.save(self.parts / f"shard-{number:06d}.npz")
        write_dropped(self.parts / f"shard-{number:06d}.csv", dropped)
        found = Finished(
            agreement=self._digest(),
            record=file_record(tar),
            dropped=dict(Counter(item.reason for item in dropped)),
            places=len(part.places),
            images=len(part.images),
            members=len(part.members),
            panoramas=part.panoramas,
            key_length=part.keys.dtype.itemsize,
            cities=part.cities,
            licences=part.licences,
        )
        if not found.places:
            tar.unlink()
        _write_json(self.parts / f"shard-{number:06d}.json", asdict(found))
        return found

    def _digest(self) -> str:
        """Of what was agreed; empty where nothing was."""
        path = self.folder / AGREEMENT
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value))  # in ASCII: file names may hold bytes that are no UTF-8

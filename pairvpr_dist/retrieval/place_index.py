"""`PlaceIndex`: the images of a folder, described once, and the place of a new photograph looked up among them.

Contract: `open` describes only images that are new or changed since the last time, keeps what it knows beside them
(`index_cache.py`), apart for every model, image size and precision, and goes on where it was killed. An image that
cannot be read is left out, and told. Answers are those of an evaluation: the best by descriptor, ordered by pair score.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pairvpr_dist.config import load_config
from pairvpr_dist.data.at_names import AtName, parse_at_name
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.pair_vpr import Description, PairVPR
from pairvpr_dist.retrieval.calibration import probability
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer, require_finite
from pairvpr_dist.retrieval.index_cache import Entry, IndexCache, cache_folder
from pairvpr_dist.retrieval.protocols.protocol import list_images
from pairvpr_dist.retrieval.rerank import order_by_score, score_candidates
from pairvpr_dist.settings import EvalConfig

log = logging.getLogger(__name__)
TOLD = 5  # images left out that are told one by one
FEW = 64  # so few images are decoded without processes of their own, which take longer to start


@dataclass(frozen=True)
class Match:
    """An image of the index as an answer to a query."""

    name: str  # relative to the folder
    path: Path
    rank: int  # by pair score, from 1
    descriptor_rank: int  # from 1
    similarity: float  # of the descriptors, at most 1
    score: float  # of the pair, both orders summed
    probability: float | None  # that both show the same place; none: not calibrated

    @property
    def position(self) -> AtName | None:
        """Where it was taken, if its name tells it by the @-convention."""
        return parse_at_name(self.name)


class PlaceIndex:
    """Images of a folder with their descriptors; `left_out` says which are not in it and why."""

    def __init__(
        self,
        folder: Path,
        describer: Describer,
        cache: IndexCache,
        calibration: dict[str, float] | None,
        pair_batch_size: int | None,
    ) -> None:
        """For `open`: everything in `cache` is up to date."""
        self.folder = folder
        self.calibration = calibration
        self._pair_batch_size = pair_batch_size
        self.left_out = {name: entry.fault for name, entry in cache.entries.items() if entry.fault is not None}
        self.names = sorted(cache.entries.keys() - self.left_out.keys())
        self._describer = describer
        self._cache = cache
        self._descriptors = np.array(cache.descriptors[[cache.entries[name].row for name in self.names]])

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: PairVPR,
        calibration: dict[str, float] | None = None,
        config: EvalConfig | None = None,
    ) -> PlaceIndex:
        """The index of all images below `folder`, brought up to date.

        calibration: from `read_calibration`; without one, matches carry no probability. config: image size, batch
        sizes, workers, feature budget and precision (none: `configs/eval/default.yaml`; the other keys say nothing
        here). Raises `UserError` for a folder without a readable image, and while another process describes it.
        """
        folder = Path(folder)
        config = config or load_config("eval", "vitb", ["eval.model=given", "eval.data=given"]).eval
        describer = Describer(model, config)
        facts = {
            "weights": state_digest(model),
            "image_size": describer.image_size,
            "precision": "bf16" if describer.bf16 else "fp32",
        }
        found = _scan(folder)
        cache = IndexCache(
            cache_folder(folder, hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]),
            facts,
            model.config.descriptor_dim,
            describer.feature_shape,
            int(config.feature_budget_gib * 2**30),
        )
        if not _up_to_date(cache, found):
            with cache.writing():
                _update(cache, folder, found, describer)
        index = cls(folder, describer, cache, calibration, config.pair_batch_size)
        faults = list(index.left_out.values())
        for fault in faults[:TOLD]:
            log.warning("left out: %s", fault)
        if len(faults) > TOLD:
            log.warning("left out: %d more", len(faults) - TOLD)
        if not index.names:
            raise UserError(f"{folder}: none of its {len(found):,} images can be read; name a folder of photographs")
        return index

    def match(self, query: str | Path, top_k: int = 10) -> list[Match]:
        """The `top_k` images nearest to the image file `query` by descriptor (or all, if fewer), best pair score first.

        Raises `UserError` when `query` cannot be read.
        """
        if top_k < 1:
            raise UserError(f"top_k={top_k}: must be at least 1")
        (described,) = self._describer.describe([Path(query)])
        descriptor = described.descriptors.cpu().numpy()[0]
        require_finite(descriptor, "descriptors")
        similarities = self._descriptors @ descriptor
        nearest = np.argsort(-similarities, kind="stable")[:top_k]
        (projected,) = self._describer.project(described.dense)
        query_features, features = _Features(lambda row: projected), _Features(self._features)
        one = np.zeros(1, dtype=np.int64)
        scores = score_candidates(
            self._describer, query_features, features, one, nearest[None], self._pair_batch_size, patience=None
        )
        return [
            self._match(rank, int(column), nearest[column], similarities, float(scores[0, column]))
            for rank, column in enumerate(order_by_score(scores)[0], start=1)
        ]

    def _match(self, rank: int, column: int, row: int, similarities: np.ndarray, score: float) -> Match:
        name = self.names[row]
        likely = None if self.calibration is None else probability(score, self.calibration)
        return Match(name, self.folder / name, rank, column + 1, float(similarities[row]), score, likely)

    def _features(self, row: int) -> Tensor:
        """Projected features (N, D) fp16 of an image, from the cache or computed again."""
        name = self.names[row]
        stored = self._cache.read_features(self._cache.entries[name])
        if stored is not None:
            return torch.from_numpy(stored)
        (described,) = self._describer.describe([self.folder / name])
        return self._describer.project(described.dense)[0]


class _Features(DenseFeatures):
    """Projected features that come from elsewhere, a row at a time."""

    def __init__(self, of: Callable[[int], Tensor]) -> None:
        self.of = of

    def read(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        return torch.stack([self.of(int(row)) for row in rows], out=out)


def state_digest(model: PairVPR) -> str:
    """sha256 over the names and numbers of a model's state, whatever file it came from."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(f"{name} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()


def photographs(folder: Path) -> list[str]:
    """The names of all images below a folder, sorted, hidden files and folders aside. `UserError` without any."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with photographs")
    return [name for name in list_images(folder, ".") if not any(part.startswith(".") for part in Path(name).parts)]


def _scan(folder: Path) -> dict[str, os.stat_result]:
    found = {}
    for name in photographs(folder):
        with suppress(FileNotFoundError):  # gone in this moment
            found[name] = (folder / name).stat()
    return found


def _same_file(entry: Entry, stat: os.stat_result) -> bool:
    return (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def _whole(cache: IndexCache, entry: Entry) -> bool:
    if entry.fault is not None:
        return bool(entry.digest)  # what could not be opened is tried again, what is no image only once it has changed
    return cache.has(entry) and not cache.wants_features(entry)


def _up_to_date(cache: IndexCache, found: dict[str, os.stat_result]) -> bool:
    return cache.entries.keys() == found.keys() and all(
        _same_file(entry, found[name]) and _whole(cache, entry) for name, entry in cache.entries.items()
    )


def _update(cache: IndexCache, folder: Path, found: dict[str, os.stat_result], describer: Describer) -> None:
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
            batch = entries[done : done + (describer.batch_size if len(entries) > 1 else 1)]
            if len(entries) == 1:
                yield batch, error
            else:  # one of them at least
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

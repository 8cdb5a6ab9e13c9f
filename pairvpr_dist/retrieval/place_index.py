"""`PlaceIndex`: the images of a folder, described once, and the place of a new photograph looked up among them.

Contract: `open` describes only images that are new or changed since the last time, keeps what it knows beside them
(`index_cache.py`), apart for every model, image size and precision, and goes on where it was killed. An image that
cannot be read is left out, and told. Answers are those of an evaluation: the best by descriptor, ordered by pair score.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pairvpr_dist.config import load_config
from pairvpr_dist.data.at_names import AtName, parse_at_name
from pairvpr_dist.errors import UserError, one_line
from pairvpr_dist.models.pair_scorer import require_pair_classifier
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.calibration import own_calibration, probability
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer, require_finite
from pairvpr_dist.retrieval.index_cache import IndexCache, cache_folder
from pairvpr_dist.retrieval.index_update import scan, up_to_date, update
from pairvpr_dist.retrieval.rerank import order_by_score, score_candidates
from pairvpr_dist.settings import EvalConfig

log = logging.getLogger(__name__)
TOLD = 5  # images left out that are told one by one


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
        model: PairVPR | str | Path,
        calibration: dict[str, float] | None = None,
        config: EvalConfig | None = None,
    ) -> PlaceIndex:
        """The index of all images below `folder`, brought up to date.

        model: loaded, or an export folder or released .pth by its path. calibration: from `read_calibration`; none: of
        a path the model's own, and where it has none, matches carry no probability. config: image size, batch
        sizes, workers, feature budget and precision (none: `configs/eval/default.yaml`; the other keys say nothing
        here). Raises `UserError` for a folder without a readable image, while another process describes it, and for a
        SUP-VPR model.
        """
        folder = Path(folder)
        if not isinstance(model, PairVPR):
            calibration = calibration or own_calibration(Path(model))
            model = PairVPR.from_pretrained(model)
        config = config or load_config("eval", "vitb", ["eval.model=given", "eval.data=given"]).eval
        require_pair_classifier(model, "an index of places")
        describer = Describer(model, config)
        facts = {
            "weights": state_digest(model),
            "image_size": describer.image_size,
            "precision": "bf16" if describer.bf16 else "fp32",
        }
        found = scan(folder)
        cache = IndexCache(
            cache_folder(folder, hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]),
            facts,
            model.config.descriptor_dim,
            describer.feature_shape,
            int(config.feature_budget_gib * 2**30),
        )
        if not up_to_date(cache, found):
            with cache.writing():
                update(cache, folder, found, describer)
        index = cls(folder, describer, cache, calibration, config.pair_batch_size)
        faults = list(index.left_out.values())
        for fault in faults[:TOLD]:
            log.warning("left out: %s", one_line(fault))
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

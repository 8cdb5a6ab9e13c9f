"""Two-stage retrieval measured: describe, search, re-rank, and everything of it written down.

Contract: the output folder is whole or not there. It holds results.json, candidates.csv and the descriptors; dense
features lie in a work folder inside it until the re-ranking is done. What every figure means: docs/evaluation.md.
"""

from __future__ import annotations

import csv
import hashlib
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pairvpr_dist.config import to_dict
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder, read_json, write_json
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.describe import Describer, describe_images, require_finite
from pairvpr_dist.retrieval.index import search
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.rerank import order_by_score, score_candidates
from pairvpr_dist.retrieval.results import figures
from pairvpr_dist.settings import EvalConfig

FORMAT = "pairvpr-results/1"
RESULTS = "results.json"
CANDIDATES = "candidates.csv"
CANDIDATE_COLUMNS = ("query", "rank", "database", "descriptor_rank", "descriptor_similarity", "pair_score")


@dataclass
class Candidates:
    """What retrieval found: row k of a query is its k-th candidate by descriptor."""

    rows: np.ndarray  # (Q, K) int64, rows of the database
    similarities: np.ndarray  # (Q, K) fp32, of the descriptors
    scores: np.ndarray  # (Q, K) fp32, of the pairs, both orders summed
    order: np.ndarray  # (Q, K) columns, from the best pair score to the worst

    @property
    def reranked(self) -> np.ndarray:
        """Rows (Q, K) of the database in the order of the pair scores."""
        return np.take_along_axis(self.rows, self.order, axis=1)


@dataclass
class Stopwatch:
    """Seconds by name. On a GPU every timed part ends with its results on the CPU, so that no work is left over."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def evaluate_model(config: EvalConfig, out: Path) -> dict[str, Any]:
    """Evaluate the model and data that `config` names into the new folder `out`. Returns what results.json holds."""
    protocol = load_protocol(config.protocol, config.data, config.positive_distance)
    return evaluate(PairVPR.from_pretrained(config.model), protocol, config, out)


def evaluate(model: PairVPR, protocol: Protocol, config: EvalConfig, out: Path) -> dict[str, Any]:
    """Measure `model` (read from `config.model`) on `protocol`; write `out`. Returns the content of results.json.

    Raises `UserError` when `out` holds something, an image is unreadable or the model gives values that are not finite.
    """
    with new_folder(out) as folder:
        describer = Describer(model, config)
        watch = Stopwatch()
        candidates = retrieve(describer, protocol, config, folder, watch)
        results = {
            "format": FORMAT,
            "protocol": protocol.name,
            "split": protocol.digest,
            "queries": len(protocol.queries),
            "database": len(protocol.database),
            "top_k": candidates.rows.shape[1],
            "image_size": describer.image_size,
            "model": {"path": config.model, "sha256": weights_digest(Path(config.model)), **to_dict(model.config)},
            "ground_truths": {
                name: figures(
                    candidates.rows,
                    candidates.reranked,
                    positives,
                    config.recall_at,
                    protocol.counts_without_positives,
                )
                for name, positives in protocol.ground_truths.items()
            },
            **_costs(watch.seconds, protocol, describer),
            "config": to_dict(config),
        }
        _write_candidates(folder / CANDIDATES, protocol, candidates)
        write_json(folder / RESULTS, results)
    return results


def retrieve(
    describer: Describer, protocol: Protocol, config: EvalConfig, folder: Path, watch: Stopwatch
) -> Candidates:
    """The two stages. Writes the descriptors into `folder`; its work folder for dense features is gone at the end."""
    work = folder / "work"
    work.mkdir()
    budget = int(config.feature_budget_gib * 2**30)
    with watch("describe_database"):
        # The database first: its features are read again and again, those of a query once.
        described = describe_images(describer, protocol.database_paths, work / "database.npy", budget, "database")
    database, database_features = described
    with watch("describe"):
        left = budget - database_features.stored.nbytes
        queries, query_features = describe_images(
            describer, protocol.query_paths, work / "queries.npy", left, "queries"
        )
    np.save(folder / "descriptors_database.npy", database)
    np.save(folder / "descriptors_queries.npy", queries)
    with watch("search"):
        similarities, rows = search(database, queries, config.top_k)
    with watch("re-rank"):
        scores = score_candidates(describer, query_features, database_features, rows, config.pair_batch_size or 128)
    require_finite(scores, "pair scores")
    shutil.rmtree(work)
    return Candidates(rows, similarities, scores, order_by_score(scores))


def read_results(folder: Path) -> dict[str, Any]:
    """What results.json of an evaluation holds. `UserError` for a file of another kind."""
    results = read_json(folder / RESULTS, "the results of an evaluation")
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise UserError(f"{folder / RESULTS}: not of the format {FORMAT}; evaluate again")
    return results


def weights_digest(model: Path) -> str:
    """sha256 of the file that holds the weights of an export folder or a .pth."""
    with (model / "model.safetensors" if model.is_dir() else model).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _costs(seconds: dict[str, float], protocol: Protocol, describer: Describer) -> dict[str, Any]:
    cuda = describer.device.type == "cuda"
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if cuda:
        peak["device"] = torch.cuda.max_memory_allocated() / 2**30
    return {
        "seconds_per_query": {
            name: seconds[name] / len(protocol.queries) for name in ("describe", "search", "re-rank")
        },
        "seconds_per_database_image": seconds["describe_database"] / len(protocol.database),
        "peak_memory_gib": peak,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "precision": "bf16" if describer.bf16 else "fp32",
        "torch": torch.__version__,
    }


def _write_candidates(path: Path, protocol: Protocol, candidates: Candidates) -> None:
    """All candidates of all queries, in the order of the pair scores."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(CANDIDATE_COLUMNS)
        for query, name in enumerate(protocol.queries):
            for rank, column in enumerate(candidates.order[query], start=1):
                similarity, score = (v[query, column] for v in (candidates.similarities, candidates.scores))
                database = protocol.database[candidates.rows[query, column]]
                table.writerow([name, rank, database, column + 1, f"{similarity:.6f}", f"{score:.6f}"])

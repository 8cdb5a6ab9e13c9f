"""Two-stage retrieval measured: describe, search, re-rank (SUP-VPR: by city), and everything of it written down.

Contract: every rank calls, shares the work, and gets the same result, on the CPU bit for bit for any number of
processes with the same threads each. The results folder is whole or not there. Until then all that is done lies in
`<out>.work`, so that the same call goes on after a kill. What every figure and file means: docs/evaluation.md.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pairvpr_dist.config import to_dict
from pairvpr_dist.distributed import from_rank_0, rank, world_size
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder, write_json
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.calibration import fit_calibration
from pairvpr_dist.retrieval.candidates import CANDIDATES, Candidates, write_candidates, write_names
from pairvpr_dist.retrieval.city_figures import city_figures
from pairvpr_dist.retrieval.describe import DESCRIPTORS, Describer, describe_images
from pairvpr_dist.retrieval.index import search_in_groups
from pairvpr_dist.retrieval.outcomes import OUTCOMES, write_outcomes
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.rerank import order_by_score
from pairvpr_dist.retrieval.results import FORMAT, RESULTS, figures, hits, read_results
from pairvpr_dist.retrieval.stages import first_stage, second_stage
from pairvpr_dist.retrieval.submission import SUBMISSION, write_submission
from pairvpr_dist.retrieval.work import owned_work, work_folder
from pairvpr_dist.settings import EvalConfig

log = logging.getLogger(__name__)

SETS = ("database", "queries")
LIKELY = 5  # candidates of a query that are looked at for its own file
ONE_IMAGE = 1e-3  # descriptors of one image differ by less than this from an inner product of 1, whatever the rounding


def evaluate_model(config: EvalConfig, out: Path) -> dict[str, Any]:
    """Evaluate the model and data that `config` names into the new folder `out`. Returns what results.json holds."""
    protocol = load_protocol(config.protocol, config.data, config.positive_distance)
    return evaluate(PairVPR.from_pretrained(config.model), protocol, config, out)


def evaluate(model: PairVPR, protocol: Protocol, config: EvalConfig, out: Path) -> dict[str, Any]:
    """Measure `model` (read from `config.model`) on `protocol`; write `out`. Returns the content of results.json.

    Raises `UserError` when `out` holds something or its work folder another evaluation's beginnings, an image is
    unreadable or the model gives values that are not finite. Where `out` holds these very results and their process
    was killed before its work folder was gone, that goes and they are returned.
    """
    out = Path(os.path.abspath(out))  # "." has no name to put a work folder beside
    weights, ended = from_rank_0(lambda: _admit(protocol, config, out))
    if ended:
        return read_results(out)
    describer = Describer(model, config)
    if describer.tells_cities and config.patience is not None:
        raise UserError(f"eval.patience={config.patience}: a SUP-VPR model scores no pairs; leave the key out")
    with owned_work(work_folder(out), identity(describer, protocol, config, weights)):
        if rank() == 0:
            _warn(protocol, config)
        candidates = retrieve(describer, protocol, config, work_folder(out))
        return from_rank_0(lambda: _write(out, describer, protocol, config, candidates, weights))


def retrieve(
    describer: Describer,
    protocol: Protocol,
    config: EvalConfig,
    work: Path,
    tick: Callable[[], None] = lambda: None,
) -> Candidates:
    """The two stages. Every rank calls, and gets the candidates of all queries.

    What is done lies in the folder `work`, which all ranks see, and is taken as it is from there when called again; it
    is the caller's to remove. Afterwards it holds the descriptors (M, D) fp32: `<set>/descriptors.npy`. `tick` is
    called after every block of work of this rank.
    """
    budget = int(config.feature_budget_gib * 2**30)
    # The database first: its features are read again and again, those of a query once.
    database = describe_images(describer, protocol.database_paths, work / "database", budget, "database", tick)
    left = budget - database.features.bytes
    queries = describe_images(describer, protocol.query_paths, work / "queries", left, "queries", tick)
    found = first_stage(describer, queries.descriptors, database.descriptors, protocol, config, work)
    scores, ranked = second_stage(describer, queries.features, database.features, found, protocol, config, work, tick)
    parts = {
        "describe_database": database.seconds, "describe": queries.seconds, "search": found.seconds, "re-rank": ranked
    }  # fmt: skip
    return Candidates(found.rows, found.similarities, scores, order_by_score(scores), parts)


def identity(describer: Describer, protocol: Protocol, config: EvalConfig, weights: str) -> dict[str, Any]:
    """What an evaluation that was begun is gone on with for: all that changes its numbers by more than rounding.

    The budget is among it because it says which features are there.
    """
    return {
        "format": FORMAT,
        "weights": weights,
        **{f"model.{key}": value for key, value in to_dict(describer.model.config).items()},
        "split": protocol.digest,
        "eval.data": str(Path(config.data).resolve()),
        "eval.image_size": describer.image_size,
        "eval.precision": "bf16" if describer.bf16 else "fp32",
        "eval.feature_budget_gib": config.feature_budget_gib,
        "eval.top_k": config.top_k,
        "eval.patience": config.patience,
        "eval.index": config.index,
        "eval.index_effort": config.index_effort,
    }


def weights_digest(model: Path) -> str:
    """sha256 of the file that holds the weights of an export folder or a .pth."""
    with (model / "model.safetensors" if model.is_dir() else model).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _admit(protocol: Protocol, config: EvalConfig, out: Path) -> tuple[str, bool]:
    """The digest of the weights, and whether all is done but the end; refuses a folder that holds something else."""
    weights = weights_digest(Path(config.model))
    if work_folder(out).exists() and _holds(out, protocol, config, weights):
        log.warning("%s: the evaluation has ended before; what was left of its work is removed", out)
        shutil.rmtree(work_folder(out), ignore_errors=True)
        return weights, True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds something; name a new folder or remove it first")
    return weights, False


def _holds(out: Path, protocol: Protocol, config: EvalConfig, weights: str) -> bool:
    """Whether `out` holds the results of this very evaluation."""
    if not (out / RESULTS).exists():
        return False
    results = read_results(out)
    known = results["config"], results["split"], results["model"]["sha256"]
    return known == (to_dict(config), protocol.digest, weights)


def _warn(protocol: Protocol, config: EvalConfig) -> None:
    if protocol.deviation:
        log.warning(
            "%s: %s is not the published split: it has %s; figures do not compare with published ones",
            config.data, protocol.name, protocol.deviation,
        )  # fmt: skip
    if config.top_k > len(protocol.database):
        log.warning("eval.top_k=%d: the database holds %d images; all of them are re-ranked",
                    config.top_k, len(protocol.database))  # fmt: skip


def _results(
    describer: Describer, protocol: Protocol, config: EvalConfig, candidates: Candidates, weights: str
) -> dict[str, Any]:
    """What results.json holds; the memory is that of rank 0."""
    measured = {
        name: figures(
            candidates.rows, candidates.reranked, positives, config.recall_at, protocol.counts_without_positives
        )
        for name, positives in protocol.ground_truths.items()
    }
    primary = None if describer.tells_cities else next(iter(protocol.ground_truths.values()), None)
    return {
        "format": FORMAT,
        "protocol": protocol.name,
        "split": protocol.digest,
        "deviation": protocol.deviation,
        "queries": len(protocol.queries),
        "database": len(protocol.database),
        # SUP-VPR has candidates of every city, of which the first eval.top_k are the nearest images of all.
        "top_k": min(config.top_k, candidates.rows.shape[1]),
        "candidates": candidates.rows.shape[1],
        "image_size": describer.image_size,
        "model": {"path": config.model, "sha256": weights, **to_dict(describer.model.config)},
        "ground_truths": measured,
        "calibration": None if primary is None else fit_calibration(candidates.scores, hits(candidates.rows, primary)),
        "index": config.index,
        "patience": config.patience,
        "scored_per_query": float((~np.isnan(candidates.scores)).sum() / len(candidates.scores)),
        "queries_in_database": queries_in_database(protocol, candidates),
        **_costs(candidates.seconds, protocol, describer),
        "config": to_dict(config),
    }


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
        "processes": world_size(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "precision": "bf16" if describer.bf16 else "fp32",
        "torch": torch.__version__,
    }


def _write(
    out: Path, describer: Describer, protocol: Protocol, config: EvalConfig, candidates: Candidates, weights: str
) -> dict[str, Any]:
    """Write the results folder; what results.json holds."""
    results = _results(describer, protocol, config, candidates, weights)
    if protocol.cities is not None:
        results["cities"] = _city_figures(protocol, config, candidates, work_folder(out))
    if results["queries_in_database"]:
        log.warning("%s: %d of %d queries are in the database themselves, byte for byte; their recall says nothing",
                    protocol.root, results["queries_in_database"], len(protocol.queries))  # fmt: skip
    with new_folder(out) as folder:
        for name, names in zip(SETS, (protocol.database, protocol.queries), strict=True):
            shutil.copyfile(work_folder(out) / name / DESCRIPTORS, folder / f"descriptors_{name}.npy")
            write_names(folder / f"{name}.csv", names)
        write_candidates(folder / CANDIDATES, protocol, candidates)
        write_outcomes(folder / OUTCOMES, protocol, candidates.rows, candidates.reranked)
        if protocol.takes_submission:
            write_submission(folder / SUBMISSION, protocol, candidates.reranked)
        write_json(folder / RESULTS, results)
    return results


def _city_figures(protocol: Protocol, config: EvalConfig, candidates: Candidates, work: Path) -> dict[str, Any]:
    """The section `cities`; for it every query is searched in its own city, too."""
    assert protocol.database_city is not None
    assert protocol.query_city is not None
    database, queries = (np.load(work / name / DESCRIPTORS, mmap_mode="r") for name in SETS)
    groups = protocol.database_city, protocol.query_city
    asked = config.recall_at[-1], config.index, config.index_effort
    _, within = search_in_groups(database, queries, groups, *asked)
    rankings = {"descriptor": candidates.rows, "reranked": candidates.reranked}
    return city_figures(protocol, rankings, within, config.recall_at)


def queries_in_database(protocol: Protocol, candidates: Candidates) -> int:
    """How many queries are the same file as one of their nearest candidates."""
    nearest = candidates.similarities[:, :LIKELY]  # a model that takes all images for one would have all compared
    near = (nearest > 1 - ONE_IMAGE) & (nearest > nearest[:, :1] - ONE_IMAGE)
    return sum(
        any(filecmp.cmp(protocol.root / name, protocol.root / protocol.database[row], shallow=False) for row in rows)
        for name, rows in zip(protocol.queries, map(np.compress, near, candidates.rows[:, :LIKELY]), strict=True)
    )

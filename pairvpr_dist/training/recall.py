"""Recall of a model in training, measured as `pairvpr eval` measures an export.

Contract: the weights of the moment, gathered into a plain model on every rank, so that ranks need not go in step, and
evaluated by all of them together: the same figures as one process evaluating the export gives. Nothing of the training
state changes, and nothing stays on disk but for a run that is killed meanwhile, which goes on with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pairvpr_dist.config import load_config
from pairvpr_dist.distributed import barrier, copy_from_rank_0, rank
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.retrieval.city_figures import city_accuracy
from pairvpr_dist.retrieval.describe import Describer
from pairvpr_dist.retrieval.evaluate import retrieve
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.results import figures
from pairvpr_dist.settings import EvalConfig, RecallConfig, Stage2Config, TrainingConfig

RERANKED, DESCRIPTOR = "recall@", "descriptor_recall@"  # with the rank; of the protocol's primary ground truth
# Where the protocol has cities; by the re-ranked order. "city_accuracy" is what the objective measures on its batches.
CITY = "city_recall@1"
WORK = "recall"  # in the stage's folder, while recall is measured


if TYPE_CHECKING:
    from pairvpr_dist.training.engine import Engine


def measures_recall(config: TrainingConfig) -> bool:
    """Whether validation of this run measures recall."""
    return isinstance(config, Stage2Config) and config.recall.data is not None


def recall_names(config: Stage2Config) -> list[str]:
    """What `measure_recall` measures."""
    names = [f"{kind}{n}" for kind in (RERANKED, DESCRIPTOR) for n in config.recall.recall_at]
    return [*names, CITY] if config.recall.protocol == "cities" else names


def check_recall(config: Stage2Config) -> None:
    """That recall can be measured: `UserError` if not, before the first step."""
    try:
        evaluation_of(config)
        protocol = protocol_of(config.recall)
    except UserError as error:  # of an evaluation's keys, which are those of `recall` here
        raise UserError(str(error).replace("eval.", "recall.")) from None
    if not protocol.ground_truths:
        raise UserError(f"recall.protocol={config.recall.protocol}: its ground truth is secret; name another")


def measure_recall(
    config: Stage2Config, engine: Engine, folder: Path, model: str, tick: Callable[[], None]
) -> dict[str, float]:
    """Recall in per cent by name, the same on every rank; every rank must call. `tick` is called now and then.

    `model` tells the weights from others of the run. What was done for them before a kill is not done again.
    """
    protocol = protocol_of(config.recall)
    work = folder / f"{WORK}-{model}-{protocol.digest[:8]}-{config.recall.top_k}"
    if rank() == 0:
        for other in set(folder.glob(f"{WORK}-*")) - {work}:
            shutil.rmtree(other)
    barrier()
    try:
        describer = Describer(plain_model(engine, config), evaluation_of(config))
        candidates = retrieve(describer, protocol, evaluation_of(config), work, tick)
    except torch.OutOfMemoryError:
        remedy = "lower batch_size or pair_batch_size in configs/eval, or recall.top_k"
        raise UserError(f"out of memory on rank {rank()} while recall was measured; {remedy}") from None
    barrier()
    if rank() == 0:
        shutil.rmtree(work)
    positives = next(iter(protocol.ground_truths.values()))
    found = figures(candidates.rows, candidates.reranked, positives, config.recall.recall_at,
                    protocol.counts_without_positives)  # fmt: skip
    measured = {
        f"{name}{n}": value
        for name, key in ((RERANKED, "reranked_recall"), (DESCRIPTOR, "descriptor_recall"))
        for n, value in found[key].items()
    }
    return measured | ({CITY: city_accuracy(candidates.reranked, protocol)} if protocol.cities is not None else {})


def protocol_of(recall: RecallConfig) -> Protocol:
    """What recall is measured on. Raises `UserError` for data that do not fit the protocol."""
    assert recall.data is not None
    return load_protocol(recall.protocol, recall.data, recall.positive_distance)


def evaluation_of(config: Stage2Config) -> EvalConfig:
    """The settings of the evaluation: those of `recall`, and of `configs/eval` what does not change figures."""
    recall = config.recall
    given = {
        "model": config.run, "data": recall.data, "protocol": recall.protocol, "top_k": recall.top_k,
        "positive_distance": recall.positive_distance, "recall_at": recall.recall_at,
        "feature_budget_gib": recall.feature_budget_gib, "precision": config.train.precision,
        "workers": config.data.workers, "patience": None, "index": "flat",
    }  # fmt: skip
    return load_config("eval", config.size, [f"eval.{key}={json.dumps(value)}" for key, value in given.items()]).eval


def plain_model(engine: Engine, config: Stage2Config) -> PairVPR:
    """The engine's weights in fp32 as a model of its own on this rank's device; every rank must call."""
    weights = engine.full_weights()
    with torch.random.fork_rng(devices=[]):
        model = PairVPR(config.model).to(engine.device)
    for name, tensor in model.state_dict().items():
        if weights is not None:
            tensor.copy_(weights[name])
        copy_from_rank_0(tensor)
    return model

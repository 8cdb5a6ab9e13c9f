"""report.html: one page that shows what a run learned and what its retrieval finds.

Contract: the page is self-contained (pictures and styles inside, nothing is fetched) and holds only what the folder
holds: a part that is missing leaves its section out. Evaluations of one split stand in one table, those of different
splits never. Figures come from results.json and outcomes.csv; what needs the images says where they are missing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pairvpr_dist.config import config_from_dict
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_text
from pairvpr_dist.retrieval.candidates import CANDIDATES, Candidates, read_candidates
from pairvpr_dist.retrieval.compare import Estimate, ranks_shown, recall
from pairvpr_dist.retrieval.curves import Curve, read_curves
from pairvpr_dist.retrieval.outcomes import Outcomes, read_outcomes
from pairvpr_dist.retrieval.plots import Plot, budget_plot, calibration_plot, recall_plot
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.query_grid import Group, data_url, query_groups
from pairvpr_dist.retrieval.results import (
    RERANKED,
    RESULTS,
    cautions,
    counting_rule,
    hits,
    read_results,
    second_ranking,
)
from pairvpr_dist.settings import EvalConfig

log = logging.getLogger(__name__)

REPORT = "report.html"


@dataclass
class Evaluation:
    """One evaluation to be shown under a label: its folder, its results.json and its outcomes.csv."""

    label: str
    folder: Path
    results: dict[str, Any]
    outcomes: dict[str, Outcomes]


@dataclass
class Row:
    """One ranking of one evaluation in a table of recall."""

    label: str
    ranking: str
    estimates: list[Estimate]


@dataclass
class Truth:
    """The evaluations by one ground truth."""

    name: str
    rule: str  # over how many queries, and what became of those without positives
    at: list[int]
    rows: list[Row]
    kinds: list[tuple[str, dict[str, int]]]  # label and queries by kind


@dataclass
class Section:
    """All that is shown of one split; the last evaluation is the one whose queries are shown."""

    evaluations: list[Evaluation]
    truths: list[Truth]
    plots: list[Plot]
    groups: list[Group]
    missing: str | None  # why there are no pictures


def rewrite_report(folder: Path) -> Path:
    """Write <folder>/report.html of a run, or of a lone evaluation, from what the folder holds. Returns its path."""
    found = [folder] if (folder / RESULTS).exists() else [path.parent for path in folder.glob(f"eval*/{RESULTS}")]
    if not found:
        raise UserError(f"{folder}: holds no {RESULTS} and no eval/{RESULTS}; evaluate the run first")
    # The run's own evaluation comes last, and its split first.
    found.sort(key=lambda path: (path.name == "eval", path.name))
    evaluations = [_read(path) for path in found]
    splits = dict.fromkeys(evaluation.results["split"] for evaluation in reversed(evaluations))
    page = (
        Environment(
            loader=PackageLoader("pairvpr_dist.retrieval", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        .get_template(REPORT)
        .render(
            name=folder.resolve().name,
            cautions=cautions,
            second_ranking=second_ranking,
            sections=[_section([one for one in evaluations if one.results["split"] == split]) for split in splits],
            curves=_curves(folder),
            reconstruction=_reconstruction(folder),
        )
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def _read(folder: Path) -> Evaluation:
    results = read_results(folder)
    return Evaluation(_label(folder), folder, results, read_outcomes(folder, results))


def _section(evaluations: list[Evaluation]) -> Section:
    last = evaluations[-1]
    truths = [_truth(evaluations, name) for name in last.outcomes]
    plots = _recall_plots(evaluations)
    try:
        protocol = _data_of(last)
        found = [read_candidates(one.folder / CANDIDATES, protocol, _candidates(one.results)) for one in evaluations]
    except UserError as error:
        log.warning("%s: the report goes without pictures of queries, for %s", last.folder, error)
        return Section(evaluations, truths, plots, [], str(error))
    plots += _plots_of_candidates(evaluations, found, protocol)
    groups = query_groups(protocol, found[-1], last.outcomes, second_ranking(last.results))
    return Section(evaluations, truths, plots, groups, None)


def _candidates(results: dict[str, Any]) -> int:
    """How many candidates of a query there are; results of older versions have as many as are re-ranked."""
    return int(results.get("candidates", results["top_k"]))


def _data_of(evaluation: Evaluation) -> Protocol:
    """The data set of an evaluation; `UserError` where it does not lie there any more as it was measured."""
    results = evaluation.results
    config = config_from_dict(EvalConfig, results["config"], str(evaluation.folder / RESULTS))
    protocol = load_protocol(config.protocol, config.data, config.positive_distance)
    if protocol.digest != results["split"]:
        raise UserError(f"{config.data}: holds another split now than was measured; evaluate again")
    return protocol


def _truth(evaluations: list[Evaluation], name: str) -> Truth:
    at = ranks_shown([one.results for one in evaluations])
    rows = []
    for one in evaluations:
        kept = one.outcomes[name].kept
        rankings = {"descriptor": kept.descriptor, second_ranking(one.results): kept.reranked}
        rows += [Row(one.label, words, [recall(ranks, n) for n in at]) for words, ranks in rankings.items()]
    kinds = [
        (one.label, {kind: int(members.sum()) for kind, members in one.outcomes[name].kinds.items()})
        for one in evaluations
    ]
    results = evaluations[-1].results
    return Truth(name, counting_rule(results["ground_truths"][name], results["queries"]), at, rows, kinds)


def _recall_plots(evaluations: list[Evaluation]) -> list[Plot]:
    """By the primary ground truth; none where it is secret."""
    judged = [
        (one.label, second_ranking(one.results), next(iter(one.outcomes.values())), one.results["top_k"])
        for one in evaluations
        if one.outcomes
    ]
    return [recall_plot(judged)] if judged else []


def _plots_of_candidates(evaluations: list[Evaluation], found: list[Candidates], protocol: Protocol) -> list[Plot]:
    """What is drawn of every candidate's score, by the primary ground truth; calibration of the last evaluation."""
    if not evaluations[-1].outcomes:
        return []
    positives = next(iter(protocol.ground_truths.values()))
    counted = next(iter(evaluations[-1].outcomes.values())).counted
    hit = [hits(candidates.rows, positives) for candidates in found]
    budgets = [
        (one.label, candidates.scores[counted], right[counted], one.results["patience"] is None)
        if second_ranking(one.results) == RERANKED
        else None
        for one, candidates, right in zip(evaluations, found, hit, strict=True)
    ]
    last = evaluations[-1]
    calibration = last.results["calibration"]
    plots = [budget_plot(budgets)] if any(budgets) else []
    return (
        plots if calibration is None else [*plots, calibration_plot(last.label, found[-1].scores, hit[-1], calibration)]
    )


def _label(evaluation: Path) -> str:
    name = evaluation.resolve().name
    return "trained" if name == "eval" else name.removeprefix("eval-")


def _curves(run: Path) -> list[tuple[str, list[Curve]]]:
    stages = {"Stage 1: masked modelling": "stage1", "Stage 2: descriptor and pair classifier, or cities": "stage2"}
    found = [(title, read_curves(run / stage / "metrics.jsonl")) for title, stage in stages.items()]
    return [(title, curves) for title, curves in found if curves]


def _reconstruction(run: Path) -> str | None:
    pictures = sorted((run / "stage1" / "reconstructions").glob("*.png"))
    return data_url(pictures[-1].read_bytes(), "png") if pictures else None

"""The figures of one evaluation, pure functions of candidates, scores and ground truth; and results.json, their file.

Contract: recall@N is the share, in per cent, of the counted queries with a positive among the first N. A query without
any positive in a ground truth is counted as a failure or not at all, as the protocol has it; their number is given.
No torch is loaded: who compares or shows results needs none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json
from pairvpr_dist.retrieval.protocols.protocol import Protocol

FORMAT = "pairvpr-results/2"
RESULTS = "results.json"
RERANKED, CITY_FIRST = "re-ranked", "city first"
SHOWN_CITIES = 12  # as many have a line each in what is printed


def read_results(folder: Path) -> dict[str, Any]:
    """What results.json of an evaluation holds. `UserError` for a file of another kind."""
    results = read_json(folder / RESULTS, "the results of an evaluation")
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise UserError(f"{folder / RESULTS}: not of the format {FORMAT}; evaluate again")
    return results


def hits(candidates: np.ndarray, positives: list[np.ndarray]) -> np.ndarray:
    """Whether each candidate (Q, K) is a positive of its query: bool (Q, K)."""
    return np.stack([np.isin(rows, right) for rows, right in zip(candidates, positives, strict=True)])


def recalls(hit: np.ndarray, recall_at: list[int]) -> dict[str, float]:
    """Recall@N in per cent from `hit` (Q, K), bool in the order of the ranking."""
    return {str(n): round(100 * float(hit[:, :n].any(axis=1).mean()), 4) for n in recall_at}


def figures(
    candidates: np.ndarray, reranked: np.ndarray, positives: list[np.ndarray], at: list[int], count_all: bool
) -> dict[str, Any]:
    """All figures of one ground truth, from the candidates' rows (Q, K) by descriptor and by pair score.

    `count_all`: also queries without positives, as failures.
    """
    has_positives = np.array([len(rows) > 0 for rows in positives])
    counted = has_positives | count_all
    before, after = (hits(ranking, positives)[counted] for ranking in (candidates, reranked))
    return {
        "queries_counted": int(counted.sum()),
        "queries_without_positives": int((~has_positives).sum()),
        "descriptor_recall": recalls(before, at),
        "reranked_recall": recalls(after, at),
        "unreachable": int((~before.any(axis=1)).sum()),
        "won": int((after[:, 0] & ~before[:, 0]).sum()),
        "lost": int((before[:, 0] & ~after[:, 0]).sum()),
    }


def summary(results: dict[str, Any]) -> str:
    """The table that a user sees."""
    head = f"{results['protocol']} ({results['queries']:,} queries, {results['database']:,} database, "
    head += f"split {results['split'][:8]})  top {results['top_k']}, {results['image_size']} px"
    # What results of older versions lack is passed over.
    if results.get("patience") is not None:
        head += f", patience {results['patience']}: {results['scored_per_query']:.1f} candidates scored a query"
    recall = _recall_lines(results) if results["ground_truths"] else [_secret(results)]
    seconds = results["seconds_per_query"]
    parts = ", ".join(f"{part} {seconds[part]:.3g}" for part in seconds)
    cost = f"{sum(seconds.values()):.3g} s/query ({parts}) on {results['device']}"
    return "\n".join([head, *cautions(results), *recall, *_city_lines(results), cost])


def cautions(results: dict[str, Any]) -> list[str]:
    """What a reader must know before the figures are set beside others, a line each."""
    told = deviation_line(results)
    if results.get("queries_in_database"):
        told.append(f"{results['queries_in_database']:,} queries are in the database themselves: recall says too much")
    if second_ranking(results) == CITY_FIRST and "cities" not in results:
        told.append("no cities are known here: all is one city to a SUP-VPR model, left in the descriptor's order")
    return told


def second_ranking(results: dict[str, Any]) -> str:
    """What the second of the two rankings is called: SUP-VPR looks for the city first, Pair-VPR re-ranks."""
    return CITY_FIRST if results["model"].get("city_blocks") else RERANKED


def deviation_line(results: dict[str, Any]) -> list[str]:
    """One line where the data are not the published split, else none."""
    deviation = results.get("deviation")
    return [f"NOT THE PUBLISHED SPLIT ({deviation}): do not set beside published figures"] if deviation else []


def counting_rule(figure: dict[str, Any], queries: int) -> str:
    """Over how many queries the recall of a ground truth is, and what became of those without positives."""
    counted, without = figure["queries_counted"], figure["queries_without_positives"]
    if not without:
        return f"{counted:,} queries"
    rule = "count as failures" if counted == queries else "are left out"
    return f"{counted:,} queries ({without:,} without positives {rule})"


def _recall_lines(results: dict[str, Any]) -> list[str]:
    at = list(next(iter(results["ground_truths"].values()))["descriptor_recall"])
    width = max(len(name) for name in results["ground_truths"])
    lines = [" ".join([" " * width, " " * 10, *(f"{'R@' + n:>6}" for n in at)])]
    for name, figure in results["ground_truths"].items():
        descriptor, reranked = (
            " ".join(f"{figure[key][n]:6.1f}" for n in at) for key in ("descriptor_recall", "reranked_recall")
        )
        moved = f"won {figure['won']:,}  lost {figure['lost']:,}  out of reach {figure['unreachable']:,}"
        lines += [
            f"{name:<{width}} descriptor {descriptor}   {counting_rule(figure, results['queries'])}",
            f"{'':<{width}} {second_ranking(results):<10} {reranked}   {moved}",
        ]
    return lines


def _city_lines(results: dict[str, Any]) -> list[str]:
    """The table of cities: whether they are recognised, and recall within and over them; no line without cities."""
    found = results.get("cities")
    if found is None:
        return []
    lines = [{"city": "all", **found}, *(found["per_city"] if len(found["names"]) <= SHOWN_CITIES else ())]
    at, width = list(found["within"]), max(12, *(len(line["city"]) for line in lines))
    second, block = second_ranking(results), 7 * len(at)
    head = f"{'':<{width}} {'':>8}  {'city recognised by':<23}  {'within its city':<{block}}  over all, {second}"
    names = "".join(f"{'R@' + n:>7}" for n in at)
    told = [head, f"{'city':<{width}} {'queries':>8}  {'descriptor':>10} {second:>12}  {names}  {names}"]
    for line in lines:
        shares = [line["accuracy"][name] for name in ("descriptor", "reranked")]
        within, over_all = ("".join(f"{_text(part[n]):>7}" for n in at)
                            for part in (line["within"], line["over_all"]["reranked"]))  # fmt: skip
        told.append(f"{line['city']:<{width}} {line['queries']:>8,}  {_text(shares[0]):>10} {_text(shares[1]):>12}"
                    f"  {within}  {over_all}")  # fmt: skip
    return told


def _text(share: float | None) -> str:
    return "-" if share is None else f"{share:.1f}"


def _secret(results: dict[str, Any]) -> str:
    return (
        f"the ground truth of {results['protocol']} is secret, so there is no recall here: "
        "hand in submission.txt, which lies beside results.json"
    )


def first_hits(protocol: Protocol, rows: np.ndarray) -> np.ndarray:
    """Whether the one row (Q,) given to each query is right by the primary ground truth: bool (Q,)."""
    return hits(rows[:, None], next(iter(protocol.ground_truths.values())))[:, 0]

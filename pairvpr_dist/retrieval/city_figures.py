"""Figures of a protocol with cities: is the city recognised, the place within it, and the place among all of them.

Contract: pure functions of rankings and ground truth, for any model: the city that a ranking recognises is that of its
first answer. Shares are in per cent; those of places are over the queries that the primary ground truth counts, those
of cities over all queries. Of no query there is no share: None. No torch is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pairvpr_dist.retrieval.protocols.protocol import Protocol
from pairvpr_dist.retrieval.results import hits, recalls


def recognised(rows: np.ndarray, protocol: Protocol) -> np.ndarray:
    """City (Q,) of the first answers of the ranking `rows` (Q, K)."""
    assert protocol.database_city is not None
    return protocol.database_city[rows[:, 0]]


def city_accuracy(rows: np.ndarray, protocol: Protocol) -> float:
    """Per cent of the queries whose city is that of the first answer of the ranking `rows` (Q, K)."""
    assert protocol.query_city is not None
    return round(100 * float((recognised(rows, protocol) == protocol.query_city).mean()), 4)


def city_figures(
    protocol: Protocol, rankings: dict[str, np.ndarray], within: np.ndarray, at: list[int]
) -> dict[str, Any]:
    """The section `cities` of results.json.

    rankings: rows (Q, K) over all cities, by `descriptor` and `reranked`; within: rows (Q, N) by descriptor when a
    query is searched in its own city alone, filled up with -1; at: the N of recall@N. The confusion matrix counts
    queries: a line a city of queries, a column a city of first answers of the re-ranked order.
    """
    assert protocol.cities is not None
    assert protocol.query_city is not None
    assert protocol.database_city is not None
    positives = next(iter(protocol.ground_truths.values()))
    counted = np.array([len(rows) > 0 for rows in positives]) | protocol.counts_without_positives
    hit = {name: hits(rows, positives) for name, rows in (*rankings.items(), ("within", within))}
    right = {name: recognised(rows, protocol) == protocol.query_city for name, rows in rankings.items()}

    def shares(asked: np.ndarray) -> dict[str, Any]:
        """Of the queries `asked` (Q,) bool."""
        kept = asked & counted
        return {
            "queries": int(asked.sum()),
            "queries_counted": int(kept.sum()),
            "accuracy": {name: _share(found[asked]) for name, found in right.items()},
            "within": _recalls(hit["within"][kept], at),
            "over_all": {name: _recalls(hit[name][kept], at) for name in rankings},
        }

    cities = range(len(protocol.cities))
    pairs = protocol.query_city * len(cities) + recognised(rankings["reranked"], protocol)
    images = np.bincount(protocol.database_city, minlength=len(cities)).tolist()
    return {
        "names": protocol.cities,
        **shares(np.ones(len(positives), dtype=bool)),
        "per_city": [
            {"city": name, "database": images[city], **shares(protocol.query_city == city)}
            for city, name in enumerate(protocol.cities)
        ],
        "confusion": np.bincount(pairs, minlength=len(cities) ** 2).reshape(len(cities), -1).tolist(),
    }


def _share(right: np.ndarray) -> float | None:
    return round(100 * float(right.mean()), 4) if len(right) else None


def _recalls(hit: np.ndarray, at: list[int]) -> dict[str, float | None]:
    return dict(recalls(hit, at)) if len(hit) else {str(n): None for n in at}

"""The section `cities`: its figures by hand on a small case, and what is printed of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pairvpr_dist.retrieval.city_figures import city_accuracy, city_figures
from pairvpr_dist.retrieval.protocols import Protocol
from pairvpr_dist.retrieval.results import summary

# 6 database images: bern 0 1 2, rome 3 4, oslo 5. 4 queries: bern, bern, rome, rome; the last has no positive.
PROTOCOL = Protocol(
    "cities", Path("nowhere"), list("abcdef"), list("qrst"),
    {"place": [np.array(rows, dtype=np.int64) for rows in ([0], [1, 2], [4], [])], "city": []},
    cities=["bern", "oslo", "rome"], database_city=np.array([0, 0, 0, 2, 2, 1]), query_city=np.array([0, 0, 2, 2]),
)  # fmt: skip
DESCRIPTOR = np.array([[0, 3, 1], [5, 2, 1], [0, 3, 4], [3, 4, 0]])  # cities: right, wrong, wrong, right
RERANKED = np.array([[3, 0, 1], [2, 5, 1], [4, 3, 0], [4, 3, 0]])  # cities: wrong, right, right, right
WITHIN = np.array([[0, 1], [0, 2], [3, 4], [3, 4]])


def figures() -> dict[str, object]:
    return city_figures(PROTOCOL, {"descriptor": DESCRIPTOR, "reranked": RERANKED}, WITHIN, [1, 2])


def test_figures_by_hand() -> None:
    found = figures()
    assert found["names"] == ["bern", "oslo", "rome"]
    assert (found["queries"], found["queries_counted"]) == (4, 3)
    assert found["accuracy"] == {"descriptor": 50, "reranked": 75}
    assert found["within"] == {"1": 33.3333, "2": 100}
    assert found["over_all"] == {"descriptor": {"1": 33.3333, "2": 66.6667}, "reranked": {"1": 66.6667, "2": 100}}
    bern, oslo, rome = found["per_city"]  # type: ignore[misc]
    assert (bern["city"], bern["database"], bern["queries"], bern["queries_counted"]) == ("bern", 3, 2, 2)
    assert (bern["accuracy"], bern["within"]) == ({"descriptor": 50, "reranked": 50}, {"1": 50, "2": 100})
    assert bern["over_all"]["reranked"] == {"1": 50, "2": 100}
    assert (rome["queries"], rome["queries_counted"]) == (2, 1)
    assert rome["accuracy"] == {"descriptor": 50, "reranked": 100}
    assert rome["over_all"] == {"descriptor": {"1": 0, "2": 0}, "reranked": {"1": 100, "2": 100}}
    assert (oslo["database"], oslo["queries"]) == (1, 0)
    assert oslo["accuracy"] == {"descriptor": None, "reranked": None}
    assert oslo["within"] == {"1": None, "2": None}
    assert found["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 2]]
    assert city_accuracy(RERANKED, PROTOCOL) == 75


def test_a_table_is_printed_and_many_cities_get_one_line() -> None:
    results = {
        "protocol": "cities", "queries": 4, "database": 6, "split": "0" * 64, "top_k": 3, "image_size": 70,
        "device": "cpu", "seconds_per_query": {"describe": 1.0}, "ground_truths": {}, "model": {"city_blocks": 12},
        "cities": figures(),
    }  # fmt: skip
    lines = summary(results).splitlines()[2:-1]
    assert "city first" in lines[0] + lines[1]
    assert [line.split() for line in lines[2:]] == [
        ["all", "4", "50.0", "75.0", "33.3", "100.0", "66.7", "100.0"],
        ["bern", "2", "50.0", "50.0", "50.0", "100.0", "50.0", "100.0"],
        ["oslo", "0", "-", "-", "-", "-", "-", "-"],
        ["rome", "2", "50.0", "100.0", "0.0", "100.0", "100.0", "100.0"],
    ]
    results["cities"] |= {"names": [str(number) for number in range(13)]}  # type: ignore[operator]
    assert len(summary(results).splitlines()) == 2 + 3 + 1

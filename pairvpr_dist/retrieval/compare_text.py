"""A comparison of evaluations (`compare.py`) for reading. Pure."""

from __future__ import annotations

from collections.abc import Callable

from pairvpr_dist.retrieval.compare import (
    Change,
    Estimate,
    Measured,
    changes,
    difference,
    differing,
    ranks_shown,
    recall,
)
from pairvpr_dist.retrieval.outcomes import KINDS, NOWHERE
from pairvpr_dist.retrieval.results import cautions, counting_rule, second_ranking

KIND_WORDS = {
    "won": "won: wrong by descriptor, right {second}",
    "lost": "lost: right by descriptor, wrong {second}",
    "right": "right both times",
    "missed": "wrong both times, with a positive among the candidates",
    "unreachable": "unreachable: no positive among the candidates",
}


def as_text(measured: list[Measured], shown: int) -> str:
    """The whole comparison; of the queries that changed, `shown` of each kind by name."""
    first = measured[0].results
    head = f"{first['protocol']} ({first['queries']:,} queries, {first['database']:,} database, "
    lines = [f"{head}split {first['split'][:8]})", *cautions(first)]
    width = max(len(str(one.folder)) for one in measured)
    lines += [f"  {one.letter}  {one.folder!s:<{width}}  weights {_weights(one)}" for one in measured]
    for key, values in differing(measured).items():
        told = ", ".join(f"{one.letter} {'none' if v is None else v}" for one, v in zip(measured, values, strict=True))
        lines.append(f"  not the same: {key} {told}")
    for name in measured[0].outcomes:
        lines += ["", *_recall_table(measured, name), "", *_kinds_table(measured, name)]
    for other in measured[1:]:
        lines += ["", *_changed(measured[0], other, shown)]
    return "\n".join(lines)


def second_order(measured: list[Measured]) -> str:
    """What the second of the two rankings is called, for several evaluations at once."""
    words = {second_ranking(one.results) for one in measured}
    return words.pop() if len(words) == 1 else "in the second order"


RANKINGS: dict[str, Callable[[list[Measured]], str]] = {  # field of Outcomes -> words
    "descriptor": lambda measured: "descriptor",
    "reranked": second_order,
}


def _recall_table(measured: list[Measured], name: str) -> list[str]:
    """Recall of each evaluation, then each one's difference to the first, with intervals."""
    at = ranks_shown([one.results for one in measured])
    first = measured[0]
    figure = first.results["ground_truths"][name]
    rows: list[tuple[str, list[str]]] = []
    kept = {one.letter: one.outcomes[name].kept for one in measured}
    for field, words in RANKINGS.items():
        for one in measured:
            ranks = getattr(kept[one.letter], field)
            rows.append((f"{one.letter} {words([one])}", [_share(recall(ranks, n)) for n in at]))
        for other in measured[1:]:
            before, after = (getattr(kept[letter], field) for letter in (first.letter, other.letter))
            told = [_difference(difference(before, after, n)) for n in at]
            rows.append((f"{other.letter} - {first.letter} {words([first, other])}", told))
    labels, width = max(len(label) for label, _ in rows), max(len(cell) for _, cells in rows for cell in cells)
    head = " " * (labels + 2) + "  ".join(f"{f'R@{n}':<{width}}" for n in at).rstrip()
    title = f"{name}: {counting_rule(figure, first.results['queries'])}; per cent [95 % interval over queries]"
    return [title, head] + [
        f"{label:<{labels}}  {'  '.join(f'{cell:<{width}}' for cell in cells).rstrip()}" for label, cells in rows
    ]


def _kinds_table(measured: list[Measured], name: str) -> list[str]:
    """How many queries are of each kind."""
    kinds = {kind: words.format(second=second_order(measured)) for kind, words in KIND_WORDS.items()}
    width = max(len(words) for words in kinds.values())
    rows = [f"{'queries by their first answers':<{width}}" + "".join(f"{one.letter:>8}" for one in measured)]
    for kind in KINDS:
        counts = "".join(f"{int(one.outcomes[name].kinds[kind].sum()):>8,}" for one in measured)
        rows.append(f"{kinds[kind]:<{width}}{counts}")
    return rows


def _changed(before: Measured, after: Measured, shown: int) -> list[str]:
    """The queries that `after` won and lost, by the primary ground truth."""
    primary = next(iter(before.outcomes))
    found = [change for change in changes(before, after) if change.ground_truth == primary]
    by_kind = {kind: [change for change in found if change.change == kind] for kind in ("won", "lost")}
    told = ", ".join(f"{len(of_kind):,} {kind}" for kind, of_kind in by_kind.items())
    lines = [
        f"from {before.letter} to {after.letter}, first answers {second_order([before, after])} by {primary}: {told}"
    ]
    for kind, of_kind in by_kind.items():
        lines += [f"  {kind:<4}  {_moved(change, before, after)}" for change in of_kind[:shown]]
        if len(of_kind) > shown:
            lines.append(f"  {kind:<4}  and {len(of_kind) - shown:,} more; --out FILE.csv writes all")
    return lines


def _moved(change: Change, before: Measured, after: Measured) -> str:
    outcomes = [one.outcomes[change.ground_truth] for one in (before, after)]
    was, now = (_rank(side.reranked[change.row]) for side in outcomes)
    return f"first positive {was}, then {now}: {outcomes[0].queries[change.row]}"


def _rank(rank: int) -> str:
    return "not among the candidates" if rank == NOWHERE else f"at {rank:,}"


def _share(share: Estimate) -> str:
    return f"{share.value:.1f} [{share.low:.1f}, {share.high:.1f}]"


def _difference(share: Estimate) -> str:
    return f"{share.value:+.1f} [{share.low:+.1f}, {share.high:+.1f}]"


def _weights(measured: Measured) -> str:
    model = measured.results["model"]
    return f"{model['sha256'][:8]} of {model['path']}"

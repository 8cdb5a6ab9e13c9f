"""Submission files: a line a query, `QUERY_KEY DATABASE_KEY DATABASE_KEY ...`, best answer first.

Contract: a key is a file name without folder and suffix; fields are separated by white space, what follows a # is a
comment. A query that the set has but the protocol leaves out (a panorama, say) is ignored, such an answer counts as
wrong, as in the public evaluation of MSLS. Recall@N is the share of queries with a positive among the first N answers;
mAP@N the mean over queries of: precision at each positive among the first N, summed, over min(number of positives, N).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_text
from pairvpr_dist.retrieval.protocols.protocol import Protocol
from pairvpr_dist.retrieval.results import deviation_line

SUBMISSION = "submission.txt"
ANSWERS = 25  # per query that are written; none below rank 20 is scored
SCORED_AT = (1, 5, 10, 20)
LEFT_OUT = -1  # the row of an answer that the set has and the protocol leaves out


@dataclass
class Submission:
    """What a file answers, and what is wrong with it."""

    answers: dict[int, np.ndarray] = field(
        default_factory=dict
    )  # row of the query -> rows of the database, or LEFT_OUT
    ignored: int = 0  # lines of queries that the protocol leaves out
    mistakes: list[str] = field(default_factory=list)  # each with its line, in the order of the file


def write_submission(path: Path, protocol: Protocol, reranked: np.ndarray) -> None:
    """Write the first answers of `reranked` (Q, K), rows of the database, best first; a row below 0 is no answer."""
    queries, database = _keys(protocol.queries), _keys(protocol.database)
    lines = (
        " ".join([query, *(database[row] for row in rows[:ANSWERS] if row >= 0)])
        for query, rows in zip(queries, reranked, strict=True)
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_submission(path: Path, protocol: Protocol) -> Submission:
    """The answers of a file to the queries of `protocol`. `UserError` when it is no text file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name the submission to score") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text: {error}") from None
    queries = _rows(protocol.queries, protocol.query_paths)
    database = _rows(protocol.database, protocol.database_paths)
    found, seen = Submission(), dict[str, int]()
    for number, line in enumerate(lines, start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        wrong = _mistake(fields, seen, queries, database)
        seen.setdefault(fields[0], number)
        if wrong is None:
            _take(found, fields, queries, database)
        else:
            found.mistakes.append(f"line {number}: {wrong}")
    found.mistakes += [f"query '{key}' has no line" for key in _keys(protocol.queries) if key not in seen]
    return found


def scores(submission: Submission, positives: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Recall and mAP in per cent at each of SCORED_AT, of a submission without mistakes."""
    hits = [np.isin(submission.answers[query], right) for query, right in enumerate(positives)]
    recall = {str(n): 100 * float(np.mean([hit[:n].any() for hit in hits])) for n in SCORED_AT}
    most = [len(right) for right in positives]
    precision = {
        str(n): 100
        * float(np.mean([_average_precision(hit[:n], min(m, n)) for hit, m in zip(hits, most, strict=True)]))
        for n in SCORED_AT
    }
    return {"recall": recall, "mAP": precision}


def score_table(protocol: Protocol, submission: Submission) -> str:
    """What a user sees of the scores, by the primary ground truth."""
    counts = f"{len(protocol.queries):,} queries, {len(protocol.database):,} database"
    lines = [f"{protocol.name} ({counts}, split {protocol.digest[:8]})"]
    lines += deviation_line({"deviation": protocol.deviation})
    lines.append(" ".join([" " * 6, *(f"{f'@{n}':>6}" for n in SCORED_AT)]))
    for name, figures in scores(submission, next(iter(protocol.ground_truths.values()))).items():
        lines.append(" ".join([f"{name:6}", *(f"{figures[str(n)]:6.1f}" for n in SCORED_AT)]))
    return "\n".join(lines)


def _average_precision(hit: np.ndarray, most: int) -> float:
    """Of one query's answers (N,): bool, right or not, when at most `most` could be right."""
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return float(precision[hit].sum() / most)


def _mistake(fields: list[str], seen: dict[str, int], queries: dict[str, int], database: dict[str, int]) -> str | None:
    query, *answers = fields
    if query in seen:
        return f"query '{query}' was answered in line {seen[query]} already"
    if query not in queries:
        return f"no query has the key '{query}'"
    if not answers:
        return f"query '{query}' has no answer"
    unknown = next((key for key in answers if key not in database), None)
    if unknown is not None:
        return f"no database image has the key '{unknown}'"
    twice = next((key for i, key in enumerate(answers) if key in answers[:i]), None)
    return None if twice is None else f"'{twice}' is given twice for query '{query}'"


def _take(found: Submission, fields: list[str], queries: dict[str, int], database: dict[str, int]) -> None:
    row = queries[fields[0]]
    if row == LEFT_OUT:
        found.ignored += 1
    else:
        found.answers[row] = np.array([database[key] for key in fields[1:]])


def _keys(names: Iterable[str]) -> list[str]:
    return [PurePosixPath(name).stem for name in names]


def _rows(names: list[str], paths: list[Path]) -> dict[str, int]:
    """Row of each key; LEFT_OUT for images that lie beside those of the protocol."""
    others = {path.stem for folder in {path.parent for path in paths} for path in folder.iterdir()}
    return dict.fromkeys(others, LEFT_OUT) | {key: row for row, key in enumerate(_keys(names))}

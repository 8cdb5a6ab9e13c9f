"""Who hangs: a judgement from what is seen of every rank. Pure.

Contract: times are the observer's own; clocks of other machines are never compared. A rank is silent when its thread
gives no beat (process stopped, machine gone); it is stuck when it beats, all others are further on or as far, and it
does not move. Where a rank may take long (`Place.slow`), it has `LONG` times the patience.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

START, VALIDATE, SAVE, DATA, FORWARD, BACKWARD = PHASES = ("start", "validate", "save", "data", "forward", "backward")
END = "end"  # has left the loop; nobody waits for it any more
SLOW_PHASES = (START, VALIDATE, SAVE)
LONG = 5


class Place(NamedTuple):
    """Where a rank is. `PHASES` stand in the order in which a rank goes through them at a step."""

    step: int
    phase: str
    moves: int  # counts up, so that the next batch of a validation is a movement
    slow: bool

    @property
    def order(self) -> tuple[int, int]:
        """How far that is."""
        return self.step, PHASES.index(self.phase)


class Sight(NamedTuple):
    """What an observer has seen of a rank: where and since when, and its last beat and when that came."""

    place: Place
    moved: float
    beat: int
    alive: float

    def renewed(self, place: Place, beat: int, now: float) -> Sight:
        """With what the rank says at `now`."""
        return Sight(place, self.moved if place == self.place else now, beat, self.alive if beat == self.beat else now)

    def patience(self, timeout: float) -> float:
        """Seconds after which the rank counts as lost."""
        return timeout * (LONG if self.place.slow else 1)


class Hang(NamedTuple):
    """Ranks that all others wait for, where they were seen last and for how long; they had `patience` seconds."""

    ranks: list[int]
    hosts: list[str]
    silent: bool
    step: int
    phase: str
    seconds: float
    patience: float

    def sentence(self) -> str:
        """One line for people."""
        who = ", ".join(f"rank {rank} on {host}" for rank, host in zip(self.ranks, self.hosts, strict=True))
        what = "no sign of life" if self.silent else "no movement"
        return f"{what} for {self.seconds:.0f} s from {who}, last in phase '{self.phase}' of step {self.step}"


def find_lost(sights: Mapping[int, Sight], hosts: Sequence[str], now: float, timeout: float) -> Hang | None:
    """The ranks that the run waits for in vain, if there are any.

    A rank that stops is also one that does not move any more; of the ranks at its place, it alone is then named.
    """
    if silent := find_silent(sights, hosts, now, timeout):
        return silent
    stuck = find_stuck(sights, hosts, now, timeout)
    silent = find_silent(sights, hosts, now, timeout / 2) if stuck else None
    return silent._replace(patience=2 * silent.patience) if silent else stuck


def find_silent(sights: Mapping[int, Sight], hosts: Sequence[str], now: float, timeout: float) -> Hang | None:
    """The ranks that give no beat any more, if there are any."""
    silent = {
        rank: sight
        for rank, sight in sights.items()
        if sight.place.phase != END and now - sight.alive > sight.patience(timeout)
    }
    return _hang(silent, hosts, now - max(sight.alive for sight in silent.values()), timeout, True) if silent else None


def find_stuck(sights: Mapping[int, Sight], hosts: Sequence[str], now: float, timeout: float) -> Hang | None:
    """The ranks that are furthest behind, if none of these moves.

    All wait for them, so their own last movement counts, whatever the others did since.
    """
    going = {rank: sight for rank, sight in sights.items() if sight.place.phase != END}
    if not going:
        return None
    last = min(sight.place.order for sight in going.values())
    behind = {rank: sight for rank, sight in going.items() if sight.place.order == last}
    still = now - max(sight.moved for sight in behind.values())
    stuck = still > max(sight.patience(timeout) for sight in behind.values())
    return _hang(behind, hosts, still, timeout, False) if stuck else None


def _hang(sights: Mapping[int, Sight], hosts: Sequence[str], seconds: float, timeout: float, silent: bool) -> Hang:
    first = min(sights.values(), key=lambda sight: sight.place.order)
    where = [hosts[rank] for rank in sights]
    return Hang(list(sights), where, silent, *first.place[:2], round(seconds, 1), first.patience(timeout))

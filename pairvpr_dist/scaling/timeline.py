"""Computing and communication of a pass side by side: `timeline`.

Contract: pure. A GPU computes one layer at a time, and one message is under way at a time. With ZeRO-3 the weights of
coming layers are gathered as far ahead as a bucket holds, the next layer's always. Gradients leave when they fill a
bucket; there are two, so none is filled before the last but one is gone. Without overlap, computing waits for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pairvpr_dist.costs.zero import BUCKET


@dataclass(frozen=True)
class Work:
    """One layer of a pass."""

    seconds: float
    weights: float  # numbers that are gathered before it
    gather: float  # seconds in which they are
    gradients: float  # numbers that are ready after it


@dataclass
class _Streams:
    """How far computing and communication have come, in seconds from the start."""

    overlap: bool
    computed: float = 0.0
    sent: float = 0.0
    gone: list[float] = field(default_factory=list)  # when buckets of gradients are

    def send(self, ready: float, seconds: float) -> float:
        """When a message is there that may leave at `ready`; one that takes no time is none."""
        if not seconds:
            return ready
        self.sent = max(self.sent, ready) + seconds
        if not self.overlap:
            self.computed = max(self.computed, self.sent)
        return self.sent

    def reduce(self, seconds: float) -> None:
        """Send a bucket that is full, and wait for the other one."""
        self.gone.append(self.send(self.computed, seconds))
        if len(self.gone) > 1:
            self.computed = max(self.computed, self.gone[-2])


def timeline(works: Sequence[Work], reduce: float, overlap: bool) -> float:
    """Seconds until all works are done and all gradients are reduced, a number of them in `reduce` seconds."""
    streams = _Streams(overlap)
    arrived: list[float] = []  # when the weights of works are there
    ahead = waiting = 0.0  # numbers of weights that are gathered and not used yet, and of gradients in the bucket
    for i, work in enumerate(works):
        if i == len(arrived):
            arrived.append(streams.send(streams.computed, work.gather))
        else:
            ahead -= work.weights
        start = max(streams.computed, arrived[i])
        while overlap and len(arrived) < len(works):
            following = works[len(arrived)]
            if len(arrived) > i + 1 and ahead + following.weights > BUCKET:
                break
            ahead += following.weights
            arrived.append(streams.send(start, following.gather))
        streams.computed = start + work.seconds
        waiting += work.gradients
        while waiting >= BUCKET:
            streams.reduce(BUCKET * reduce)
            waiting -= BUCKET
    streams.reduce(waiting * reduce)
    return max(streams.computed, streams.sent)

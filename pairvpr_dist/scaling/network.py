"""How long GPUs take to send each other something, over links within a machine and a network between machines.

Contract: pure. Collectives move in rings that pass every GPU of a machine and then the next machine (as NCCL's do), in
pieces that keep links and network busy at the same time: the slower of the two counts. All GPUs of a machine share its
way to the others. A call costs a hop for each other GPU of the machine and, since between machines trees are built, a
hop for each doubling of the machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pairvpr_dist.costs.hardware import Gpu

ROUNDS = {"all_reduce": 2}  # times that a message goes round, to be summed and to be handed out; of all others once


@dataclass(frozen=True)
class Network:
    """The GPUs of a job and what is between them."""

    gpu: Gpu
    world: int
    share: float  # of the nominal rates that collectives reach
    link_hop: float  # seconds
    network_hop: float

    @property
    def local(self) -> int:
        """GPUs of the job on one machine, dealt out evenly."""
        return math.ceil(self.world / self.machines)

    @property
    def machines(self) -> int:
        """Machines of the job."""
        return math.ceil(self.world / self.gpu.gpus_per_node)

    def seconds(self, kind: str, size: float, calls: float) -> float:
        """For messages of `size` bytes together, in so many calls, of which nothing is hidden; 0 in a lone process."""
        if self.world == 1:
            return 0.0
        return ROUNDS.get(kind, 1) * (self._moving(kind, size) + calls * self._hops())

    def _moving(self, kind: str, size: float) -> float:
        """Once round. Rates of the data sheet, of which a share is reached."""
        gpu, local, machines = self.gpu, self.local, self.machines
        if kind == "all_to_all":  # every GPU sends the others an equal part of its own message
            near, far = (local - 1) / self.world * size, (self.world - local) / self.world * size
        else:  # what leaves a machine leaves it once, over the ways of all its GPUs
            near, far = (local - 1) / local * size, (machines - 1) / machines * size / local
        return max(near / gpu.link_rate, far / gpu.network_rate) / self.share

    def _hops(self) -> float:
        return (self.local - 1) * self.link_hop + math.ceil(math.log2(self.machines)) * self.network_hop

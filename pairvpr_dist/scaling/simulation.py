"""How long a training step takes on a cluster, layer by layer: `simulate_step`.

Contract: pure; nothing is measured. Operations come from `costs.layers`, messages from `costs.traffic`. Two things
happen at a time on each GPU: it computes, one layer after the other, and it communicates, one message after the other
(`timeline.py`). What is assumed beside the table of GPUs is in `StepAssumptions`. Data are at hand. An entry's `flops`
are those of bf16: where bf16 is False the entry must hold rates of fp32, as one that was measured on a CPU does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

from pairvpr_dist.costs.compilation import compiled_on
from pairvpr_dist.costs.flops import training_flops_per_place
from pairvpr_dist.costs.hardware import Gpu
from pairvpr_dist.costs.layers import Layer, layers
from pairvpr_dist.costs.traffic import Exchange, step_traffic
from pairvpr_dist.costs.zero import gathered_again
from pairvpr_dist.models.encoder import preset
from pairvpr_dist.scaling.network import Network
from pairvpr_dist.scaling.timeline import Work, timeline
from pairvpr_dist.settings import TrainingConfig

COMPUTE, MEMORY, LINK, NETWORK, LAUNCH = "compute", "memory", "link", "network", "launch"
FASTER = 1.05  # so much better is what is tried, to find out what binds


@dataclass(frozen=True)
class StepAssumptions:
    """What a step's time rests on beside the table of GPUs. None of it was measured on a GPU."""

    vectors_forward: float = 22.0  # that a block reads and writes beside its products, each as wide as it, for a token
    vectors_backward: float = 44.0
    compiled_vectors: float = 0.65  # share of them that is left where blocks are compiled
    memory_share: float = 0.8  # of the memory's rate that is reached
    kernels: float = 14.0  # of a layer's forward pass; the backward pass has twice as many
    compiled_kernels: float = 0.6  # share of them that is left where blocks are compiled
    kernel_seconds: float = 3e-6  # in which a kernel fills the GPU and leaves it
    launch_seconds: float = 9e-6  # in which Python starts a kernel; the GPU waits where it is faster
    graph_launch_seconds: float = 1e-6  # the same in a CUDA graph
    update_bytes: float = 34.0  # read and written for each number that a rank updates: master, moments, gradient twice
    network_share: float = 0.8  # of the links' and the network's rates that collectives reach
    link_hop: float = 2e-6  # seconds from a GPU to the next one of its machine
    network_hop: float = 10e-6  # seconds from a machine to another
    overlap: bool = True  # gradients and weights travel while the GPU computes, as DeepSpeed does it on GPUs
    jitter: float = 0.015  # standard deviation of a GPU's computing time between steps, a share of it


# Processes of one machine without GPUs, whose rates are measured: they compute and send by turns.
ON_CPU = StepAssumptions(
    memory_share=1.0, network_share=1.0, kernel_seconds=0.0, link_hop=1e-4, overlap=False, jitter=0.0
)


@dataclass(frozen=True)
class StepTime:
    """One optimizer step of a job. Its parts add up to its seconds."""

    seconds: float
    compute: float  # forward and backward passes
    exposed: float  # communication that computing does not hide
    update: float  # the optimizer's
    straggling: float  # waiting for the slowest
    binds: str  # of what a little more would help most: compute, memory, link, network or launch
    places_per_second: float
    mfu: float  # share of the peak that work of the model takes


def simulate_step(
    config: TrainingConfig, gpu: Gpu, bf16: bool = True, assumptions: StepAssumptions | None = None
) -> StepTime:
    """One step of `launch.processes` GPUs at `data.places_per_batch`, in `train.accumulate` parts."""
    given = assumptions if assumptions is not None else StepAssumptions()
    step = _Step(config, gpu, bf16, given, tuple(layers(config)), tuple(step_traffic(config, bf16)))
    improved = {
        COMPUTE: replace(step, gpu=replace(gpu, flops=gpu.flops * FASTER)),
        MEMORY: replace(step, gpu=replace(gpu, memory_rate=gpu.memory_rate * FASTER)),
        LINK: replace(step, gpu=replace(gpu, link_rate=gpu.link_rate * FASTER),
                      given=replace(given, link_hop=given.link_hop / FASTER)),
        NETWORK: replace(step, gpu=replace(gpu, network_rate=gpu.network_rate * FASTER),
                         given=replace(given, network_hop=given.network_hop / FASTER)),
        LAUNCH: replace(step, given=_faster_launches(given)),
    }  # fmt: skip
    places_per_second = config.data.places_per_batch / step.seconds
    return StepTime(
        seconds=step.seconds,
        compute=step.compute,
        exposed=step.exposed,
        update=step.update,
        straggling=step.straggling,
        binds=min(improved, key=lambda name: improved[name].seconds),
        places_per_second=places_per_second,
        mfu=places_per_second * training_flops_per_place(config) / (gpu.flops * config.launch.processes),
    )


def expected_slowest(ranks: int) -> float:
    """Mean of the largest of `ranks` standard normal numbers, by Blom's approximation (1958, with alpha = 3/8)."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def _faster_launches(given: StepAssumptions) -> StepAssumptions:
    names = ("kernel_seconds", "launch_seconds", "graph_launch_seconds")
    return replace(given, **{name: getattr(given, name) / FASTER for name in names})


@dataclass(frozen=True)
class _Sent:
    """Seconds of communication: for each number that is sent while layers are computed, and of all that is not."""

    gather_forward: float  # a part of the batch
    gather_backward: float
    reduce: float  # the whole step
    blocking: float


ALONE = _Sent(0.0, 0.0, 0.0, 0.0)


def _way(exchange: Exchange, zero_stage: int) -> str:
    """The field of `_Sent` to which a message belongs. ZeRO-0 reduces gradients when the backward pass is over."""
    if exchange.blocking or exchange.phase == "update" or zero_stage == 0:
        return "blocking"
    if exchange.kind == "all_gather" and zero_stage == 3:
        return f"gather_{exchange.phase}"
    return "reduce" if exchange.phase == "backward" else "blocking"


@dataclass(frozen=True)
class _Step:
    """The parts of a step's time."""

    config: TrainingConfig
    gpu: Gpu
    bf16: bool
    given: StepAssumptions
    layers: tuple[Layer, ...]
    traffic: tuple[Exchange, ...]

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed + self.update + self.straggling

    @cached_property
    def compute(self) -> float:
        return self.config.train.accumulate * sum(work.seconds for work in self._works(ALONE))

    @cached_property
    def exposed(self) -> float:
        """ZeRO-2 and -3 reduce gradients of every part of a batch, ZeRO-1 those of the last."""
        parts, sent = self.config.train.accumulate, self._sent()
        works, overlap = self._works(sent), self.given.overlap
        if self.config.train.zero_stage > 1:
            passes = parts * timeline(works, sent.reduce / parts, overlap)
        else:
            passes = (parts - 1) * timeline(works, 0.0, overlap) + timeline(works, sent.reduce, overlap)
        return passes - self.compute + sent.blocking

    @cached_property
    def update(self) -> float:
        """Of the numbers that a rank updates: all without ZeRO, else its share."""
        own = self._trained / (self.config.launch.processes if self.config.train.zero_stage else 1)
        return own * self.given.update_bytes / self._memory_rate

    @property
    def straggling(self) -> float:
        return self.compute * self.given.jitter * expected_slowest(self.config.launch.processes)

    @property
    def _memory_rate(self) -> float:
        return self.gpu.memory_rate * self.given.memory_share

    @property
    def _trained(self) -> float:
        return sum(layer.parameters for layer in self.layers if layer.trained)

    @cached_property
    def _gathered_again(self) -> Counter[str]:
        """Numbers of layers whose weights ZeRO-3 gathers for the backward pass too, by the layer's name."""
        return Counter({layer.name: layer.parameters for layer, again in gathered_again(self.layers) if again})

    def _sent(self) -> _Sent:
        config, given = self.config, self.given
        network = Network(self.gpu, config.launch.processes, given.network_share, given.link_hop, given.network_hop)
        seconds = dict.fromkeys(("gather_forward", "gather_backward", "reduce", "blocking"), 0.0)
        for exchange in self.traffic:
            way = _way(exchange, config.train.zero_stage)
            seconds[way] += network.seconds(exchange.kind, exchange.bytes, exchange.calls)
        parts, whole = config.train.accumulate, sum(layer.parameters for layer in self.layers)
        return _Sent(
            gather_forward=seconds["gather_forward"] / parts / whole,
            gather_backward=seconds["gather_backward"] / parts / max(1, self._gathered_again.total()),
            reduce=seconds["reduce"] / self._trained,
            blocking=seconds["blocking"],
        )

    def _works(self, sent: _Sent) -> list[Work]:
        """The layers of the forward pass, then those of the backward pass."""
        works = [self._forward(layer, sent) for layer in self.layers]
        return works + [self._backward(layer, sent) for layer in reversed(self.layers) if layer.trained]

    def _forward(self, layer: Layer, sent: _Sent) -> Work:
        weights = layer.parameters if sent.gather_forward else 0
        seconds = self._seconds(layer, layer.forward, self.given.vectors_forward, 1)
        return Work(seconds, weights, weights * sent.gather_forward, 0)

    def _backward(self, layer: Layer, sent: _Sent) -> Work:
        weights = self._gathered_again[layer.name] if sent.gather_backward else 0
        again = self._is_computed_again(layer)
        vectors = self.given.vectors_backward + again * self.given.vectors_forward
        seconds = self._seconds(layer, layer.backward + layer.recomputed, vectors, 2 + again)
        return Work(seconds, weights, weights * sent.gather_backward, layer.parameters)

    def _is_computed_again(self, layer: Layer) -> int:
        """Whether norms and activation functions of the layer are; products are in `recomputed`."""
        selective = self.config.train.checkpointing == "selective" and ".blocks." in layer.name
        return int(layer.recomputed > 0 or selective)

    def _seconds(self, layer: Layer, flops: float, vectors: float, passes: int) -> float:
        """Of the layer for a part of a rank's batch: kernels run one after the other, each bound by what it does."""
        given, config = self.given, self.config
        if not layer.forward:
            return 0.0
        places = config.data.places_per_batch / config.launch.processes / config.train.accumulate
        compiled = compiled_on(config, gpu=True) if ".blocks." in layer.name else "none"
        width, number = self._width(layer), 2 if self.bf16 else 4
        tokens = layer.forward / (2 * layer.parameters)  # that pass its weights; attention makes it a few too many
        moved = places * tokens * width * number * vectors * (given.compiled_vectors if compiled != "none" else 1)
        kernels = passes * layer.runs * given.kernels * (given.compiled_kernels if compiled != "none" else 1)
        products = max(
            places * flops / (self.gpu.flops * self.gpu.efficiency),
            passes * layer.runs * layer.parameters * number / self._memory_rate,
        )
        launch = given.graph_launch_seconds if compiled == "graphs" else given.launch_seconds
        return max(products + moved / self._memory_rate + kernels * given.kernel_seconds, kernels * launch)

    def _width(self, layer: Layer) -> int:
        of_decoder = layer.name.startswith(("decoder", "pixel_head", "pair_head"))
        return self.config.model.decoder_dim if of_decoder else preset(self.config.model.encoder).dim

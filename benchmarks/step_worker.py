"""A process that makes training steps of one kind when it is asked to, so that two kinds can take turns.

Contract: a worker holds at most one model, of random weights that seed 0 makes, and its batch is random too; both kinds
get the same ones. Time is taken inside the process and ends when the device has done its work. Memory is what the
process holds at most beside what it held before the model was there: tensors on a GPU, resident memory on a CPU.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from pairvpr_dist.settings import TrainingConfig

LATE = 10**9  # a step at which all weights of a loss have risen
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the matrices whose product is the device's limit


class Turn(NamedTuple):
    """What some steps in a row took."""

    wall: float  # seconds a step
    processor: float  # of all threads together
    peak_bytes: int
    loss: float  # of the last step


class Worker:
    """A process of one kind, `plain` or `ours`, to which `Steps`' methods are sent."""

    def __init__(self, kind: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What `Steps.<method>(*arguments)` returns there; None when it ran out of memory."""
        self._connection.send((method, arguments))
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Let the process go."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, kind: str) -> None:
    import torch

    steps = Steps(kind)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(steps, method)(*arguments)
        except (torch.OutOfMemoryError, MemoryError):
            answer = None
        except Exception as error:
            answer = error
        if answer is None and method != "close":
            steps.close()  # an engine that stopped in the middle of a step is of no use
        connection.send(answer)


class Steps:
    """Steps of one kind on one model."""

    def __init__(self, kind: str) -> None:
        # Heavy imports are late, so that a program that only asks does not wait for them.
        import torch
        import torch.distributed as dist

        from pairvpr_dist import distributed

        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        self.ours = kind == "ours"
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if self.ours:
            distributed.start(dist.HashStore())
        self.step: Any = None  # an Engine or a PlainStep
        self.model: Any = None
        self.graphs, self.base = False, 0

    def build(self, config: TrainingConfig) -> bool:
        """Make a model and its batch, of the configuration's number of places, in place of the last."""
        import torch
        from plain_step import PlainStep

        from pairvpr_dist.models.pair_vpr import PairVPR
        from pairvpr_dist.objectives import build_objective
        from pairvpr_dist.training.engine import Engine

        self.close()
        self.config, self.base = config, 0 if self.on_gpu else resident("VmRSS")
        torch.manual_seed(0)
        with self.device:
            model = PairVPR(config.model)
        if not self.ours:
            self.step = PlainStep(model, config, self.device)
        else:
            self.step = Engine(build_objective(config, model, ["random"]), config)
            for group in self.step.groups:
                group["lr"] = config.optim.lr * group["lr_scale"]
                group["weight_decay"] = config.optim.weight_decay * group["wd_scale"]
        self.model, self.graphs = model, False
        self.batch = random_batch(config).to(self.device)
        return True

    def run_blocks(self, checkpointing: str, compiled: str) -> bool:
        """Let ours run its blocks so from now on."""
        self.model.run_blocks(checkpointing, compiled)
        self.graphs = compiled == "graphs"
        return True

    def turn(self, count: int) -> Turn:
        """`count` steps one after another."""
        self.start_peak()
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(count):
            loss = self.one()
        self.wait()
        seconds = (time.perf_counter() - wall) / count, (time.process_time() - processor) / count
        turn = Turn(*seconds, self.peak(), float(loss))
        self.release()
        return turn

    def one(self) -> Any:
        """One step: its loss."""
        import torch

        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self.step.train_on(self.batch, LATE)[0] if self.ours else self.step.step(self.batch)

    def product(self) -> float:
        """Operations a second of a large product of matrices, in the precision of ours: the device's limit."""
        import torch

        rows = MATRIX[self.device.type]
        one, other = torch.randn(2, rows, rows, device=self.device).to(torch.bfloat16 if self.on_gpu else torch.float32)
        # A CPU that others use too has its limit in the time that we had it.
        clock = time.perf_counter if self.on_gpu else lambda: time.process_time() / torch.get_num_threads()
        seconds = []
        for _ in range(5):
            started = clock()
            one @ other
            self.wait()
            seconds.append(clock() - started)
        return 2 * rows**3 / min(seconds)

    def profile(self, count: int, trace: Path | None) -> list[tuple[str, str, float]]:
        """(part, kind, seconds) of a step, over `count` of them; `trace`: a file for chrome://tracing."""
        from step_profile import profiled

        return profiled(self, count, trace)

    def close(self) -> None:
        """Let go of model and batch."""
        if self.step is not None and self.ours:
            self.step.close()
        self.step = self.model = self.batch = None
        self.release()

    @property
    def on_gpu(self) -> bool:
        """Where the steps are made."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done its work."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def start_peak(self) -> None:
        """Let the largest memory be that of now."""
        import torch

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes at most since `start_peak`."""
        import torch

        return torch.cuda.max_memory_allocated() if self.on_gpu else resident("VmHWM") - self.base

    def release(self) -> None:
        """Give memory that is not used back, so that the other process, or the next way of steps, finds it free."""
        import torch

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def random_batch(config: TrainingConfig) -> Any:
    """A batch of the configuration's places, of noise."""
    import torch

    from pairvpr_dist.data.loader import Batch

    draws = torch.Generator().manual_seed(1)
    places, views, size = config.data.places_per_batch, config.data.images_per_place, config.model.image_size
    images = torch.randint(0, 256, (places, views, 3, size, size), dtype=torch.uint8, generator=draws)
    keys = torch.randint(0, 2**62, (places, views), generator=draws)
    return Batch(images, keys, torch.arange(places), *[torch.zeros(places, dtype=torch.int64)] * 2)


def resident(key: str) -> int:
    """A number of /proc/self/status, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024

"""This machine's processor as an entry of the table of GPUs, for predictions of studies without a GPU.

Contract: rates are measured, once a study: products of matrices, copies of memory, and the sum of a vector over two
processes. The share of the products' rate that a step reaches is none that can be measured apart from steps: it is set
so that the prediction of one point is what was measured of it. That point's prediction is then no prediction.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pairvpr_dist.costs.hardware import Gpu

SIDE = 1536  # of the matrices
NUMBERS = 1 << 24  # in a vector, 64 MiB
FP32 = 4
ROUNDS = 5  # of which the best counts: others use the machine too
LOWEST, HIGHEST = 1e-4, 1.0  # efficiencies


def measure_machine(threads: int, processes: int) -> dict[str, float]:
    """Rates of a process with so many threads, and between `processes` of them, where they are more than one."""
    return {"threads": threads, "cores": float(os.cpu_count() or 1), **_own_rates(threads),
            "link_rate": _link_rate(threads) if processes > 1 else 0.0}  # fmt: skip


def as_gpu(rates: dict[str, float]) -> Gpu:
    """What was measured as an entry of the table; all processes are on one machine. Pure."""
    link = rates["link_rate"] or rates["memory_rate"]
    return Gpu(
        name="cpu", driver_names=(), flops=rates["flops"], memory=math.inf, memory_rate=rates["memory_rate"],
        link_rate=link, network_rate=link, gpus_per_node=4096, efficiency=HIGHEST,
    )  # fmt: skip


def calibrate(gpu: Gpu, seconds: float, predict: Callable[[Gpu], float]) -> Gpu:
    """The entry with the efficiency at which `predict(entry)` is `seconds`; the nearest where none is. Pure."""
    low, high = LOWEST, HIGHEST
    for _ in range(20):  # to a ten-thousandth
        middle = (low * high) ** 0.5
        low, high = (middle, high) if predict(replace(gpu, efficiency=middle)) > seconds else (low, middle)
    return replace(gpu, efficiency=high)


def _own_rates(threads: int) -> dict[str, float]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.randn(2, SIDE, SIDE)
        source, target = torch.zeros(2, NUMBERS)
        product = _best(lambda: torch.mm(a, b))
        copy = _best(lambda: target.copy_(source))
    finally:
        torch.set_num_threads(before)
    return {"flops": 2 * SIDE**3 / product, "memory_rate": 2 * NUMBERS * FP32 / copy}


def _best(act: Callable[[], object]) -> float:
    act()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _link_rate(threads: int) -> float:
    """Bytes a second that each of two processes sends while they sum a vector: a ring of two sends it once."""
    with mp.get_context("spawn").Manager() as manager:
        told = manager.dict()
        port = _free_port()
        mp.start_processes(_sum_vector, (port, threads, told), nprocs=2, start_method="spawn")
        return NUMBERS * FP32 / float(told["seconds"])


def _sum_vector(rank: int, port: int, threads: int, told: dict[str, float]) -> None:
    torch.set_num_threads(threads)
    store = dist.TCPStore("localhost", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    vector = torch.ones(NUMBERS)
    seconds = _best(lambda: dist.all_reduce(vector))
    if rank == 0:
        told["seconds"] = seconds
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


def library_memory() -> int:
    """Bytes that a process of a run has had at most when it has loaded its libraries and nothing else."""
    program = "import pairvpr_dist.training.loop, deepspeed\nprint(open('/proc/self/status').read())"
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024

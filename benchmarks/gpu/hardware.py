"""The machine and the versions that the figures belong to.

Contract: what is not there is said to be `none`; nothing here takes memory of a GPU.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from benchmarks.gpu.part import Cell, open_table

GIB = 2**30
NONE = "none"
GPU, GPUS = "GPU", "GPUs"
PACKAGES = ("torch", "triton", "deepspeed", "timm", "faiss-cpu", "faiss-gpu-cu12")


def main() -> None:
    """The program."""
    table = open_table()
    for what, value in (machine() | versions()).items():
        table.add({"what": what, "value": value})


def machine() -> dict[str, Cell]:
    """What is measured on."""
    host = {
        "CPU cores": os.cpu_count(),
        "host memory, GiB": round(psutil.virtual_memory().total / GIB, 1),
        "load at the start": round(os.getloadavg()[0], 2),
    }
    if not torch.cuda.is_available():
        return {GPU: NONE, GPUS: 0, **host}
    of_gpu = torch.cuda.get_device_properties(0)
    return {
        GPU: of_gpu.name,
        GPUS: torch.cuda.device_count(),
        "GPU memory, GiB": round(of_gpu.total_memory / GIB, 1),
        "driver": driver(),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        **host,
    }


def driver() -> str:
    """The version of the GPU's driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return next(iter(answer.stdout.split()), "unknown")


def versions() -> dict[str, Cell]:
    """Of Python, of packages and of the code here."""
    return {"Python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}, "commit": commit()}


def version_of(package: str) -> str:
    """Of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NONE


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    asked = [git, "describe", "--always", "--dirty", "--abbrev=40"]
    answer = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

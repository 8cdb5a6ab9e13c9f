"""How often a step of training waits for the device, in the loop and in DeepSpeed alone.

Started by an elastic agent: `python sync_program.py SHARDS FOLDER REPORT STAGE ZERO`; writes counts as JSON.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from small_runs import small_config
from torch.profiler import profile

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.files import write_json
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.loop import train
from pairvpr_dist.training.signals import StopFlag
from pairvpr_dist.training.starting import start_or_resume

# What reads a value, or a shape that depends on values, from the device.
WAITS = (
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::_unique2",
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize",
)  # fmt: skip
FIRST, LAST, STEPS = 3, 4, 5


def waits_in_the_loop(config: TrainingConfig, folder: Path) -> dict[str, int]:
    """Of steps FIRST to LAST of a run that logs, saves and ends elsewhere, from the profile that it makes itself."""
    folder.mkdir(parents=True)
    assert train(config, folder, StopFlag())
    (trace,) = (folder / "profile").glob("*.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = Counter(event["name"] for event in events if event.get("ph") == "X")
    return {name: names[name] for name in WAITS}


def waits_of_deepspeed(config: TrainingConfig) -> dict[str, int]:
    """Of as many steps of objective and DeepSpeed with nothing around them."""
    loader = EpochLoader(config.data, config.model.image_size, config.seed, 0, 1)
    engine = start_or_resume(config, None, loader.datasets)[0].engine
    batches = list(loader.batches(0, LAST))
    for step, batch in enumerate(batches[: FIRST - 1]):
        _step(engine, batch, step)
    with profile() as profiler:
        for step, batch in enumerate(batches[FIRST - 1 :], start=FIRST - 1):
            _step(engine, batch, step)
    names = Counter(event.name for event in profiler.events())
    return {name: names[name] for name in WAITS}


def _step(engine: Any, batch: Batch, step: int) -> None:
    loss, _ = engine(batch.to(engine.device), step)
    engine.backward(loss)
    engine.step()


def main() -> None:
    shards, folder, report = map(Path, sys.argv[1:4])
    stage, zero = sys.argv[4:]
    changes = [
        f"train.zero_stage={zero}", f"train.max_steps={STEPS}", f"train.profile_steps=[{FIRST},{LAST}]",
        "train.log_every=100", "train.checkpoint_every=100", "train.self_check=false",
    ]  # fmt: skip
    config = small_config(stage, shards, folder, changes)
    distributed.start()
    write_json(report, {"loop": waits_in_the_loop(config, folder / stage), "deepspeed": waits_of_deepspeed(config)})
    distributed.stop()


if __name__ == "__main__":
    main()

"""The benchmark of training steps runs, and its straightforward step computes what ours does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launchers.processes import set_environment

HERE = Path(__file__).parent
PROGRAM = HERE.parents[1] / "benchmarks" / "train_step.py"
WHOLE = 5e-3  # share of a tensor's whole movement: Adam's first update blows up rounding of gradients near 0
UNUSED = {
    "stage1": ("decoder.pos_embed", "decoder.class_token", "descriptor_head.", "pair_head."),
    "stage2": ("decoder.pos_embed", "pixel_head.", "encoder.mask_token"),
}


def run(program: Path, *arguments: object) -> str:
    set_environment(threads=1)
    done = subprocess.run([sys.executable, program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = tmp_path_factory.mktemp("steps") / "found.json"
    run(HERE / "one_step_program.py", found)
    return json.loads(found.read_text())


@pytest.mark.parametrize("size", ["tiny", "vits"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_step_of_ours_is_the_straightforward_one(steps: dict[str, Any], stage: str, size: str) -> None:
    found = steps[f"{stage} {size}"]
    assert found["losses"]["ours"] == pytest.approx(found["losses"]["plain"], rel=1e-5)

    still = UNUSED[stage]
    if size == "vits":  # half of whose encoder is frozen
        still += tuple(f"encoder.vit.{name}" for name in ("cls", "reg", "pos", "patch_embed"))
        still += ("encoder.mask_token", *(f"encoder.vit.blocks.{i}." for i in range(6)))
    for name, (moved, apart) in found["tensors"].items():
        assert (moved == 0) == name.startswith(still), name
        if not name.endswith(("attn.qkv.bias", "cross_attn.k.bias")):  # the gradient of keys' biases is rounding
            assert apart <= WHOLE * moved, name


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
    found, trace = tmp_path / "found.json", tmp_path / "trace.json"
    told = run(
        PROGRAM, "--sizes", "tiny", "--micro-batch", "3", "--rounds", "1", "--json", found, "--profile", trace,
        "model.decoder_depth=1",
    )  # fmt: skip
    rows = json.loads(found.read_text())["rows"]
    forms = ["straightforward", "ours", "checkpointing=selective", "checkpointing=full"]
    assert [(row["stage"], row["form"]) for row in rows] == [
        *(("stage1", form) for form in [*forms, "drop_hidden"]),
        *(("stage2", form) for form in forms),
    ]
    for row in rows:
        assert row["pairs_per_second"] > 0
        assert row["peak_bytes"] > 0
        assert row["mfu"] is None or 0 < row["mfu"] < 1
        assert (row["first_loss"] is None) == (row["form"] not in ("straightforward", "ours"))
    for plain, ours in ((rows[0], rows[1]), (rows[5], rows[6])):
        assert ours["first_loss"] == pytest.approx(plain["first_loss"], rel=1e-2)  # bf16 and fp16 on a GPU
    assert trace.stat().st_size > 0
    for part in ("encoder, trained", "decoder", "heads", "views and loss", "update", "products", "norms"):
        assert told.count(f"{part} ") == 4, part  # in both ways of both stages

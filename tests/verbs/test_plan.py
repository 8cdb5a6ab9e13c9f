"""`pairvpr plan`: real costs of the tiny model, what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pairvpr_dist.cli import run
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError

TINY = ["plan", "stage1", "tiny", "--gpus", "2", "--gpu", "h200"]


def test_a_plan_as_printed_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plans" / "plan.json"
    run([*TINY, "--json", str(file), "data.workers=1", "train.epochs=3"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"fits: micro-batch \d+, ZeRO-\d, no checkpointing, \d+ of 139 GiB   [\d,]+ pairs/s   ", lines[0])
    assert lines[1].startswith("stage1 tiny on 2 x h200 (1 node of 8), global batch ")
    assert lines[-1] == f"written: {file}"
    values = json.loads(file.read_text())
    for one in values["alternatives"]:
        config = load_config("stage1", "tiny", ["data.shards=x", "launch.processes=2", *one["overrides"]])
        assert config.train.zero_stage == one["zero_stage"]
        assert config.train.checkpointing == one["checkpointing"]
    assert values["best"]["steps"] == 3 * values["data"]["steps_per_epoch"]
    assert values["best"]["loader"]["workers"] == 1


def test_a_plan_of_another_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    run(["plan", "stage2", "tiny", "objective=supvpr", "--gpus", "2", "train.checkpointing=none", "train.zero_stage=2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fits: micro-batch 12, ZeRO-2, no checkpointing, ")
    assert lines[1].startswith("stage2 tiny objective=supvpr on 2 x h200 (1 node of 8), global batch 24; predicted")


def test_scaling_comes_after_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "scaling.png"
    run([*TINY, "--max-gpus", "16", "--plot", str(plot), "train.zero_stage=2", "train.checkpointing=none"])
    told = capsys.readouterr().out
    assert told.index("ZERO  CHECKPOINTING") < told.index("Strong scaling") < told.index("Weak scaling")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_gpu_of_one_s_own_and_a_run_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("small: {driver_names: [], tflops: 10, memory_gib: 0.01, memory_gb_s: 100, link_gb_s: 10, "
                    "network_gb_s: 1, gpus_per_node: 2, efficiency: 0.5}\n")  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        run(["plan", "stage1", "tiny", "--gpu", "small", "--hardware", str(mine), "train.zero_stage=2"])
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert re.match(r"does not fit: micro-batch .* needs \d+ of 0 GiB, of which 0 are usable; ", told)
    assert "on 2 x small (1 node of 2)" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "eval", "vitb"], "stage 'eval': what is planned is training; write stage1 or stage2"),
        (["plan", "stage1", "vitx"], "size 'vitx' is unknown"),
        (["plan", "stage1"], "SIZE"),
        (["plan", "stage2", "tiny", "objective=supvp"], "objective=supvp: no such recipe for stage2; did you mean"),
        (["plan", "stage1", "tiny", "objective=supvpr"], "stage1 has one objective alone"),
        (["plan", "stage1", "tiny", "--gpu", "h2000"], "did you mean 'h200'?"),
        (["plan", "stage1", "vitg", "--gpus", "7"], "nearest: 4 or 8"),
        (["plan", "stage1", "vitg", "--gpus", "0"], "--gpus 0"),
        (["plan", "stage1", "vitg", "--gpus", "8", "train.zero_stge=1"], "did you mean 'train.zero_stage'?"),
        (["plan", "stage1", "vitg", "--gpus", "8", "vits"], "unrecognized arguments: vits"),
        (["plan", "stage1", "vitg", "plan.cores=8"], "unknown key 'cores'"),
        (["plan", "stage1", "vitg", "launch.processes=8"], "give --gpus"),
        (["plan", "stage1", "vitg", "--places", "0"], "--places 0: must be positive"),
        (["plan", "stage1", "vitg", "--places", "7"], "fewer than a batch"),
        (["plan", "stage1", "vitg", "--places", "7", "data.shards=x"], "give one of the two"),
        (["plan", "stage1", "vitg", "data.shards=gone"], "gone"),
        (["plan", "stage1", "vitg", "--max-gpus", "0"], "--max-gpus 0: must be positive"),
        (["plan", "stage1", "vitg", "--plot", "x.png"], "give both"),
        (["plan", "stage1", "vitg", "--plot", "x.doc", "--max-gpus", "8"], "must end in .png"),
        (["plan", "stage1", "vitg", "--hardware", "gone.yaml"], "gone.yaml"),
        (["plan", "stage1", "vitg", "train.accumulate=3", "--gpus", "8"], "must divide the 64 places"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        run(arguments)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_help_has_examples_and_loads_no_torch() -> None:
    program = (
        "import sys\nfrom pairvpr_dist.cli import run\n"
        "try: run(['plan', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "pairvpr plan stage1 vitg --gpus 8 --gpu h200" in told
    assert told.endswith("False\n")

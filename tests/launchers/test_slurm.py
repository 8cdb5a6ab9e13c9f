"""The real command line: --dry-run without SLURM, and what is refused before it queues."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from slurm_programs import SlurmPrograms
from submitted_runs import begin, end, record

from launchers.admission import checkpoint_plan
from launchers.dry_run import open_keys
from launchers.job_script import StageJob
from launchers.jobs import STAGE_NAMES
from launchers.planning import Request, make_plan
from launchers.slurm import EXAMPLES, main
from pairvpr_dist import PairVPR
from pairvpr_dist.costs.memory import ModelState, ProcessMemory
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.scaling import candidate
from pairvpr_dist.training.run_folder import check_shares

PROGRAM = Path(__file__).parents[2] / "launchers" / "slurm.py"


@pytest.fixture(autouse=True)
def _without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in, and a machine without sbatch and sinfo."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path / "here")


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main([*arguments, "--dry-run"])
    assert list(Path().iterdir()) == []
    return capsys.readouterr().out


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run; it must exit with status 2 and one line, which is returned, and write nothing."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(lambda: main(list(arguments)))
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(Path().iterdir()) == []
    return captured.err


def configurations(text: str) -> dict[str, dict]:
    """The YAML of each stage in what a dry run prints."""
    found = re.findall(r"^# configuration of (\w+),.*?\n(.*?)^# plan of", text, re.MULTILINE | re.DOTALL)
    return {stage: yaml.safe_load(values) for stage, values in found}


def test_the_command_as_written_shows_the_largest_run() -> None:
    """Script, configuration, steps and checkpoints, although no shards are named."""
    command = [sys.executable, str(PROGRAM), "stage1", "vitg", "--dry-run"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "#SBATCH --gpus-per-node=" in ended.stdout
    assert "\n  encoder: dinov2_vitg14_reg\n" in ended.stdout
    assert "per epoch and in all not known, because data.shards is not given; 1000 epochs" in ended.stdout
    assert re.search(
        r"checkpoints  every 1,000 steps and at the end, \d+\.\d\d GB each; stay: the newest 2", ended.stdout
    )
    assert list(Path().iterdir()) == []


def test_a_profile_that_names_its_gpu_has_a_prediction(
    few_shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each training stage: its first line, what would be better, and the places that the hours follow from."""
    memory = ProcessMemory(ModelState(1e9, 0, 0, 0), 1e9, 0)  # which takes seconds to find
    monkeypatch.setattr(candidate, "process_memory", lambda *_, **__: memory)
    asked = ("pipeline", "tiny", "cluster.gpus_per_node=2", "stage2.data.images_per_place=3")
    told = dry_run(capsys, *asked, "cluster.gpu=h100", f"stage2.data.shards={few_shards}",
                   "stage2.data.places_per_batch=4", "stage2.data.min_images_per_place=3")  # fmt: skip
    stage1, stage2 = re.findall(
        r"^prediction   (?:fits: micro-batch .* of 79 GiB   \S+ (\w+/s)) .* binds: \w+$", told, re.MULTILINE
    )
    assert (stage1, stage2) == ("pairs/s", "places/s")
    assert "places an epoch: the paper's data, assumed: sfxl" in told
    assert f"6 places an epoch: data.shards={few_shards}" in told
    for keys in re.findall(r"^better       ((?:\S+=\S+ )+)", told, re.MULTILINE):
        assert make_plan(Request("stage1", "tiny", tuple(keys.split())), open_keys("stage1"))


def test_without_the_name_of_its_gpu_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(capsys, "pipeline", "tiny")
    assert told.count("\nprediction   memory, pace and time: add cluster.gpu=NAME") == 2
    assert "prediction" not in dry_run(capsys, "stage1", "tiny", "cluster.gpus_per_node=0")
    assert "did you mean 'h100'?" in refuse(capsys, "stage1", "tiny", "cluster.gpu=h1000", "--dry-run")


def test_help_is_quick_and_has_examples() -> None:
    program = (
        "import sys\nfrom launchers.slurm import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for word in ("examples:", "status [RUN ...]", "logs RUN", "cancel RUN", "resume RUN", "--array", "pipeline"):
        assert word in told
    assert told.endswith("False\n")


def test_no_example_of_the_help_has_a_batch_that_cannot_be_dealt_out() -> None:
    given = [line.split()[2:] for line in EXAMPLES.replace("\\\n", "").splitlines() if "slurm.py " in line]
    commands = [words for words in given if words[0] in STAGE_NAMES]
    assert len(commands) == 5
    for stage, size, *words in commands:
        keys = tuple(word for word in words if "=" in word and not word.startswith(("data=", "optim.lr=")))
        cluster = "h100x8" if "h100x8" in words else "default"
        for job in make_plan(Request(stage, size, keys, cluster), open_keys(stage)).points[0].stages:
            if job.config.stage != "eval":
                check_shares(job.config)


def test_numbers_are_real_where_shards_are_given(few_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(capsys, "stage1", "tiny", f"data.shards={few_shards}", "data.places_per_batch=2",
                   "cluster.gpus_per_node=2", "train.epochs=5", "train.checkpoint_every=4", "train.keep_every=6",
                   "train.keep_checkpoints=3")  # fmt: skip
    assert "processes    2 (1 node x 2, 8 CPUs each)" in told
    assert "batch        2 places, 1 a process" in told
    assert "steps        3 per epoch, 15 in all (5 epochs)" in told
    assert "checkpoints  every 4 steps and at the end" in told
    assert "stay: the newest 3, every 6 steps" in told


def test_a_pipeline_shows_three_jobs_that_wait_for_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(capsys, "pipeline", "tiny", "run=runs/x")
    assert re.findall(r"^# job script of (\w+), runs/x$", told, re.MULTILINE) == ["stage1", "stage2", "eval"]
    assert re.findall(r"--dependency=(\S+)", told) == ["afterok:STAGE1", "afterok:STAGE2"]
    configs = configurations(told)
    assert configs["stage1"]["data"]["shards"] == "???"
    assert configs["stage2"]["init"]["model"] == "runs/x/stage1/export"
    assert configs["eval"]["eval"] | {"data": "???", "model": "runs/x/stage2/export"} == configs["eval"]["eval"]
    assert configs["eval"]["launch"]["processes"] == configs["stage2"]["launch"]["processes"] > 1


def test_a_stage_that_has_ended_is_not_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end(begin(tmp_path / "run", "stage1", None))
    told = dry_run(capsys, "pipeline", "tiny", f"run={tmp_path}/run", "stage2.init.model=null")
    assert "# not submitted, because ended: stage1\n" in told
    assert re.findall(r"^# job script of (\w+),", told, re.MULTILINE) == ["stage2", "eval"]
    assert re.findall(r"--dependency=(\S+)", told) == ["afterok:STAGE2"]


def test_a_run_in_the_queue_is_not_shown_as_if_it_could_be_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = SlurmPrograms(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.folder}:/usr/bin:/bin")
    record(tmp_path / "run", "stage1", "7")
    slurm.run("7")
    assert "job 7 in the queue" in refuse(capsys, "stage1", "tiny", f"run={tmp_path}/run", "--dry-run")
    slurm.run()
    assert "not checked" not in dry_run(capsys, "stage1", "tiny", f"run={tmp_path}/run")


def test_a_sweep_shows_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    told = dry_run(capsys, "stage1", "tiny", "run=runs/s", "--array", "seed=1,2", "--array", "optim.lr=1e-3,2e-3")
    assert "#SBATCH --array=0-3%4" in told
    assert told.count("runs/s/seed=2,optim.lr=") == 2 + told.count("folders=(") * 2


def test_a_checkpoint_holds_weights_and_the_moments_of_what_is_trained() -> None:
    (job,) = make_plan(Request("stage1", "tiny", tuple(open_keys("stage1")))).points[0].stages
    model = PairVPR(job.config.model)
    numbers = sum(tensor.numel() for tensor in model.state_dict().values())
    plan = checkpoint_plan(job.config)
    assert plan.export == 4 * numbers
    assert plan.export < plan.size <= 3 * plan.export
    assert plan.bytes == plan.size * (job.config.train.keep_checkpoints + 1) + plan.export


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "STAGE"),
        (["stage1"], "SIZE"),
        (["stagee1", "tiny"], "did you mean 'stage1'?"),
        (["stage1", "tinny"], "did you mean 'tiny'?"),
        (["stage1", "tiny", "--dryrun"], "slurm.py --help"),
        (["stage1", "tiny", "trian.epochs=1", "--dry-run"], "train.epochs"),
        (["stage1", "tiny", "data.shards=gone", "--dry-run"], "gone"),
        (["stage1", "tiny", "init.encoder=gone.pth", "--dry-run"], "gone.pth"),
        (["stage1", "tiny", "--cluster", "nowhere", "--dry-run"], "cluster 'nowhere' is unknown"),
        (["stage1", "tiny", "cluster.hours=0", "--dry-run"], "cluster.hours=0"),
        (["stage1", "tiny", "run=50%", "--dry-run"], "run=50%"),
        (["stage1", "tiny", "train.keep_checkpoints=100000000", "--dry-run"], "train.keep_checkpoints"),
        (["stage1", "tiny", "--array", "seed", "--dry-run"], "--array seed: write key=v1,v2"),
        (["eval", "tiny", "eval.model=gone", "--dry-run"], "eval.model=gone"),
        (["pipeline", "tiny", "eval.data=gone", "--dry-run"], "gone"),
        (["stage1", "tiny", "data=papr", "--dry-run"], "did you mean 'paper'?"),
        (["stage1", "tiny", "data=paper", "--dry-run"], "PAIRVPR_SHARDS"),
        (["stage1", "tiny"], "no value for data.shards; add data.shards=..."),
        (["stage1", "tiny", "data.shards=gone"], "sbatch: not on this machine"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refuse(capsys, *arguments)


def test_a_batch_that_cannot_be_dealt_out(few_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["stage1", "tiny", f"data.shards={few_shards}", "data.places_per_batch=6"]
    assert "must be a multiple of the 4 processes" in refuse(capsys, *given, "--dry-run")
    assert "steps " in dry_run(capsys, *given, "cluster.gpus_per_node=3")
    assert "must be a multiple of the 16 processes" in refuse(
        capsys, "stage2", "vitl", "--cluster", "h100x8", "--dry-run"
    )
    alone = refuse(capsys, "stage2", "tiny", "data.places_per_batch=1", "cluster.gpus_per_node=1", "--dry-run")
    assert "at least 2 places in a batch" in alone


def test_shards_by_the_name_of_a_data_set(few_shards: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PAIRVPR_SHARDS", str(few_shards.parent))
    assert f"{few_shards.parent}/gsv-cities" in refuse(capsys, "stage2", "tiny", "data=paper", "--dry-run")
    plan = make_plan(Request("pipeline", "tiny", ("data=paper", "eval.data=x")))
    stage1, stage2, _ = (job.config for job in plan.points[0].stages)
    assert [Path(folder).name for folder in stage1.data.shards] == ["sfxl", "gsv-cities", "gldv2"]
    assert stage2.data.shards == [f"{few_shards.parent}/gsv-cities"]


def test_this_machine_is_not_asked_for_what_the_cluster_has(capsys: pytest.CaptureFixture[str]) -> None:
    """No compiler, no GPUs, and nothing that a look leaves in the environment of jobs."""
    before = dict(os.environ)
    assert "processes    64 (8 nodes x 8" in dry_run(
        capsys, "stage1", "vits", "cluster.nodes=8", "cluster.gpus_per_node=8"
    )
    assert dict(os.environ) == before


def test_a_job_knows_its_folder() -> None:
    (job,) = make_plan(Request("stage1", "tiny", ("data.shards=x", "run=runs/x"))).points[0].stages
    assert isinstance(job, StageJob)
    assert job.folder == Path("runs/x/stage1")


def test_open_keys_are_of_the_stages_that_know_them() -> None:
    assert open_keys("stage1") == ["data.shards=[]"]
    assert open_keys("eval") == ["eval.data=''"]
    assert open_keys("pipeline") == ["data.shards=[]", "eval.data=''"]
    with pytest.raises(UserError, match="unknown"):
        make_plan(Request("stage9", "tiny"), open_keys("stage9"))

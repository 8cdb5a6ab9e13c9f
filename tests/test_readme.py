"""README and docs/ say what is so: files exist, keys are known, commands are understood, the Python face runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launchers.jobs import PIPELINE, jobs
from pairvpr_dist import PairVPR
from pairvpr_dist.cli import parse
from pairvpr_dist.config import STAGES, has_key, load_config
from pairvpr_dist.settings import EvalRunConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
ROOMS = ("pairvpr_dist", "shards", "launchers", "configs", "benchmarks", "tests", "docs")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
CODE = re.compile(r"`([^`\n]+)`")
NAMED_FILE = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./*-]*")
SECTIONS = ("model", "init", "data", "objective", "optim", "recall", "train", "launch", "eval")
KEY = re.compile(rf"(?!model\.s|eval\.cluster)(?:stage[12]\.)?((?:{'|'.join(SECTIONS)})\.[a-z_0-9.]+)(?:=.*)?")


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in fenced if name == language]


def commands(text: str, program: str) -> Iterator[list[str]]:
    """The arguments of each call of `program` in the blocks of a page; lines of usage are left out."""
    for line in "\n".join(blocks(text)).replace("\\\n", " ").splitlines():
        if line.startswith(program + " "):
            arguments = shlex.split(line.removeprefix(program), comments=True)
            if not any(re.fullmatch(r"\[?[A-Z]+\]?", argument) for argument in arguments):
                yield arguments


def exists(page: str, name: str) -> bool:
    """Whether a path, from the page or from the root, names a file, or a folder with a file in it."""
    found = [path for base in (ROOT / page).parents if base.is_relative_to(ROOT) for path in base.glob(name)]
    return any(path.is_file() or any(inside.is_file() for inside in path.rglob("*")) for path in found)


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    links = LINK.findall(PAGES[page])
    named = [re.sub(r"\b[A-Z]+\b", "*", code) for code in CODE.findall(PAGES[page])]
    missing = [name for name in [*links, *filter(NAMED_FILE.fullmatch, named)] if not exists(page, name)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_named_keys_are_known(page: str) -> None:
    keys = [match[1] for code in CODE.findall(PAGES[page]) if (match := KEY.fullmatch(code))]
    unknown = [key for key in keys if not any(has_key(stage, key) for stage in STAGES)]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES)
def test_training_commands_are_understood(page: str) -> None:
    for stage, *rest in commands(PAGES[page], "python launchers/local.py"):
        if stage == "demo":
            assert all("=" in override for override in rest)
            continue
        for config in jobs(stage, rest[0], rest[1:]):
            if not isinstance(config, EvalRunConfig):
                assert config.data.places_per_batch % config.launch.processes == 0


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_pairvpr_are_understood(page: str) -> None:
    for name, *rest in commands(PAGES[page], "pairvpr"):
        parsed = parse([name, *rest])
        if name == "eval":
            load_config("eval", "vitb", [f"eval.model={parsed.model}", f"eval.data={parsed.data}", *parsed.override])


def test_there_are_commands_to_check() -> None:
    assert len(list(commands(PAGES["README.md"], "python launchers/local.py"))) >= 2
    assert len(list(commands(PAGES["docs/training.md"], "python launchers/local.py"))) >= 6
    assert len(list(commands(PAGES["docs/evaluation.md"], "pairvpr"))) >= 2
    assert len(list(commands(PAGES["docs/protocols.md"], "pairvpr"))) >= 5


def test_the_table_of_sizes_is_that_of_the_configurations() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]* \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", PAGES["docs/training.md"], re.MULTILINE
    )
    assert {size for size, *_ in rows} == {path.stem for path in ROOT.glob("configs/stage1/*.yaml")} - {"default"}
    for size, *cells in rows:
        for column, stage in enumerate(("stage1", "stage2")):
            config = load_config(stage, size, ["data.shards=any"])
            told = [int(cell.split("/")[column]) for cell in cells]
            assert told == [config.model.frozen_blocks, config.data.places_per_batch, config.train.epochs]


@pytest.mark.parametrize("page", PAGES)
def test_imports_in_python_blocks_work(page: str) -> None:
    for block in blocks(PAGES[page], "python"):
        imports = [line for line in block.splitlines() if re.match(r"(from|import) ", line)]
        exec("\n".join(imports), {})


def test_the_python_face_runs_as_shown(export: Path, street: Path, tmp_path: Path) -> None:
    (block,) = [block for block in blocks(PAGES["README.md"], "python") if "save_pretrained" in block]
    names = sorted(street.rglob("*.jpg"))[:2]
    scope: dict[str, Any] = {"path": export, "photographs": names, "folder": tmp_path / "saved"}
    exec(block, scope)
    out, other, model = scope["out"], scope["other"], scope["model"]
    patches = 25  # of 70 px
    assert out.descriptors.norm(dim=1).tolist() == pytest.approx([1.0])
    assert out.dense.shape == (1, patches, model.encoder.dim)
    assert scope["p"].shape == (1, patches, 588)
    assert scope["s"].shape == (1,)
    again = PairVPR.from_pretrained(tmp_path / "saved")
    with torch.inference_mode():
        torch.testing.assert_close(scope["both"], scope["s"] + model.score_pairs(other.dense, out.dense))
        torch.testing.assert_close(again.describe(scope["images"]).descriptors, out.descriptors)


def test_the_five_lines_find_a_place_as_shown(
    model: PairVPR, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in blocks(PAGES["README.md"], "python") if "PlaceIndex" in block]
    assert len(block.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    shutil.copytree(street / "database", "photographs")
    shutil.copy(min((street / "queries").iterdir()), "query.jpg")
    model.save_pretrained("calibrated", {"calibration": {"slope": 0.5, "intercept": -1.0}})
    exec(block, {"path": "calibrated"})
    first, *matches = capsys.readouterr().out.splitlines()
    assert first == "18 photographs"
    assert len(matches) == 5
    assert all(0 < float(line.split()[-1]) < 1 for line in matches)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_five_commands_run_as_shown(street: Path, tmp_path: Path) -> None:
    """README's commands one after another, word by word, on a small street, with fewer steps."""
    (block,) = [block for block in blocks(PAGES["README.md"]) if "shards/build.py" in block]
    fewer = "data.places_per_batch=6 stage2.data.images_per_place=3 stage2.data.min_images_per_place=3"
    fewer += " train.max_steps=2"
    programs = {"python": [sys.executable], "pairvpr": [sys.executable, "-m", "pairvpr_dist.cli"]}
    shutil.copytree(street / "database", tmp_path / "photographs")
    shutil.copytree(street, tmp_path / "data/my_city")
    for name, photograph in zip(("query.jpg", "candidate.jpg"), sorted(street.rglob("*.jpg")), strict=False):
        shutil.copy(photograph, tmp_path / name)
    for room in ("shards", "launchers"):
        (tmp_path / room).symlink_to(ROOT / room)
    activated = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        arguments += fewer.split() if "pipeline" in arguments else []
        subprocess.run([*programs[program], *arguments], cwd=tmp_path, env=activated, check=True)
    for written in [*(f"{stage}/export" for stage in PIPELINE[:2]), "eval", "report.html", "eval-top50/results.json"]:
        assert (tmp_path / "runs/mine" / written).exists()

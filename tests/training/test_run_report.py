"""The report of a run: what came of its starts, its checkpoints, and all of it as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.errors import UserError
from pairvpr_dist.training.history import append_event
from pairvpr_dist.training.run_report import checkpoints_of, run_report, starts_of
from pairvpr_dist.training.run_text import as_text

CONFIG = (
    "stage: {}\nsize: tiny\ntrain: {{epochs: 10, keep_checkpoints: 2, keep_every: 30}}\ndata: {{places_per_batch: 6}}\n"
)
EVENTS = ("started", "checkpoint", "signalled", "stopped", "skipped", "rewound", "hung", "failed", "ended")


def event(time: float, name: str, step: int, **facts: object) -> dict[str, object]:
    return {"time": time, "event": name, "step": step, **facts}


def test_what_came_of_each_start() -> None:
    events = [
        event(100, "started", 0, processes=8, hosts=["a", "b"], job="7"),
        event(150, "checkpoint", 20),
        event(160, "signalled", 25, signal="SIGUSR2"),
        event(161, "checkpoint", 25),
        event(162, "stopped", 25),
        event(300, "started", 25, processes=8, hosts=["a", "c"], job="7"),
        event(390, "checkpoint", 40),
        event(500, "started", 40, processes=4, hosts=["a"], job="8"),
        event(510, "skipped", 44),
        event(520, "rewound", 40, from_step=50),
        event(530, "failed", 0, reason="tasks ended with signal 9"),
        event(600, "started", 40, processes=4, hosts=["a"], job="8"),
    ]
    told = [
        (start["from_step"], start["to_step"], start["seconds"], start["end"], start["checkpoints"])
        for start in starts_of(events, alive=True, step=63, word=660)
    ]
    assert told == [
        (0, 25, 62, "stopped by SIGUSR2", 2),
        (25, 40, 90, "killed, or ended without a word in its history", 1),
        (40, 44, 30, "failed: tasks ended with signal 9", 0),
        (40, 63, 60, "running", 0),
    ]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 99)), max_size=30), st.booleans())
def test_any_history_has_a_report(history: list[tuple[str, int]], alive: bool) -> None:
    events = [event(float(place), name, step) for place, (name, step) in enumerate(history)]
    starts = starts_of(events, alive, 99, None)
    assert len(starts) == sum(name == "started" for name, _ in history)
    assert all(start["seconds"] >= 0 and start["to_step"] >= start["from_step"] for start in starts)
    assert sum(start["end"] == "running" for start in starts) <= alive


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages as their files lie: four checkpoints in the first, of which one is damaged; skips and spikes."""
    for stage in ("stage1", "stage2"):
        (tmp_path / stage / "checkpoints").mkdir(parents=True)
        (tmp_path / stage / "config.yaml").write_text(CONFIG.format(stage))
    folder = tmp_path / "stage1"
    append_event(folder, "started", 0, processes=2, hosts=["a"], job=None, total_steps=50, steps_per_epoch=5)
    for step in (10, 30, 40, 50):
        path = folder / "checkpoints" / f"step-{step:08d}"
        path.mkdir()
        (path / "state.json").write_text("{}")
        (path / "manifest.json").write_text(json.dumps({"state.json": {"size": 2 + (step == 40), "sha256": "0"}}))
    (folder / "checkpoints" / "latest").write_text("step-00000050\n")
    (folder / "checkpoints" / "best").write_text("step-00000010\n")
    append_event(
        folder, "skipped", 13, places=["set/a", "set/b"], module="model.encoder.blocks.3", replay="step-00000012"
    )
    (folder / "replays" / "step-00000012").mkdir(parents=True)
    spike = {
        "step": 33,
        "loss": 9.5,
        "usual": 0.5,
        "rank": 1,
        "rank_loss": 18.5,
        "places": [f"set/{i}" for i in range(9)],
    }
    (folder / "spikes.jsonl").write_text(json.dumps(spike) + "\n{torn")
    append_event(folder, "stopped", 50)
    return tmp_path


def test_which_checkpoints_are_kept_and_sound(run: Path) -> None:
    kept = {"keep_checkpoints": 2, "keep_every": 30}
    told = {c["step"]: (c["kept_as"], c["fault"]) for c in checkpoints_of(run / "stage1", kept, verify=False)}
    assert told == {
        50: (["last"], None),
        40: (["last"], "state.json has another size than the manifest says"),
        30: (["every"], None),
        10: (["best"], None),
    }
    faults = [c["fault"] for c in checkpoints_of(run / "stage1", kept, verify=True)]
    assert None not in faults  # these digests are none
    (run / "stage1" / "checkpoints" / "step-00000030" / "manifest.json").write_text("[")
    assert [c["fault"] for c in checkpoints_of(run / "stage1", kept, verify=False) if c["step"] == 30] != [None]


def test_the_text_answers_what_is_asked_of_a_run(run: Path) -> None:
    text = as_text(run_report(run))
    for told in (
        "stage1 tiny   stopped",
        "step 50 of 50",
        "last checkpoint of step 50",
        "2 processes on a",
        "kept: every",
        "has another size",
        f"pairvpr inspect {run}/stage1/replays/step-00000012",
        "model.encoder.blocks.3   places set/a, set/b",
        "loss 9.5, usually 0.5   rank 1   places set/0, set/1, set/2, set/3, set/4 and 4 more",
        "stage2 tiny   not begun",
        "on disk:",
    ):
        assert told in text, text
    assert max(map(len, text.splitlines())) < 200


def test_programs_get_the_same_as_json(run: Path) -> None:
    report = json.loads(json.dumps(run_report(run), allow_nan=False))
    assert [stage["stage"] for stage in report["stages"]] == ["stage1", "stage2"]
    assert report["stages"][0]["bytes"]["all"] == sum(
        path.stat().st_size for path in (run / "stage1").rglob("*") if path.is_file()
    )
    assert report["eval"] is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        run_report(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        run_report(tmp_path / "none")


def test_a_long_list_shows_its_end(run: Path) -> None:
    for step in range(60, 100):
        append_event(run / "stage1", "skipped", step, places=[], module=None, replay=None)
    text = as_text(run_report(run))
    assert "... and 31 before" in text
    assert "step 99 " in text
    assert "step 70 " not in text

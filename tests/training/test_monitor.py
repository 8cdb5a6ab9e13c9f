"""The log of a run: what its lines say, and that every step comes once whatever kills the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from small_runs import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pairvpr_dist.files import read_json_lines
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.history import STARTED, add_event
from pairvpr_dist.training.monitor import Monitor, mean_over_ranks

NAN = float("nan")


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    return small_config("stage1", Path("unused"), tmp_path)


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def board_of(folder: Path) -> EventAccumulator:
    """TensorBoard's own reader."""
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def train(folder: Path, config: TrainingConfig, first: int, last: int, loss: float) -> Monitor:
    """Steps after `first` up to `last`, all logged, each with a validation."""
    monitor = Monitor(folder, config, Progress(first, validated=first), 100)
    for step in range(first + 1, last + 1):
        monitor.record(scalars(loss=loss), waited=0.0)
        monitor.write_window(step, {"lr": 0.1})
        monitor.write(step, {"validation/loss": loss})
    return monitor


def test_means_leave_out_what_no_place_contributed_to() -> None:
    means = mean_over_ranks([scalars(loss=1.0, sea=NAN, city=NAN), scalars(loss=2.0, sea=3.0, city=NAN)])
    assert means["loss"] == 1.5
    assert means["sea"] == 3.0
    assert means["city"] != means["city"]


def test_a_line_is_the_mean_since_the_last(tmp_path: Path, config: TrainingConfig) -> None:
    monitor = Monitor(tmp_path, config, Progress(), total_steps=4)
    for step, loss in enumerate([1.0, 3.0, 5.0, 6.0], start=1):
        monitor.record(scalars(loss=loss), waited=0.0)
        if step != 2:
            monitor.write_window(step, {"lr": 0.1 * step})
    monitor.close()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (3, 4.0), (4, 6.0)]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.3, 0.4])
    assert all(line["places_per_second"] > 0 for line in lines)
    assert all(line["host_memory_gib"] > 0 for line in lines)
    assert all(0 <= line["data_wait_share"] <= line["data_wait_share_worst"] for line in lines)


def test_a_loss_that_is_not_finite_is_left_out(tmp_path: Path, config: TrainingConfig) -> None:
    monitor = Monitor(tmp_path, config, Progress(), 4)
    monitor.record(scalars(loss=NAN), waited=0.0)
    monitor.write_window(1, {"skipped_steps": 1, "grad_norm": float("inf")})
    monitor.close()
    (line,) = read_json_lines(tmp_path / "metrics.jsonl")
    assert line["skipped_steps"] == 1
    assert not {"loss", "grad_norm"} & line.keys()


def test_without_a_known_gpu_there_is_no_utilisation(tmp_path: Path, config: TrainingConfig) -> None:
    train(tmp_path, config, 0, 1, 1.0).close()
    (line, _) = read_json_lines(tmp_path / "metrics.jsonl")
    assert ("mfu" in line) == torch.cuda.is_available()


def test_a_resumed_run_has_every_step_once(tmp_path: Path, config: TrainingConfig) -> None:
    """Killed at step 35 and at 42, with checkpoints at 20 and 40; steps after them are done again."""
    add_event(tmp_path, STARTED, 0)
    train(tmp_path, config, 0, 35, 1.0)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 36, "lo')
    add_event(tmp_path, STARTED, 20)
    train(tmp_path, config, 20, 42, 2.0)
    add_event(tmp_path, STARTED, 40, processes=2)
    train(tmp_path, config, 40, 45, 3.0).close()

    wanted = {step: 1.0 if step <= 20 else 2.0 if step <= 40 else 3.0 for step in range(1, 46)}
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    board = board_of(tmp_path)
    for name in ("loss", "validation/loss"):
        assert [(line["step"], line[name]) for line in lines if name in line] == list(wanted.items())
        assert [(event.step, event.value) for event in board.Scalars(name)] == list(wanted.items())
    assert [line["restarts"] for line in lines if "restarts" in line] == [int(loss) - 1 for loss in wanted.values()]
    markers = board.Tensors("restarts/text_summary")
    assert [marker.step for marker in markers] == [20, 40]
    assert '"processes": 2' in markers[1].tensor_proto.string_val[0].decode()


def test_what_was_written_survives_a_kill(tmp_path: Path, config: TrainingConfig) -> None:
    """A point that TensorBoard holds back would be lost: its step was saved and is not done again."""
    child = os.fork()
    if child == 0:
        train(tmp_path, config, 0, 1, 1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 1]
    assert [event.step for event in board_of(tmp_path).Scalars("loss")] == [1]


def test_a_log_of_a_job_is_plain_lines(
    tmp_path: Path, config: TrainingConfig, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No bar where there is no terminal: a line at first, none for a while, and one at the end."""
    with caplog.at_level("INFO"):
        monitor = train(tmp_path, config, 90, 100, 0.5)
        monitor.close()
    lines = [message for message in caplog.messages if "ETA" in message]
    assert len(lines) == 2
    assert lines[0].startswith("stage1 tiny: step 91/100, loss 0.5, ")
    assert lines[1].startswith("stage1 tiny: step 100/100, ")
    assert lines[1].endswith("ETA 0:00:00")
    assert "\r" not in capfd.readouterr().err


def test_pictures_are_kept(tmp_path: Path, config: TrainingConfig) -> None:
    monitor = Monitor(tmp_path, config, Progress(), 1)
    monitor.show(7, torch.zeros(3, 8, 8, dtype=torch.uint8))
    monitor.close()
    assert [p.name for p in (tmp_path / "reconstructions").iterdir()] == ["step-00000007.png"]
    assert [image.step for image in board_of(tmp_path).Images("reconstruction")] == [7]


def test_a_run_that_wrote_nothing_has_no_lines(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "metrics.jsonl") == []


def test_a_validation_that_will_be_done_again_is_dropped(tmp_path: Path, config: TrainingConfig) -> None:
    train(tmp_path, config, 0, 3, loss=1.0).close()
    Monitor(tmp_path, config, Progress(2, validated=1), 100).close()
    lines = [(line["step"], "loss" in line) for line in read_json_lines(tmp_path / "metrics.jsonl")]
    assert lines == [(1, True), (1, False), (2, True)]
    board = board_of(tmp_path)
    assert [event.step for event in board.Scalars("loss")] == [1, 2]
    assert [event.step for event in board.Scalars("validation/loss")] == [1]

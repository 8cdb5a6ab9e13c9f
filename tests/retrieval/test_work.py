"""Blocks of work stay done, and a work folder belongs to one evaluation."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.work import Blocks, blocks_done, owned_work, work_folder


@given(st.integers(0, 50), st.integers(1, 20))
def test_blocks_hold_every_item_once(items: int, size: int) -> None:
    blocks = Blocks(Path("/tmp"), items, size)
    rows = [row for number in range(len(blocks)) for row in blocks.rows(number)]
    assert rows == list(range(items))


def test_what_is_done_is_not_dealt_out_again_and_comes_back_in_order(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path / "scores", 5, 2)
    assert blocks.share() == [0, 1, 2]
    blocks.keep(2, 0.5, scores=np.array([4]))
    blocks.keep(0, 0.25, scores=np.array([0, 1]))
    assert blocks.share() == [1]
    assert blocks_done(tmp_path) == 2
    blocks.keep(1, 0.0, scores=np.array([2, 3]))
    assert np.concatenate(list(blocks.each("scores"))).tolist() == [0, 1, 2, 3, 4]
    assert blocks.seconds == 0.75


def stopped(folder: Path, identity: dict[str, object], blocks: int) -> None:
    """An evaluation that does some blocks and then ends with an exception."""
    with suppress(InterruptedError), owned_work(folder, identity):
        for number in range(blocks):
            Blocks(folder / "scores", blocks, 1).keep(number, 0.0)
        raise InterruptedError


def test_a_work_folder_stays_when_something_in_it_is_done_and_goes_at_the_end(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "eval")
    identity = {"weights": "a", "eval.top_k": 5}
    stopped(folder, identity, blocks=0)
    assert not folder.exists()
    stopped(folder, identity, blocks=1)
    (folder / "scores" / ".000001.npz.5-aa.part").touch()  # as a kill leaves it
    torn, others = (tmp_path / name for name in (".eval.5.part", ".eval.b.5.part"))
    torn.mkdir()
    others.mkdir()
    with owned_work(folder, identity):
        assert [path.name for path in (folder / "scores").iterdir()] == ["000000.npz"]
        assert not torn.exists()
    assert not folder.exists()
    assert others.exists()


def test_the_beginnings_of_another_evaluation_are_refused_and_stay(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "eval")
    stopped(folder, {"weights": "a" * 64, "eval.top_k": 5}, blocks=1)
    with pytest.raises(UserError, match=r"eval.work: .* \(eval.top_k was 5, is 10\); give those") as told:
        stopped(folder, {"weights": "a" * 64, "eval.top_k": 10}, blocks=0)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"weights was a{12}, is /some/where/long/data"):
        stopped(folder, {"weights": "/some/where/long/data", "eval.top_k": 5}, blocks=0)
    assert blocks_done(folder) == 1


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with owned_work(tmp_path / "eval.work", {}), pytest.raises(UserError, match="another process works here"):
        stopped(tmp_path / "eval.work", {}, blocks=0)

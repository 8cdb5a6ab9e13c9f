import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.data.shard_format import KEY_PATTERN, MEMBER_PATTERN
from shards.tar import image_fields, sample_key, scan


@settings(max_examples=200, deadline=None)
@given(st.from_regex(KEY_PATTERN, fullmatch=True), st.integers(0, 99), st.integers(0, 999), st.integers(1, 100))
def test_every_name_written_is_one_that_is_read(key: str, part: int, number: int, columns: int) -> None:
    for panorama in (False, True):
        for name in image_fields(number, columns, panorama):
            match = MEMBER_PATTERN.fullmatch(f"{sample_key(key, part)}.{name}")
            assert match is not None
            assert match.groups() == (sample_key(key, part), name)


@pytest.mark.parametrize("name", ["../a.000.jpg", "a/b.000.jpg", "a.exe", "a.000.jpg.sh", ".000.jpg", "/a.000.jpg"])
def test_strange_members_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(tarfile.TarError, match="does not belong in a shard"):
        list(scan(tmp_path / "odd.tar"))


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        link = tarfile.TarInfo("a.000.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(tarfile.TarError, match="does not belong in a shard"):
        list(scan(tmp_path / "odd.tar"))

"""The code that a job runs: a copy of the sources as they are at submission, `<run>/code/<digest>/`.

Contract: what is edited afterwards changes no job that waits or is requeued. Equal sources share a copy, and a copy
with its name is whole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder

SOURCES = Path(__file__).resolve().parent.parent
PACKAGES = ("pairvpr_dist", "launchers", "shards", "configs")
ENDINGS = {".py", ".yaml", ".html", ".typed"}
COMMIT = "COMMIT"  # beside the packages: the commit that they were taken from
DIGEST = 12  # characters of a name


def source_files(root: Path) -> list[Path]:
    """The source files of a checkout, relative to it, in order."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*"))
    return sorted(path.relative_to(root) for path in found if path.suffix in ENDINGS and path.is_file())


def take_snapshot(run: Path, root: Path = SOURCES) -> Path:
    """Copy the sources below `root` into the run folder, unless the same are there; gives the copy's absolute path."""
    from pairvpr_dist.training.facts import commit

    contents = {path: (root / path).read_bytes() for path in source_files(root)}
    contents[Path(COMMIT)] = f"{commit()}\n".encode()
    digest = hashlib.sha256()
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode())
        digest.update(content)
    folder = run.absolute() / "code" / digest.hexdigest()[:DIGEST]
    if not folder.exists():
        try:
            with new_folder(folder) as aside:
                for path, content in contents.items():
                    (aside / path).parent.mkdir(parents=True, exist_ok=True)
                    (aside / path).write_bytes(content)
        except UserError:  # of two submissions at once, the other was first
            if not folder.exists():
                raise
    return folder

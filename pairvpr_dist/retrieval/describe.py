"""Images to descriptors and to the dense features that pairs are scored from.

Contract: images are resized whole to a square and described in file order, in blocks whose batches are the same whoever
makes them. Dense features (MiB an image) are never all in memory: projected to the decoder's width, once an image, they
lie in fp16 in a file a block as far as the budget goes, and are computed again from the image where it does not. Of
SUP-VPR the dense features of an image are its one embedding, which is stored as it is, rounded to fp16 like the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.decoding import load_square
from pairvpr_dist.data.loader import leave_signals
from pairvpr_dist.distributed import rank
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import replaced_when_done
from pairvpr_dist.models.pair_scorer import PairScorer
from pairvpr_dist.models.pair_vpr import Description, PairVPR
from pairvpr_dist.retrieval.work import Blocks, wait_for_all
from pairvpr_dist.settings import PATCH, EvalConfig

IMAGES = 256  # of a block
DESCRIPTORS = "descriptors.npy"


class Describer:
    """A model made ready for inference: its device, its image size and its precision."""

    def __init__(self, model: PairVPR, config: EvalConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.image_size = config.image_size or model.config.image_size
        self.batch_size = config.batch_size
        self.workers = config.workers
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")

    @cached_property
    def scorer(self) -> PairScorer:
        """What pairs are scored with. `UserError` for a SUP-VPR model, which scores none."""
        return PairScorer(self.model, torch.bfloat16 if self.bf16 else torch.float32)

    @property
    def tells_cities(self) -> bool:
        """Whether the model is a SUP-VPR one: its second stage is `city_stage`, not the re-ranking of pairs."""
        return self.model.config.city_blocks > 0

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Patches and width of the projected features of one image; of SUP-VPR one embedding."""
        if self.tells_cities:
            return 1, self.model.encoder.dim
        return (self.image_size // PATCH) ** 2, self.model.config.decoder_dim

    @property
    def feature_bytes(self) -> int:
        """What the stored features of one image take."""
        return 2 * self.feature_shape[0] * self.feature_shape[1]

    def autocast(self) -> torch.autocast:
        """The precision of every forward pass of the encoder."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def describe(
        self, paths: Sequence[Path], workers: int = 0, batches: Sequence[Sequence[int]] | None = None
    ) -> Iterator[Description]:
        """Describe images batch by batch; `workers` processes decode. `UserError` names a bad image.

        `batches`: rows of `paths`, batch by batch; none: all of them in their order.
        """
        if batches is None:
            batches = batched(range(len(paths)), self.batch_size)
        pin = self.device.type == "cuda"
        loader = DataLoader(
            _Squares(paths, self.image_size),
            batch_sampler=[list(batch) for batch in batches],
            num_workers=min(workers, len(os.sched_getaffinity(0))),  # torch warns of more than there are cores
            collate_fn=_collate,
            worker_init_fn=leave_signals,
            pin_memory=pin,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            images = normalise(batch.to(self.device, non_blocking=True))
            with torch.inference_mode(), self.autocast():
                description = self.model.describe(images)
            yield description

    def project(self, dense: Tensor) -> Tensor:
        """Dense features (B, N, C) of the encoder as they are stored: projected (B, N, D), fp16, on the CPU."""
        if self.tells_cities:
            return dense.half().cpu()
        with self.autocast():
            return self.scorer.project(dense).half().cpu()


class DenseFeatures:
    """Projected features of a list of images: the first `kept` rows in files of blocks, the others computed again."""

    def __init__(self, describer: Describer, paths: Sequence[Path], folder: Path, kept: int) -> None:
        self.describer = describer
        self.paths = paths
        self.folder = folder
        self.kept = kept
        self._held: dict[int, int] = {}  # row -> place in the file of what was computed again

    @property
    def bytes(self) -> int:
        """What is kept on disk."""
        return self.kept * self.describer.feature_bytes

    def hold(self, rows: np.ndarray) -> None:
        """Compute again, each once, those of `rows` that are not kept; `read` finds them until the next call.

        They lie on disk meanwhile, beyond the budget: callers bound their number.
        """
        missing = np.unique(rows[rows >= self.kept])
        self._held = {int(row): place for place, row in enumerate(missing)}
        if not len(missing):
            return
        shape = (len(missing), *self.describer.feature_shape)
        with self._held_file.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for out in self.describer.describe([self.paths[row] for row in missing], self.describer.workers):
                handle.write(self.describer.project(out.dense).numpy().tobytes())

    def read(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        """Features (n, N, D) fp16 on the CPU of the images `rows` (n,), into `out` where it is given."""
        if out is None:
            out = torch.empty(len(rows), *self.describer.feature_shape, dtype=torch.float16)
        held = np.array([self._held.get(int(row), -1) for row in rows])
        kept = rows < self.kept
        for block in np.unique(rows[kept] // IMAGES):
            _copy(feature_file(self.folder, block), rows % IMAGES, kept & (rows // IMAGES == block), out)
        if (held >= 0).any():
            _copy(self._held_file, held, held >= 0, out)
        if len(others := np.flatnonzero(~kept & (held < 0))):
            again = self.describer.describe([self.paths[rows[i]] for i in others])
            out[torch.from_numpy(others)] = torch.cat([self.describer.project(found.dense) for found in again])
        return out

    @property
    def _held_file(self) -> Path:
        return self.folder / f"held-{rank()}.npy"


@dataclass
class Described:
    """What became of a list of images."""

    descriptors: np.ndarray  # (M, D) fp32, mapped from a file
    features: DenseFeatures
    seconds: float  # that it took, as if one process had done it


def describe_images(
    describer: Describer,
    paths: Sequence[Path],
    folder: Path,
    budget: int,
    title: str,
    tick: Callable[[], None] = lambda: None,
) -> Described:
    """Describe `paths`; keep what comes of it in `folder`, dense features as far as `budget` bytes go.

    Every rank calls, and makes its share of the blocks that are not there yet; `tick` is called after each. Raises
    `UserError` for an image that cannot be read and for a model whose descriptors are not finite.
    """
    blocks = Blocks(folder, len(paths), IMAGES)
    features = DenseFeatures(describer, paths, folder, min(len(paths), budget // describer.feature_bytes))
    share = blocks.share()
    batches = {number: batched(blocks.rows(number), describer.batch_size) for number in share}
    described = describer.describe(paths, describer.workers, [batch for number in share for batch in batches[number]])
    images = sum(len(blocks.rows(number)) for number in share)
    with tqdm(total=images, desc=title, unit="image", disable=None if rank() == 0 else True) as progress:
        for number in share:
            started = time.perf_counter()
            kept = max(0, min(features.kept - blocks.rows(number).start, IMAGES))
            descriptors, dense = _describe_block(describer, islice(described, len(batches[number])), kept, progress)
            if kept:
                with replaced_when_done(feature_file(folder, number)) as aside, aside.open("wb") as handle:
                    np.save(handle, dense)
            blocks.keep(number, time.perf_counter() - started, descriptors=descriptors)
            tick()
    wait_for_all()
    whole = folder / DESCRIPTORS
    if rank() == 0 and not whole.exists():
        _join(blocks, whole)
    wait_for_all()
    return Described(np.load(whole, mmap_mode="r"), features, blocks.seconds)


def require_finite(values: np.ndarray, what: str) -> None:
    """Raise `UserError` when a model gave NaN or infinity: every ranking made of them would be nonsense."""
    if not np.isfinite(values).all():
        raise UserError(
            f"eval.model: gives {what} that are not finite; its weights are damaged or its training diverged"
        )


def batched(rows: range, size: int) -> list[range]:
    """`rows` cut into batches; the last may be smaller."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def feature_file(folder: Path, block: int) -> Path:
    """Where the features of a block of images are kept."""
    return folder / f"{block:06d}.features.npy"


def _describe_block(
    describer: Describer, outputs: Iterator[Description], kept: int, progress: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of a block, and the features (kept, N, D) of its first images."""
    descriptors: list[np.ndarray] = []
    dense = np.empty((kept, *describer.feature_shape), dtype=np.float16)
    row = 0
    for out in outputs:
        descriptors.append(out.descriptors.cpu().numpy())
        require_finite(descriptors[-1], "descriptors")
        if row < kept:
            wanted = dense[row : row + len(out.dense)]
            wanted[:] = describer.project(out.dense).numpy()[: len(wanted)]
        row += len(out.dense)
        progress.update(len(out.dense))
    return np.concatenate(descriptors), dense


def _join(blocks: Blocks, whole: Path) -> None:
    """One file of all descriptors, written block by block: those of millions are never twice in memory."""
    width = next(blocks.each("descriptors")).shape[1]
    with replaced_when_done(whole) as aside, aside.open("wb") as handle:
        shape = (blocks.items, width)
        np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for descriptors in blocks.each("descriptors"):
            handle.write(descriptors.tobytes())


def _copy(file: Path, places: np.ndarray, wanted: np.ndarray, out: Tensor) -> None:
    """Rows `places[wanted]` of a feature file to `out[wanted]`.

    Mapped for this alone: pages of a mapping that stays would pile up in the memory of the process.
    """
    mapped = np.load(file, mmap_mode="r")
    target = out.numpy()
    for to in np.flatnonzero(wanted):
        target[to] = mapped[places[to]]


class _Squares(Dataset):
    """Images as uint8 squares. A user's mistake is returned, not raised: a worker would wrap it in a traceback."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor | UserError:
        try:
            return load_square(self.paths[row], self.size)
        except UserError as error:
            return error


def _collate(items: list[Tensor | UserError]) -> Tensor | UserError:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else torch.stack(items)  # type: ignore[arg-type]

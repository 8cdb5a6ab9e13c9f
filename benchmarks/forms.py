"""What benchmarks/loader.py reads, and the straightforward loader against which ours is measured.

Contract: the images are photographs and panoramas of the synthetic city in the sizes of the published sets, JPEG of
quality 90 with chroma subsampling 4:2:0, one folder a place, the pose in the file name. Both loaders read these bytes.
"""

from __future__ import annotations

import contextlib
import io
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms
from tqdm import tqdm

from pairvpr_dist.data import panorama
from pairvpr_dist.data.at_names import AtName, parse_at_name
from pairvpr_dist.data.augmentation import IMAGENET_MEAN, IMAGENET_STD
from pairvpr_dist.settings import AugmentConfig
from shards.build import main as build
from shards.city.places import PANORAMA, City, CityView
from shards.synthetic_city import file_name


@dataclass(frozen=True)
class Form:
    """One data set; the images of a place have `sizes` in turn."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    views: int  # images of a place
    needed: float | None  # times the rate of the straightforward loader

    @property
    def is_panoramic(self) -> bool:
        """Whether its images are panoramas."""
        return self.sizes == (PANORAMA,)


FORMS = (
    Form("SF-XL", (PANORAMA,), 5, 6.0),
    Form("GSV-Cities", ((400, 300),), 4, 3.0),
    Form("Google Landmarks", ((800, 600), (600, 800), (800, 533), (640, 480)), 4, 4.0),
    Form("city, 512 x 512", ((512, 512),), 4, None),
)


def write_form(form: Form, places: int, folder: Path, workers: int) -> Path:
    """Render a form below `folder` and build shards from it; returns the shard folder."""
    city = _city(places, form.views, form.is_panoramic)
    jobs = []
    for place in city.places:
        for number, view in enumerate(place.views):
            width, height = form.sizes[number % len(form.sizes)]
            path = folder / "tree" / place.key / file_name(view, f"{place.key}_{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            jobs.append((places, form, replace(view, width=width, height=height), path))
    with ProcessPoolExecutor(workers) as pool:
        for _ in tqdm(pool.map(_render, jobs), f"rendering {form.name}", len(jobs), unit="image", leave=False):
            pass
    source, out = str(folder / "tree"), folder / "shards"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        build(["folder", "--source", source, "--group", "folder", "--out", str(out), "--dataset", "benchmark"])
    return out


def _render(job: tuple[int, Form, CityView, Path]) -> None:
    places, form, view, path = job
    pixels = _city(places, form.views, form.is_panoramic).render(view)
    path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))


@cache
def _city(places: int, views: int, panoramas: bool) -> City:
    return City(0, places, views, panoramas=panoramas)


class StraightforwardPairs(Dataset[torch.Tensor]):
    """Pairs as the published loader makes them: whole files decoded by Pillow, torchvision's transforms on them."""

    def __init__(self, tree: Path, is_panoramic: bool, augment: AugmentConfig, image_size: int) -> None:
        self.is_panoramic = is_panoramic
        self.places = [sorted(place.iterdir()) for place in sorted(tree.iterdir())]
        self.poses = [[_pose(path) for path in paths] for paths in self.places]
        bicubic = transforms.InterpolationMode.BICUBIC
        area, aspect = tuple(augment.crop_area), tuple(augment.crop_aspect)
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(image_size, area, aspect, bicubic),
                transforms.ColorJitter(*[augment.colour_jitter] * 3),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> torch.Tensor:
        """A pair of one place, float (2, 3, H, W)."""
        chosen = random.sample(range(len(self.places[place])), 2)
        images = [Image.open(self.places[place][i]).convert("RGB") for i in chosen]
        if self.is_panoramic:
            images = self._aim(images, [self.poses[place][i] for i in chosen])
        return torch.stack([self.transform(image) for image in images])

    def _aim(self, images: list[Image.Image], poses: list[AtName]) -> list[Image.Image]:
        """The square crop of each panorama towards one random focal point."""
        positions = np.array([[pose.east, pose.north] for pose in poses])
        focal = panorama.focal_point(positions, random.uniform(0, 360), random.uniform(10, 20))
        crops = []
        for image, pose, bearing in zip(images, poses, panorama.bearing(positions, focal), strict=True):
            first = panorama.first_column(float(bearing), pose.heading, image.width, image.height)
            crops.append(Image.fromarray(np.roll(np.asarray(image), -first, axis=1)[:, : image.height]))
        return crops


def _pose(path: Path) -> AtName:
    pose = parse_at_name(path.name)
    assert pose is not None  # the files are ours
    return pose

"""GPUs from the table and from a user's file, and peaks by the names that drivers give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pairvpr_dist.costs.hardware import GIB, find_gpu, load_hardware, peak_flops
from pairvpr_dist.errors import UserError

MINE = """
mine: {driver_names: [X1], tflops: 100, memory_gib: 32, memory_gb_s: 900, link_gb_s: 30, network_gb_s: 5,
  gpus_per_node: 4, efficiency: 0.5}
h200: {network_gb_s: 12.5}
"""


def table(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A30", 165),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H800", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA B300", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA GB300", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
    ],
)
def test_a_known_gpu_has_its_peak(name: str, tera: float) -> None:
    assert peak_flops(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA GeForce GTX 1080", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "cpu", ""])
def test_an_unknown_gpu_has_none(name: str) -> None:
    assert peak_flops(name) is None


def test_an_entry_comes_in_bytes_and_seconds() -> None:
    gpu = find_gpu("h200")
    assert (gpu.name, gpu.gpus_per_node) == ("h200", 8)
    assert gpu.memory == 139 * GIB
    assert gpu.memory_rate == pytest.approx(4.8e12)
    assert gpu.network_rate < gpu.link_rate < gpu.memory_rate < gpu.flops


def test_every_entry_of_a_name_has_one_peak() -> None:
    for gpu in load_hardware().values():
        for name in gpu.driver_names:
            assert peak_flops(f"NVIDIA {name}") == gpu.flops, gpu.name


def test_a_users_file_adds_a_gpu_and_changes_one_key_of_another(tmp_path: Path) -> None:
    ours, theirs = load_hardware(), load_hardware(table(tmp_path, MINE))
    assert set(theirs) - set(ours) == {"mine"}
    assert theirs["mine"].flops == 100e12
    assert theirs["h200"].network_rate == pytest.approx(12.5e9)
    assert theirs["h200"].flops == ours["h200"].flops
    assert theirs["h100"] == ours["h100"]


def test_an_unknown_gpu_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"h20x.*did you mean 'h20"):
        find_gpu("h20x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("h200: {networkgbs: 1}", "mine.yaml: h200: unknown key 'networkgbs'; did you mean 'network_gb_s'"),
        ("h200: {network_gb_s: fast}", "mine.yaml: h200: .*network_gb_s"),
        ("h200: {network_gb_s: 0}", "mine.yaml: h200: network_gb_s: 0.0: must be positive"),
        ("h200: {efficiency: 70}", "mine.yaml: h200: efficiency: 70.0: must be a share"),
        ("other: {tflops: 1}", "mine.yaml: other: no value for .*memory_gib"),
        ("h200: 3", "mine.yaml: h200: must be keys with values"),
        ("- h200", "mine.yaml: not a table of GPUs"),
        ("h200: {", "mine.yaml: not readable as a table of GPUs"),
    ],
)
def test_a_mistake_in_a_users_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        load_hardware(table(tmp_path, text))
    assert re.search(told, str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: no such file"):
        load_hardware(tmp_path / "none.yaml")

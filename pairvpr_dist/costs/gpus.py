"""What a GPU can do at most, by the name that its driver gives it.

Contract: dense bf16 products with accumulation in fp32, from the vendor's data sheets (which print twice as much, for
sparse matrices). A GPU that is not in the table, or a slice of one (MIG), has no known peak.
"""

from __future__ import annotations

import re

TERA = 1e12

# Words of the name -> TFLOP/s. Of the entries whose words are all in a name, the one with the most words counts.
PEAKS = {
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "A800": 312.0,
    "RTX A6000": 154.8,
    "RTX 6000 Ada": 364.2,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H20": 148.0,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H800": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.0,
    "GH200": 989.4,
    "B200": 2250.0,
    "B300": 2250.0,
    "GB200": 2500.0,
    "GB300": 2500.0,
}


def peak_flops(name: str) -> float | None:
    """Operations a second of the GPU of this name; None where it is not known. Pure."""
    words = set(re.split(r"[\s-]+", name))
    if "MIG" in words:
        return None
    known = [entry for entry in PEAKS if words.issuperset(entry.split())]
    return PEAKS[max(known, key=lambda entry: len(entry.split()))] * TERA if known else None

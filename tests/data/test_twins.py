"""Photos that are alike: copied in all ways that count, and found again; the comparison, by brute force."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from layout_files import coco_file
from PIL import Image

from fpn.data.twins import MAX_DISTANCE, alike, twins
from fpn.errors import InputError
from fpn.lit.cli import main


def photo(seed: int) -> Image.Image:
    """Coarse noise, smoothed: 160 × 120 pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve photos, then of each of the first eight a copy: in another symmetry, and darkened to a half."""
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for seed in range(12):
        found.append(folder / f"{seed}.jpg")
        photo(seed).save(found[-1])
    for seed, way in enumerate([None, *Image.Transpose]):
        copy = photo(seed) if way is None else photo(seed).transpose(way)
        found.append(folder / f"copy{seed}.jpg")
        copy.point(lambda value: value // 2).save(found[-1], quality=70)
    (folder / "text.jpg").write_text("no image")
    return [*found, folder / "text.jpg", folder / "text.jpg", folder / "missing.jpg"]


def test_copies_are_found_and_nothing_else(paths: list[Path]) -> None:
    pytest.importorskip("imagehash")
    assert twins(paths, num_workers=0) == [[seed, 12 + seed] for seed in range(8)]


def test_near_hashes_are_grouped_as_pair_by_pair() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (300, 8, 4), dtype=np.uint64)
    for place in range(0, 150, 3):  # a chain: each within reach of the one before, from any symmetry
        for next_ in (place + 1, place + 2):
            bits = np.unpackbits(hashes[next_ - 1, 0].view(np.uint8))
            flipped = random.choice(256, MAX_DISTANCE + (place % 2), replace=False)
            bits[flipped] ^= 1
            hashes[next_, 0] = np.packbits(bits).view(np.uint64)
            hashes[next_ - 1, random.integers(8)] = hashes[next_ - 1, 0]
    near = {}
    for one in range(300):
        for other in range(one + 1, 300):
            distance = min(
                sum((a ^ b).bit_count() for a, b in zip(turned, hashes[other, 0].tolist(), strict=True))
                for turned in hashes[one].tolist()
            )
            if distance <= MAX_DISTANCE:
                near[other] = near.get(one, one)
    wanted: dict[int, list[int]] = {}
    for other, leader in near.items():
        wanted.setdefault(leader, [leader]).append(other)
    assert len(wanted) == 25
    assert alike(hashes) == sorted(wanted.values())


def test_five_thousand_take_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, (5000, 8, 4), dtype=np.uint64)
    hashes[4000] = hashes[10]
    start = time.perf_counter()
    assert alike(hashes) == [[10, 4000]]
    assert time.perf_counter() - start < 30


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash")
    for split, seeds in (("train", [1, 2, 3, 4]), ("val", [5, 2])):
        (tmp_path / f"{split}2017").mkdir()
        boxes = [(f"{place}", 160, 120, [(0, 1, 1, 50, 50)]) for place in range(len(seeds))]
        coco_file(tmp_path / "annotations" / f"instances_{split}2017.json", boxes)
        for place, seed in enumerate(seeds):
            photo(seed).save(tmp_path / f"{split}2017" / f"{place}.png")
    photo(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "train2017" / "3.png")
    out = tmp_path / "audit.json"
    main(["audit", str(tmp_path), "--twins", "--num_workers", "0", "--json", str(out)])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index("2 groups of photos that are alike") :] == [
        "2 groups of photos that are alike",
        "1 of train have a twin in another split",
        "1 of val have a twin in another split",
        "train/1.png  val/1.png",
        "train/0.png  train/3.png",
    ]
    groups = [["train/0.png", "train/3.png"], ["train/1.png", "val/1.png"]]
    assert json.loads(out.read_text())["twins"] == groups


def test_a_missing_package_is_one_line(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(InputError, match=r"needs imagehash: pip install 'fpn\[audit\]'"):
        twins(paths)

"""Time `fpn audit` on a made-up data set of the size of COCO's train2017.

    python scripts/audit_speed.py                    # headers of all files
    python scripts/audit_speed.py --decode true      # all of them decoded, a process for each core

Writes 118,287 images with 860,001 annotations and their polygons, 450 MB of JSON, to a temporary
folder; the images are links to a few JPEG files. Prints how long the audit takes, the start of
Python included, and the most memory that its process held.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

IMAGES, ANNOTATIONS, CATEGORIES = 118_287, 860_001, 80
SIZES = ((640, 480), (640, 427), (500, 375), (480, 640), (427, 640), (640, 640))
COPIES = 4000
"""Links to one file: file systems allow for tens of thousands."""
POINTS = 44
"""Numbers in a polygon, for the file to be as long as COCO's."""


def main(images: int = IMAGES, decode: bool = False, num_workers: int | None = None) -> None:
    """Make the data set and audit it.

    Args:
        images: how many, with annotations in proportion.
        decode: read the images wholly.
        num_workers: of the audit.
    """
    with tempfile.TemporaryDirectory() as folder:
        annotations, photos = Path(folder, "instances.json"), Path(folder, "images")
        photos.mkdir()
        write_annotations(annotations, images, round(images * ANNOTATIONS / IMAGES))
        write_images(photos, images)
        size = annotations.stat().st_size / 1e6
        command = [sys.executable, "-m", "fpn", "audit", "--annotations", str(annotations)]
        command += ["--images", str(photos), "--json", str(Path(folder, "audit.json"))]
        command += ["--decode"] * decode + (
            ["--num_workers", str(num_workers)] if num_workers is not None else []
        )
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)
    print(
        f"{images:,} images, {size:.0f} MB of JSON: {seconds:.1f} s"
        f" ({used.ru_utime + used.ru_stime:.1f} s of a core), peak {peak:.0f} MiB"
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pillow", "torch", "torchvision"))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}")


def write_annotations(path: Path, images: int, annotations: int) -> None:
    """Boxes log-uniform in size, with polygons of which there are a thousand."""
    random = np.random.default_rng(0)
    polygons = [json.dumps([random.uniform(0, 480, POINTS).round(2).tolist()]) for _ in range(1000)]
    widths, heights = np.array(SIZES)[np.arange(images) % len(SIZES)].T
    of_image = random.integers(0, images, annotations)
    shares = np.exp(random.uniform(np.log(0.02), 0, (annotations, 2)))
    sides = shares * np.stack((widths, heights), axis=1)[of_image]
    corners = random.uniform(0, 1, (annotations, 2)) * (np.stack((widths, heights), axis=1)[of_image] - sides)
    boxes = np.concatenate((corners, sides), axis=1).round(2).tolist()
    categories = random.integers(1, CATEGORIES + 1, annotations).tolist()
    with path.open("w") as file:
        file.write('{"images": [')
        for image in range(images):
            entry = {
                "license": 3,
                "file_name": f"{image + 1:012}.jpg",
                "coco_url": f"http://images.example.org/train2017/{image + 1:012}.jpg",
                "height": int(heights[image]),
                "width": int(widths[image]),
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "http://farm9.example.org/8186/8119368305_4e622c8349_z.jpg",
                "id": image + 1,
            }
            file.write(", " * (image > 0) + json.dumps(entry))
        file.write('], "annotations": [')
        for place, (image, box, category) in enumerate(
            zip(of_image.tolist(), boxes, categories, strict=True)
        ):
            file.write(
                f'{", " * (place > 0)}{{"segmentation": {polygons[place % len(polygons)]}, '
                f'"area": {box[2] * box[3] / 2}, "iscrowd": 0, "image_id": {image + 1}, "bbox": {box}, '
                f'"category_id": {category}, "id": {place + 1}}}'
            )
        names = [{"supercategory": "thing", "id": k + 1, "name": f"thing {k + 1}"} for k in range(CATEGORIES)]
        file.write(f'], "categories": {json.dumps(names)}}}')


def write_images(folder: Path, images: int) -> None:
    """One file for every so many images of a size, and links to it."""
    random = np.random.default_rng(0)
    for image in range(images):
        path = folder / f"{image + 1:012}.jpg"
        first = image % len(SIZES) + image // (len(SIZES) * COPIES) * len(SIZES) * COPIES
        if image == first:
            width, height = SIZES[image % len(SIZES)]
            coarse = random.integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            path.hardlink_to(folder / f"{first + 1:012}.jpg")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)

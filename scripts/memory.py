"""Measure the memory of loading and scoring: do workers grow, what do COCO's size and a large photo take?

    python scripts/memory.py                                   # all
    python scripts/memory.py --what scoring --images 5000 --proposals 1000

`loading` draws a data set of COCO train2017's size (118,287 images, 860,001 boxes; the images are a few
files under many names), runs epochs of some of its batches through the training loader and prints the memory
that belongs to each worker alone after each of them. `photo` loads photos of 108 megapixels, upright and
turned by EXIF, and prints the most that a worker held alone meanwhile. `scoring` collects random proposals as
a test does, scores them, draws their curves, writes them, and prints the peak. Each runs in a process of its
own. Linux.
"""

import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Process, active_children
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import ExifTags, Image

from fpn.allocator import keep_freed_memory
from fpn.data.datamodule import CocoDataModule
from fpn.data.options import ImageOptions, Split
from fpn.data.results import write_results
from fpn.evaluation import ProposalRecall, Truth
from fpn.types import Batch, Categories, Detections, Inference

MIB = 2**20
PHOTO = (12000, 9000)
SIZES = ((320, 240), (240, 320), (300, 200), (200, 280))


def main(
    what: Literal["loading", "photo", "scoring", "all"] = "all",
    epochs: int = 6,
    batches: int = 250,
    images: int = 5000,
    proposals: int = 1000,
    in_process: bool = False,
) -> None:
    """Measure the memory of loading, of a large photo, and of scoring.

    Args:
        what: which of them.
        epochs: of loading.
        batches: of two images, in each of these epochs.
        images: whose proposals are scored.
        proposals: of each of these images.
        in_process: measure here, not in a process of its own.
    """
    if not in_process:
        print(f"{platform.machine()} CPU, Python {platform.python_version()}, torch {torch.__version__}")
        numbers = {"epochs": epochs, "batches": batches, "images": images, "proposals": proposals}
        words = [f"--{name}={value}" for name, value in numbers.items()]
        for one in ("loading", "photo", "scoring") if what == "all" else (what,):
            command = [sys.executable, __file__, f"--what={one}", *words, "--in_process=true"]
            subprocess.run(command, check=True)
        return
    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        if what == "loading":
            loading(Path(folder), epochs, batches)
        elif what == "photo":
            for antialias in (False, True):
                for orientation in (1, 6):
                    photo(Path(folder), antialias, orientation)
        else:
            scoring(Path(folder), images, proposals)


def loading(folder: Path, epochs: int, batches: int) -> None:
    """Print the private memory of two workers after each epoch."""
    for split, images, boxes in (("train", 118_287, 860_001), ("val", 20, 100)):
        draw_set(folder, split, images, boxes)
    data = CocoDataModule(
        root=str(folder), images=ImageOptions(short_side=256, max_side=341), batch_size=2, num_workers=2
    )
    data.setup("fit")
    loader: Any = data.train_dataloader()
    pids: list[int] = []
    for epoch in range(epochs):
        # As many batches as an epoch has here; the workers stay for the next.
        stop = len(loader) - batches
        loader._position = lambda epoch=epoch, stop=stop: (epoch, stop)
        for batch in loader:
            del batch
        pids = [worker.pid for worker in loader._iterator._workers]
        print(
            f"epoch {epoch + 1}: "
            + ", ".join(f"worker {i} {private(pid) / MIB:.1f} MiB" for i, pid in enumerate(pids))
        )


def photo(folder: Path, antialias: bool, orientation: int) -> None:
    """Print the most memory that a worker held alone as it loaded four photos."""
    gc.collect()  # the loader before, which a process that is forked now would try to end
    # Elsewhere, for what this process keeps of it would become the worker's alone.
    drawing = Process(target=draw_photo, args=(folder, orientation))
    drawing.start()
    drawing.join()
    split = Split(str(folder), str(folder / "photo.json"))
    data = CocoDataModule(
        train=split, val=split, images=ImageOptions(antialias=antialias), batch_size=1, num_workers=1
    )
    data.setup("fit")
    held, done = [0], Event()

    def watch() -> None:
        while not done.wait(0.005):
            with suppress(OSError):  # of a worker that ends
                held.extend(private(worker.pid or 0) for worker in active_children())

    watcher = Thread(target=watch)
    watcher.start()
    batches: Any = data.train_dataloader()
    (size,) = {batch.sizes[0] for batch in batches}
    done.set()
    watcher.join()
    print(
        f"{PHOTO[0]} × {PHOTO[1]} pixels to {size[1]} × {size[0]}, antialias {antialias},"
        f" EXIF {orientation}: {max(held) / MIB:.0f} MiB at most"
    )


def draw_photo(folder: Path, orientation: int) -> None:
    """A photo listed four times, stored with an EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    width, height = PHOTO if orientation < 5 else PHOTO[::-1]
    coarse = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(PHOTO, Image.Resampling.BILINEAR)
    picture.save(folder / "photo.jpg", quality=90, exif=exif)
    content = {
        "images": [
            {"id": i, "file_name": "photo.jpg", "width": width, "height": height} for i in range(1, 5)
        ],
        "annotations": list(drawn(np.random.default_rng(0), 4, 8)),
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
    }
    (folder / "photo.json").write_text(json.dumps(content))


def scoring(folder: Path, images: int, proposals: int) -> None:
    """Print the peak of collecting, scoring and writing proposals."""
    draw_set(folder, "val", images, 7 * images)
    annotations = folder / "annotations" / "instances_val2017.json"
    metric = ProposalRecall()
    metric.score_on(Truth(annotations, Categories((), ())))
    generator = torch.Generator().manual_seed(0)
    print(f"before: {peak() / MIB:,.0f} MiB at most")
    for image_id in range(1, images + 1):
        corners = torch.rand(proposals, 2, 2, generator=generator).mul(240).sort(dim=1).values.flatten(1)
        scores = torch.rand(proposals, generator=generator).sort(descending=True).values
        found = Detections(corners, scores, torch.ones(proposals, dtype=torch.int64))
        metric.update(Batch(torch.empty(0), [], [], [image_id]), Inference([found], None))
    print(f"collected: {peak() / MIB:,.0f} MiB at most")
    recall = metric.compute()["proposal_AR@1000"]
    print(f"AR@1000 {100 * recall:.2f}; scored: {peak() / MIB:,.0f} MiB at most")
    metric.curves()
    print(f"curves drawn: {peak() / MIB:,.0f} MiB at most")
    number = write_results(folder / "proposals.json", metric.results())
    print(f"{number:,} proposals written: {peak() / MIB:,.0f} MiB at most")


def draw_set(folder: Path, split: str, images: int, boxes: int) -> None:
    """A made-up set: a few image files under many names, and their annotations."""
    rng = np.random.default_rng(0)
    place = folder / f"{split}2017"
    place.mkdir(parents=True)
    for index, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.jpg", quality=80)
    listed: list[dict[str, Any]] = []
    for image_id in range(1, images + 1):
        width, height = SIZES[image_id % len(SIZES)]
        name = f"{image_id:012d}.jpg"
        os.link(place / f"{image_id % len(SIZES)}.jpg", place / name)
        listed.append({"id": image_id, "file_name": name, "width": width, "height": height})
    content = {
        "images": listed,
        "annotations": list(drawn(rng, images, boxes)),
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
    }
    file = folder / "annotations" / f"instances_{split}2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def drawn(rng: np.random.Generator, images: int, boxes: int) -> Iterator[dict[str, Any]]:
    """As many annotations, spread over the images."""
    for number in range(boxes):
        x, y, w, h = rng.uniform((0, 0, 5, 5), (140, 140, 60, 60)).round(2).tolist()
        yield {
            "id": number + 1,
            "image_id": number % images + 1,
            "category_id": number % 80 + 1,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
        }


def private(pid: int) -> int:
    """Bytes of a process's memory that it shares with none."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def peak() -> int:
    """The greatest bytes this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    auto_cli(main)

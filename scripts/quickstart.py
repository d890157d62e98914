"""`make quickstart`: make the shapes, train a small detector, test it, draw what it finds beside the truth.

Every step is an ordinary command and is printed before it runs.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import pad
from torchvision.io import write_jpeg

from fpn import Predictor, load
from fpn.data.coco import read_annotations
from fpn.data.decoding import read_image
from fpn.pictures import beside, draw, truth

CONFIG = "configs/quickstart.yaml"
RUNS = Path("runs/quickstart")
SHAPES = Path("datasets/shapes")


def main() -> None:
    """Run the steps in the project's root."""
    os.chdir(Path(__file__).resolve().parents[1])
    start = time.monotonic()
    fpn("fit", "--config", CONFIG)
    checkpoint = newest("checkpoints/last.ckpt")
    fpn("test", "--config", CONFIG, "--ckpt_path", str(checkpoint))
    scores = newest("test*/scores.json")
    picture = scores.with_name("detections.jpg")
    draw_examples(checkpoint, picture)
    minutes = (time.monotonic() - start) / 60
    print(
        f"""
Done in {minutes:.1f} minutes. Written:
  {checkpoint}   the detector
  {scores}   its scores; beside it its detections in COCO's format
  {picture}   truth (left of each pair) and detections (right) on held-out images

Try next:
  .venv/bin/fpn predict --ckpt_path {checkpoint} --images {SHAPES}/val2017 --out predictions
  .venv/bin/fpn fit --config {CONFIG} --model.detector.neck.top_down false \\
    --trainer.logger.init_args.name no_top_down                                # an ablation
  .venv/bin/fpn fit --config configs/base.yaml --data.root /path/to/coco       # the paper's detector"""
    )


def fpn(*arguments: str) -> None:
    """Run a command of the project as a user would."""
    print(f"\n$ fpn {' '.join(arguments)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "fpn", *arguments], check=False).returncode:
        sys.exit(code)


def newest(name: str) -> Path:
    """The file of that name in the newest of the quickstart's runs that has one."""
    return max(RUNS.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)


def draw_examples(checkpoint: Path, picture: Path, number: int = 6) -> None:
    """Held-out images in pairs: true boxes, and detections that are fairly certain."""
    trained = load(checkpoint)
    annotations = read_annotations(SHAPES / "annotations" / "instances_val2017.json")
    images, left = [], []
    for index in range(number):
        image = read_image(SHAPES / "val2017" / str(annotations.file_names[index]))
        targets = annotations.targets(index)
        images.append(image)
        left.append(draw(enlarged(image), truth(2 * targets.boxes, targets.labels), trained.categories))
    found = [f._replace(boxes=2 * f.boxes) for f in Predictor.of(trained)(images)]
    right = [draw(enlarged(i), f, trained.categories, 0.7) for i, f in zip(images, found, strict=True)]
    pairs = [beside(*pair) for pair in zip(left, right, strict=True)]
    rows = [joined(pairs[first : first + 2], 2) for first in range(0, number, 2)]
    write_jpeg(joined(rows, 1), str(picture))


def joined(pictures: list[torch.Tensor], dim: int, gap: int = 16) -> torch.Tensor:
    """Pictures (3, H, W) of any sizes one behind the other along a dimension, on white."""
    end = max(one.shape[3 - dim] for one in pictures)
    wide = [
        (0, gap, 0, end - one.shape[1]) if dim == 2 else (0, end - one.shape[2], 0, gap) for one in pictures
    ]
    padded = [pad(one, room, value=255) for one, room in zip(pictures, wide, strict=True)]
    return torch.cat(padded, dim)


def enlarged(image: torch.Tensor) -> torch.Tensor:
    """Every pixel as four: in pictures this small, letters would hide the objects."""
    return image.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


if __name__ == "__main__":
    main()

"""The commands that need no Trainer. A command's signature and docstring are its --help."""

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from torchvision.io import write_jpeg
from torchvision.ops import box_convert

from fpn.checkpoints import load
from fpn.data.coco import read_image
from fpn.data.shapes import generate_shapes
from fpn.errors import InputError
from fpn.evaluation import Engine, evaluate_proposals, score_boxes
from fpn.evaluation.tables import box_table, category_table, proposal_table
from fpn.pictures import draw
from fpn.predictor import Predictor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic"}


def predict(
    ckpt_path: str,
    images: str | list[str],
    out: str = "predictions",
    score_threshold: float = 0.5,
    pictures: bool = True,
    batch_size: int = 1,
    device: str | None = None,
) -> None:
    """Find objects in images with a trained detector.

    Writes to the output folder: detections.json, COCO results of all scores; images.json, the id, file
    and size of each image; and pictures with the boxes drawn.

    Args:
        ckpt_path: a checkpoint written by `fpn fit`.
        images: an image file, a folder of them, or a list of both.
        out: the folder to write to; made if it is missing.
        score_threshold: only boxes with this score are drawn.
        pictures: write pictures with the boxes drawn.
        batch_size: images that go through the network together.
        device: where the network runs, as cpu or cuda:1; by default on a GPU where there is one.
    """
    paths = _image_files([images] if isinstance(images, str) else images)
    trained = load(ckpt_path)
    predictor = Predictor.of(trained, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    listing: list[dict[str, Any]] = []
    remaining = track(enumerate(paths), "predict", total=len(paths), console=Console(stderr=True))
    while batch := list(islice(remaining, batch_size)):
        decoded = [read_image(path) for _, path in batch]
        for (index, path), image, found in zip(batch, decoded, predictor(decoded), strict=True):
            # As in COCO, a file's number is its image's id; other files are counted.
            image_id = int(path.stem) if all(p.stem.isdecimal() for p in paths) else index + 1
            height, width = image.shape[-2:]
            listing.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
            results += [
                {
                    "image_id": image_id,
                    "category_id": trained.categories.ids[label - 1],
                    "bbox": box,
                    "score": score,
                }
                for box, score, label in zip(
                    box_convert(found.boxes, "xyxy", "xywh").tolist(),
                    found.scores.tolist(),
                    found.labels.tolist(),
                    strict=True,
                )
            ]
            if pictures:
                picture = draw(image, found, trained.categories, score_threshold)
                write_jpeg(picture, str(folder / f"{path.stem}.jpg"), quality=90)
    (folder / "detections.json").write_text(json.dumps(results))
    (folder / "images.json").write_text(json.dumps(listing))
    Console().print(
        f"{len(results):,} boxes in {len(paths):,} images; written to {folder}: detections.json, images.json"
        + (", pictures" if pictures else ""),
        highlight=False,
    )


def evaluate(annotations: str, results: str, proposals: bool = False, engine: Engine = "faster") -> None:
    """Score a saved results file by the COCO protocol.

    Args:
        annotations: the ground truth, a COCO instances file.
        results: a list of {image_id, category_id, bbox, score}, as COCO's server takes it.
        proposals: score as class-agnostic proposals: average recall at 100 and 1000 boxes an image.
        engine: what computes the scores; pycocotools is the slower reference with the same numbers.
    """
    console = Console()
    if proposals:
        console.print(proposal_table(evaluate_proposals(annotations, results, engine=engine)))
        return
    scores = score_boxes(annotations, results, engine=engine)
    console.print(category_table(scores.categories), box_table(scores.overall))


COMMANDS: dict[str, Callable[..., None]] = {
    "predict": predict,
    "evaluate": evaluate,
    "shapes": generate_shapes,
}


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of the commands with the words that follow it on the command line."""
    # `fpn shapes OUT` has one thing to name; the others have several, which are better named.
    auto_cli(
        COMMANDS[command], args=list(arguments), as_positional=command == "shapes", prog=f"fpn {command}"
    )


def _image_files(names: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} is neither an image nor a folder")
    return files

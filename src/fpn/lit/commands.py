"""The commands that need no Trainer. A command's signature and docstring are its --help."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from torch import Tensor
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
from fpn.types import Categories

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


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
    and size of each image; and pictures/ with the boxes drawn, named by id. Files named by numbers, as COCO's
    are, have these as ids; others are counted from 1. A file that cannot be read is named and left out.

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
    ids = _image_ids(paths)
    trained = load(ckpt_path)
    names = trained.categories if trained.detector.finds_objects else Categories((1,), ("object",))
    predictor = Predictor.of(trained, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(out)
    (folder / "pictures" if pictures else folder).mkdir(parents=True, exist_ok=True)
    console = Console()
    results: list[dict[str, Any]] = []
    listing: list[dict[str, Any]] = []
    for start in track(range(0, len(paths), batch_size), "predict", console=Console(stderr=True)):
        batch: list[tuple[int, Path, Tensor]] = []
        for image_id, path in zip(ids[start:][:batch_size], paths[start:][:batch_size], strict=True):
            try:
                batch.append((image_id, path, read_image(path)))
            except InputError as error:
                console.print(f"left out: {error}", highlight=False, soft_wrap=True)
        for (image_id, path, image), found in zip(batch, predictor([b[2] for b in batch]), strict=True):
            height, width = image.shape[-2:]
            listing.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
            boxes = box_convert(found.boxes, "xyxy", "xywh").tolist()
            results += [
                {"image_id": image_id, "category_id": names.ids[label - 1], "bbox": box, "score": score}
                for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True)
            ]
            if pictures:
                picture = draw(image, found, names, score_threshold)
                write_jpeg(picture, str(folder / "pictures" / f"{image_id:012d}.jpg"), quality=90)
    (folder / "detections.json").write_text(json.dumps(results))
    (folder / "images.json").write_text(json.dumps(listing))
    console.print(
        f"{len(results):,} boxes in {len(listing):,} of {len(paths):,} images; written to {folder}: "
        "detections.json, images.json" + (", pictures" if pictures else ""),
        highlight=False,
        soft_wrap=True,
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
    words = list(arguments)
    for switch in ("--proposals", "--pictures"):  # a bare switch means true
        if switch in words and words[words.index(switch) + 1 :][:1] not in (["true"], ["false"]):
            words[words.index(switch)] = f"{switch}=true"
    # `fpn shapes OUT` has one thing to name; the others have several, which are better named.
    auto_cli(
        COMMANDS[command],
        args=words,
        as_positional=command == "shapes",
        prog=f"fpn {command}",
        exit_on_error=False,
    )


def _image_ids(paths: Sequence[Path]) -> list[int]:
    numbers = [int(path.stem) for path in paths if path.stem.isdecimal()]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


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

"""COCO scoring: detections, and class-agnostic proposals."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fpn.benchmark.comparison import Run, equally_far
from fpn.benchmark.report import Case, Measured, Report
from fpn.benchmark.sides import take_turns
from fpn.benchmark.work import Work
from fpn.errors import positive
from fpn.evaluation import Engine, evaluate_proposals, score_boxes

REFERENCE: Engine = "pycocotools"
CATEGORIES, OBJECTS = 80, 7
WIDTH, HEIGHT = 640, 480
PART = 10
"""The outputs are compared on a tenth of the images before the timing, on all of them after."""
LIMIT = 1e-9
"""Largest difference of a score."""


def score(
    images: int = 5000,
    detections: int = 100,
    proposal_images: int = 1000,
    proposals: int = 1000,
    rounds: int = 1,
    **options: Any,
) -> Report:
    """COCO scoring of files, against pycocotools, which takes minutes: one round by default.

    Args:
        images: whose detections are scored.
        detections: of an image.
        proposal_images: whose proposals are scored.
        proposals: of an image.
        rounds: repetitions of each side.
        **options: of `Run`.
    """
    run = Run(device="cpu", rounds=rounds, **options)
    positive(images=images, detections=detections, proposal_images=proposal_images, proposals=proposals)
    run.notes.append(
        "The scores compared are those of the files that were timed, after those of a tenth of them"
    )
    run.notes.append("Both sides read and check the files alike; there was no warm-up")
    cases = []
    for what, number, each in (("detections", images, detections), ("proposals", proposal_images, proposals)):
        title = f"scoring {each:,} {what} of each of {number:,} images"
        with tempfile.TemporaryDirectory() as folder:
            parts = {"part": -(-number // PART), "whole": number}
            for name, some in parts.items():
                write_files(Path(folder, name), some, each)
            theirs, ours = (
                partial(scoring, Path(folder), engine, what == "proposals")
                for engine in (REFERENCE, "faster")
            )
            cases.append(_compared(run, title, theirs, ours))
    return run.report("COCO scoring", {}, cases=cases)


def _compared(run: Run, title: str, theirs: partial[Work], ours: partial[Work]) -> Case:
    steps = 2 * run.rounds
    with run.sides(title, theirs, ours, name=REFERENCE, allocators=False, steps=steps) as (sides, told):
        run.check(f"{title}, a tenth", sides, same_scores, "part")
        seconds = take_turns(sides, run.rounds, told=told)
        run.check(title, sides, same_scores, "whole")
        measured = [Measured(side.name, seconds[(side.name,)], side.memory()) for side in sides]
    return Case(title, "run", measured)


def scoring(folder: Path, engine: Engine, proposals: bool) -> Work:
    """A repetition: read both files and score them all."""
    found: dict[str, dict[str, float]] = {}

    def score_part(part: str) -> dict[str, float]:
        files = (folder / part / "annotations.json", folder / part / "results.json")
        if proposals:
            return evaluate_proposals(*files, engine=engine)
        scores = score_boxes(*files, engine=engine)
        return scores.overall | {f"AP of {name}": row["AP"] for name, row in scores.categories.items()}

    def run() -> None:
        found["whole"] = score_part("whole")

    return Work(run, lambda part: found[part] if part in found else score_part(part))


def same_scores(theirs: dict[str, float], ours: dict[str, float]) -> str:
    """See that all scores are the same; those that do not exist, in both.

    Raises:
        DisagreementError: one is not.
    """
    known = {name: value for name, value in theirs.items() if value == value or ours[name] == ours[name]}
    far = {name: abs(value - ours[name]) for name, value in known.items()}
    whole = next(iter(theirs))
    return f"{equally_far('scores', far, LIMIT)}; {whole} is {100 * theirs[whole]:.2f} %"


def write_files(folder: Path, images: int, each: int) -> None:
    """Made-up ground truth, 7 objects an image, and results: every object once, displaced, and noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (images, OBJECTS, 2)))
    corners = rng.uniform(0, 1, (images, OBJECTS, 2)) * np.maximum((WIDTH, HEIGHT) - sides, 1)
    categories = rng.integers(1, CATEGORIES + 1, (images, OBJECTS))
    truth = np.concatenate((corners, sides), axis=2)
    noise = max(0, each - OBJECTS)
    moved = truth + rng.normal(0, 0.1, truth.shape) * np.tile(sides, 2)
    moved[..., 2:] = np.maximum(moved[..., 2:], 1)
    lost = rng.uniform((0, 0, 5, 5), (WIDTH - 200, HEIGHT - 200, 200, 200), (images, noise, 4))
    boxes = np.concatenate((moved, lost), axis=1)[:, :each].round(2)
    labels = np.concatenate((categories, rng.integers(1, CATEGORIES + 1, (images, noise))), axis=1)[:, :each]
    scores = np.concatenate((rng.beta(4, 2, categories.shape), rng.beta(1, 4, (images, noise))), axis=1)
    annotations = [
        {
            "id": image * OBJECTS + i + 1,
            "image_id": image + 1,
            "category_id": k,
            "bbox": b,
            "area": b[2] * b[3],
        }
        | {"iscrowd": 0}
        for image in range(images)
        for i, (k, b) in enumerate(zip(categories[image].tolist(), truth[image].tolist(), strict=True))
    ]
    results = [
        {"image_id": image + 1, "category_id": k, "bbox": b, "score": s}
        for image in range(images)
        for k, b, s in zip(
            labels[image].tolist(), boxes[image].tolist(), scores[image, :each].tolist(), strict=True
        )
    ]
    listed = [
        {"id": i + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{i + 1}.jpg"} for i in range(images)
    ]
    names = [{"id": k, "name": f"class {k}"} for k in range(1, CATEGORIES + 1)]
    content = {"images": listed, "annotations": annotations, "categories": names}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "results.json").write_text(json.dumps(results))

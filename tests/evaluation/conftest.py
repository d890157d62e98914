"""Made-up results on real annotations, and what pycocotools' own path from file to number says of them."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Entries = list[dict[str, Any]]


@pytest.fixture(scope="session")
def annotation_file(coco_mini: Path) -> Path:
    return coco_mini / "annotations" / "instances_val2017.json"


@pytest.fixture(scope="session")
def made_up(annotation_file: Path) -> Entries:
    """Jittered objects (crowds too), duplicates, wrong classes, equal scores, images left out.

    One image has 250 results of one category, and 1200 in all.
    """
    data = json.loads(annotation_file.read_text())
    random = np.random.default_rng(7)
    categories = [category["id"] for category in data["categories"]]
    left_out = {image["id"] for image in data["images"][::6]}
    entries: Entries = []

    def add(image_id: int, category_id: int, box: Any) -> None:
        # Whole pixels make equal IoUs; one decimal makes equal scores; 1e-12 apart is one score in float32.
        score = random.choice([random.random(), 0.1 * random.integers(10), 0.5 + 1e-12 * random.integers(4)])
        box = [float(side) for side in (np.round(box) if random.random() < 0.5 else box)]
        entries.append(
            {"image_id": image_id, "category_id": int(category_id), "bbox": box, "score": float(score)}
        )

    for one in data["annotations"]:
        if one["image_id"] in left_out:
            continue
        x, y, width, height = one["bbox"]
        for _ in range(random.integers(4)):
            jitter = random.normal(0, random.choice([0, 0.03, 0.15]), 4)
            box = np.array([x, y, width, height]) + jitter * [width, height, width, height]
            box[2:] = box[2:].clip(1)
            category_id = one["category_id"] if random.random() < 0.8 else random.choice(categories)
            add(one["image_id"], category_id, box)
    crowded = next(image["id"] for image in data["images"] if image["id"] not in left_out)
    for number in range(1200):
        add(crowded, categories[0] if number < 250 else random.choice(categories), random.random(4) * 300)
    return [entries[i] for i in random.permutation(len(entries))]


Reference = Callable[..., COCOeval]


@pytest.fixture(scope="session")
def reference(annotation_file: Path) -> Reference:
    """pycocotools run as its documentation shows; `stats` holds the twelve numbers where categories count."""

    def run(
        entries: Entries, categories: bool = True, annotations: Path | None = None, **parameters: Any
    ) -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(annotations or annotation_file))
            evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(entries))), "bbox")
            evaluation.params.useCats = int(categories)
            for name, value in parameters.items():
                setattr(evaluation.params, name, value)
            evaluation.evaluate()
            evaluation.accumulate()
            if categories:
                evaluation.summarize()
        return evaluation

    return run

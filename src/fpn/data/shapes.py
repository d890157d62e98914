"""The embedded data set: generated images of ten shapes, in COCO's format and folder layout.

A detector learns it within minutes on a CPU, yet it needs what COCO needs. The side √(width · height) of an
object is log-uniform from 6 pixels to 3/4 of the image's long side: five octaves at the default of 256, so
COCO's small, medium and large all occur in numbers. A class is told by its silhouette alone: colours,
gradients and stripes are drawn alike for every class, and for blobs and wavy strokes that are no objects.
Objects lie over one another and over the border, each at least 70 % visible. One image in 20 has a crowd
region, one in 25 no annotation.

In the framed set, up to 80 shapes of 6 to 48 pixels are strewn over each image, and only those within its
frame or two of 77 to 192 pixels, which are objects too, are objects: what a shape is cannot be told without
its surroundings. One image in 12 has no frame, and so no annotation: a large one does not fit every image.

Boxes and areas are those of the part inside the image, whether or not another object lies over it; polygons
run on beyond the image's border. Image i of a split depends on the seed, the split, i, the scene and
`long_side` only, and is the same to the last bit on the same versions of NumPy and Pillow.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fpn.console import tracked
from fpn.data.scene import CATEGORIES, FRAMED_CATEGORIES, Annotation, draw_framed_scene, draw_scene
from fpn.errors import InputError
from fpn.settings import NonNegativeInt, PositiveInt

_MANIFEST = "shapes.json"
_FORMAT = "fpn shapes"
Scene = Literal["plain", "framed"]
SCENES = {"plain": (CATEGORIES, draw_scene), "framed": (FRAMED_CATEGORIES, draw_framed_scene)}
"""What can be drawn: its categories, and what draws an image of it."""
_VERSIONS = {"plain": 1, "framed": 2}
"""They go up with every change of what is drawn, so that older sets are told apart."""
_SPLITS = ("train2017", "val2017")


def generate_shapes(
    out: Path,
    *,
    train: PositiveInt = 2000,
    val: PositiveInt = 200,
    seed: NonNegativeInt = 0,
    long_side: PositiveInt = 256,
    scene: Scene = "plain",
) -> None:
    """Draw a data set of shapes in COCO's layout, unless it is there already with the same options.

    The folder appears under its name only when all of it has been written.

    examples:
        fpn shapes datasets/shapes
        fpn shapes datasets/framed --scene framed --train 500 --val 100

    Args:
        out: folder to hold `train2017`, `val2017` and `annotations`.
        train: training images.
        val: validation images.
        seed: any whole number from 0.
        long_side: greatest width or height of an image, in pixels, at least 64.
        scene: plain; or framed, where an object is what lies in a frame.

    Raises:
        InputError: `long_side` is less than 64, or `out` holds something else, or shapes of other parameters.
    """
    if long_side < 64:
        raise InputError(f"long_side of the shapes is {long_side}: give at least 64")
    made_of = {"scene": scene, "train": train, "val": val, "seed": seed, "long_side": long_side}
    manifest = {"format": _FORMAT, "version": _VERSIONS[scene]} | made_of
    found = _read_manifest(out)
    if found == manifest:
        return
    if found is not None:
        raise InputError(f"{out} holds shapes of other parameters: remove it or name another folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something other than a shapes data set: name another folder")

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        made = Path(beside, "made")
        (made / "annotations").mkdir(parents=True)
        for split, count in enumerate((train, val)):
            _write_split(made, split, count, seed, long_side, scene)
        (made / _MANIFEST).write_text(json.dumps(manifest))
        if _read_manifest(out) != manifest:  # else another process has been quicker
            if out.exists():
                out.rename(Path(beside, "replaced"))
            made.rename(out)


def _read_manifest(out: Path) -> dict[str, Any] | None:
    """What the folder says of itself; None where it is no shapes data set."""
    try:
        found = json.loads((out / _MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == _FORMAT else None


def _write_split(root: Path, split: int, count: int, seed: int, long_side: int, scene: Scene) -> None:
    known, draw = SCENES[scene]
    name = _SPLITS[split]
    (root / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[Annotation] = []
    for index in tracked(range(count), f"Drawing {name}"):
        pixels, found = draw(np.random.default_rng([seed, split, index]), index, long_side)
        height, width, _ = pixels.shape
        # As in COCO, no id is found in both splits.
        image_id = 1_000_000 * split + index + 1
        file_name = f"{image_id:012d}.jpg"
        Image.fromarray(pixels).save(root / name / file_name, quality=95)
        image = {"id": image_id, "license": 1, "file_name": file_name, "width": width, "height": height}
        images.append(image)
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    categories = zip(known.ids, known.names, strict=True)
    content = {
        "info": {"description": "Generated shapes", "version": "1"},
        "licenses": [{"id": 1, "name": "generated", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id_, "name": kind, "supercategory": "shape"} for id_, kind in categories],
    }
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))

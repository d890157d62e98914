"""One small data set, written in every layout that is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml as yaml_format
from PIL import Image

NAMES = ("bee", "ant", "wasp")
Photo = tuple[str, int, int, list[tuple[int, int, int, int, int]]]
"""Stem, width, height; and of each object the place of its name, and x, y, width and height in pixels."""
PHOTOS: dict[str, list[Photo]] = {
    "train": [
        ("a", 64, 48, [(0, 1, 2, 20, 30), (2, 30, 10, 33, 20)]),
        ("b.1", 48, 64, [(1, 0, 0, 48, 64)]),
        ("c", 60, 60, [(2, 7, 9, 21, 14), (2, 40, 41, 13, 17), (0, 11, 30, 9, 8)]),
        ("d", 50, 40, []),
    ],
    "val": [("e", 64, 64, [(1, 5, 6, 30, 31), (0, 20, 20, 24, 40)]), ("f", 40, 50, [(2, 3, 4, 17, 18)])],
}
Truth = dict[str, dict[str, list[tuple[str, list[float]]]]]
TRUTH: Truth = {
    split: {
        stem: sorted((NAMES[kind], [x, y, x + width, y + height]) for kind, x, y, width, height in objects)
        for stem, _, _, objects in photos
    }
    for split, photos in PHOTOS.items()
}
"""By split and stem, each object's name and corners."""


def draw(folder: Path, photo: Photo, ending: str = ".png") -> Path:
    """A photo's file, in noise."""
    stem, width, height, _ = photo
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(ord(stem[0])).integers(0, 255, (height, width, 3), dtype=np.uint8)
    path = folder / f"{stem}{ending}"
    Image.fromarray(noise).save(path)
    return path


def coco_file(path: Path, photos: list[Photo], first_id: int = 1) -> None:
    """An annotation file in COCO's format."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for stem, width, height, objects in photos:
        image = {"id": first_id + len(images), "file_name": f"{stem}.png", "width": width, "height": height}
        images.append(image)
        for kind, *box in objects:
            one = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": kind + 1, "bbox": box}
            annotations.append(one | {"area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(NAMES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco(root: Path, stem: str = "instances_{}2017", folder: str = "{}2017") -> Path:
    """COCO's own layout."""
    for split, photos in PHOTOS.items():
        coco_file(root / "annotations" / f"{stem.format(split)}.json", photos, 1 if split == "train" else 100)
        for photo in photos:
            draw(root / folder.format(split), photo)
    return root


def roboflow(root: Path) -> Path:
    """Roboflow's, annotations among the images."""
    for split, photos in PHOTOS.items():
        folder = root / split.replace("val", "valid")
        coco_file(folder / "_annotations.coco.json", photos, 1 if split == "train" else 100)
        for photo in photos:
            draw(folder, photo)
    return root


def single(root: Path, file: str = "annotations.json", folder: str = "images") -> Path:
    """All in one annotation file."""
    photos = [photo for photos in PHOTOS.values() for photo in photos]
    coco_file(root / file, photos)
    for photo in photos:
        draw(root / folder, photo)
    return root


def yolo(root: Path, form: str = "images/{}", names: str = "list", lists: bool = False) -> Path:
    """Ultralytics' layout: six decimals, as its writers give."""
    described: dict[str, Any] = {"names": dict(enumerate(NAMES)) if names == "dict" else [*NAMES]}
    for split, photos in PHOTOS.items():
        images = root / form.format(split)
        paths = [draw(images, photo) for photo in photos]
        labels = root / form.format(split).replace("images", "labels")
        labels.mkdir(parents=True)
        for stem, w, h, objects in photos:
            rows = ""
            for kind, x, y, width, height in objects:
                shares = ((x + width / 2) / w, (y + height / 2) / h, width / w, height / h)
                rows += f"{kind} {' '.join(f'{share:.6f}' for share in shares)}\n"
            if rows:  # no file for a photo without objects, as is usual
                (labels / f"{stem}.txt").write_text(rows)
        described[split] = form.format(split)
        if lists:
            described[split] = f"{split}.txt"
            (root / f"{split}.txt").write_text("".join(f"./{path.relative_to(root)}\n" for path in paths))
    (root / "data.yaml").write_text(yaml_format.safe_dump(described))
    return root


def voc_xml(photo: Photo, count_from: int = 1, difficult: tuple[int, ...] = ()) -> str:
    """An XML file of Pascal VOC's."""
    stem, w, h, objects = photo
    text = f"<annotation><filename>{stem}.png</filename><size><width>{w}</width><height>{h}</height></size>"
    for place, (kind, x, y, width, height) in enumerate(objects):
        # The first and the last pixel where they are counted from 1; corners where from 0.
        sides = {"xmin": x + count_from, "ymin": y + count_from, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
        hard = int(place in difficult)
        text += (
            f"<object><name>{NAMES[kind]}</name><difficult>{hard}</difficult><bndbox>{box}</bndbox></object>"
        )
    return f"{text}</annotation>"


def voc(root: Path, count_from: int = 1, lists: bool = True) -> Path:
    """Pascal VOC's layout."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, photos in PHOTOS.items():
        for photo in photos:
            draw(root / "JPEGImages", photo)
            (root / "Annotations" / f"{photo[0]}.xml").write_text(voc_xml(photo, count_from))
        if lists:
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(
                "".join(f"{one[0]}\n" for one in photos)
            )
    return root

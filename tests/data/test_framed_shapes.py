"""The framed set, read by matplotlib's paths: what lies within a frame, and only that, is an object."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from pycocotools.coco import COCO

from fpn.data import scene
from fpn.data.shapes import FRAMED_CATEGORIES, generate_shapes
from fpn.errors import InputError

TRAIN = 60
FRAME = FRAMED_CATEGORIES.ids[-1]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> COCO:
    out = tmp_path_factory.mktemp("data") / "framed"
    generate_shapes(out, train=TRAIN, val=1, scene="framed")
    return COCO(out / "annotations" / "instances_train2017.json")


def _vertices(annotation: dict[str, Any]) -> NDArray[np.float64]:
    return np.array(annotation["segmentation"][0]).reshape(-1, 2)


def _holes(found: list[dict[str, Any]]) -> list[Outline]:
    """Four corners and the first again are the frame from without, as many follow from within."""
    return [Outline(_vertices(a)[5:10]) for a in found if a["category_id"] == FRAME]


def test_categories_are_the_plain_ones_and_the_frame(coco: COCO) -> None:
    assert tuple(coco.cats) == FRAMED_CATEGORIES.ids
    assert coco.cats[FRAME]["name"] == "frame"
    assert {a["category_id"] for a in coco.anns.values()} == set(FRAMED_CATEGORIES.ids)


def test_objects_lie_within_frames(coco: COCO) -> None:
    for image in coco.imgs:
        found = coco.loadAnns(coco.getAnnIds(image))
        holes = _holes(found)
        for annotation in found:
            if annotation["category_id"] != FRAME:
                # A sharp tip covers little of its pixels, which may be the stroke's.
                assert any(
                    all(hole.contains_points(_vertices(annotation), radius=sign * 2.5))
                    for hole in holes
                    for sign in (1, -1)  # which way grows it depends on its turn
                )


def test_shapes_without_are_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is painted and not annotated lies without."""
    painted: list[tuple[float, float]] = []
    paint = scene._paint

    def painting(rng: Any, canvas: Any, drawn: Any, x: int, y: int) -> None:
        painted.append(tuple((drawn.outline + np.array((x, y))).ravel().round(2)))
        paint(rng, canvas, drawn, x, y)

    monkeypatch.setattr(scene, "_paint", painting)
    without = within = 0
    for index in range(20):
        painted.clear()
        _, found = scene.draw_framed_scene(np.random.default_rng([1, index]), index, 256)
        holes, objects = _holes(found), {tuple(a["segmentation"][0]) for a in found}
        assert len(objects) == len(found) <= len(painted)
        assert objects <= set(painted)
        for outline in set(painted) - objects:
            centre = np.reshape(outline, (-1, 2)).mean(axis=0)
            assert not any(hole.contains_point(centre) for hole in holes)
            without += 1
        within += len(found)
    assert min(without, within) > 100


def test_frames_are_whole_and_apart(coco: COCO) -> None:
    sizes = []
    for image, size in coco.imgs.items():
        frames = [a for a in coco.loadAnns(coco.getAnnIds(image)) if a["category_id"] == FRAME]
        for frame in frames:
            x, y = _vertices(frame).T
            assert x.min() > -1 < y.min()
            assert x.max() < size["width"] + 1
            assert y.max() < size["height"] + 1
            sizes.append(np.sqrt(np.prod(frame["bbox"][2:])))
            (x, y), (x_next, y_next) = (turn.T for turn in (_vertices(frame)[:4], _vertices(frame)[1:5]))
            enclosed = abs((x * y_next - x_next * y).sum()) / 2
            assert frame["area"] == pytest.approx(enclosed, rel=0.02)
        holes = _holes(frames)
        assert not any(one.intersects_path(other) for one in holes for other in holes if one is not other)
        assert len(frames) <= 2
    assert 0.4 * 192 - 1 < min(sizes) < 0.5 * 192
    assert 0.8 * 192 < max(sizes) < 193


def test_shapes_are_small_and_many(coco: COCO) -> None:
    found = [a for a in coco.anns.values() if a["category_id"] != FRAME]
    sizes = np.sqrt([np.prod(a["bbox"][2:]) for a in found])
    assert sizes.min() > 5
    assert sizes.max() < 49
    assert np.median(sizes) < 20
    assert len(found) > 10 * TRAIN


def test_an_image_without_a_frame_has_shapes_and_no_object() -> None:
    index = scene.EMPTY_EVERY // 2
    pixels, found = scene.draw_framed_scene(np.random.default_rng(0), index, 256)
    assert not found
    assert pixels.std() > 20


def test_the_sets_are_told_apart(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "set", train=1, val=1, scene="framed")
    generate_shapes(tmp_path / "set", train=1, val=1, scene="framed")
    with pytest.raises(InputError, match="shapes of other parameters"):
        generate_shapes(tmp_path / "set", train=1, val=1)

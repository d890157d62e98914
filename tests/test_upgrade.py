"""Configurations with the names of earlier versions, as this one has them."""

from typing import Any

import pytest

from fpn.data.options import ImageOptions
from fpn.errors import InputError
from fpn.upgrade import upgraded

COCO = "fpn.data.datamodule.CocoDataModule"
SHAPES = "fpn.data.datamodule.ShapesDataModule"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"root": "here", "batch_size": 4}, {"root": "here", "batch_size": 4}),
        (
            {"train_images": "a", "train_annotations": "b", "val_proposals": None},
            {"train": {"images": "a", "annotations": "b"}, "val": {"proposals": None}},
        ),
        ({"short_side": 96, "max_side": 160}, {"images": {"short_side": 96, "max_side": 160}}),
        # The limit had one default for all sides.
        ({"short_side": 600}, {"images": {"short_side": 600, "max_side": 1333}}),
        (
            {"size_factor": 0.5, "test_size_factors": [0.5, 1], "train_size_factors": None},
            {"images": {"scale": 0.5, "test_scales": [0.5, 1], "train_scales": []}},
        ),
        (
            {"train_short_sides": [640, 672, 800], "rounding": "nearest", "train_size_factors": None},
            {
                "images": {
                    "train_scales": [0.8, 0.84, 1.0],
                    "scale_max_side": False,
                    "rounding": "nearest",
                }
            },
        ),
        ({"train_short_sides": None}, {"images": {"train_scales": []}}),
        (
            {"short_side": 400, "max_side": 700, "train_short_sides": [200]},
            {"images": {"short_side": 400, "max_side": 700, "train_scales": [0.5], "scale_max_side": False}},
        ),
        (
            {"images": {"scale": 2.0}, "train": {"images": "a"}},
            {"images": {"scale": 2.0}, "train": {"images": "a"}},
        ),
    ],
)
def test_options_of_the_data_are_in_groups(old: dict[str, Any], new: dict[str, Any]) -> None:
    rest = {"model": {"short_side": 3}, "trainer": {}}
    for one, other in (
        (old, new),
        ({"init_args": old}, {"init_args": new}),
        ({"class_path": COCO, "init_args": old}, {"class_path": COCO, "init_args": new}),
    ):
        assert upgraded({"data": one, **rest}) == {"data": other, **rest}
        assert upgraded({"data": other, **rest}) == {"data": other, **rest}
    dotted = upgraded({f"data.{name}": value for name, value in old.items()})
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        _, *path, last = name.split(".")
        place = nested
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    assert nested == new
    ImageOptions(**new.get("images", {}))


def test_sides_of_shapes_are_shares_of_what_is_drawn() -> None:
    for arguments, scale in (({}, 0.5), ({"long_side": 512}, 0.25)):
        old = {"class_path": SHAPES, "init_args": {"train_short_sides": [128], **arguments}}
        images = {"train_scales": [scale], "scale_max_side": False}
        assert upgraded({"data": old})["data"]["init_args"] == {"images": images, **arguments}


def test_what_has_no_successor_is_refused() -> None:
    with pytest.raises(InputError, match=r"both data\.images\.train_scales now"):
        upgraded({"data": {"train_short_sides": [640], "train_size_factors": [1, 2]}})


@pytest.mark.parametrize("config", [{}, {"data": None}, {"data": SHAPES}, {"data": {"class_path": SHAPES}}])
def test_nothing_to_change(config: dict[str, Any]) -> None:
    assert upgraded(config) == config


def test_pictures_of_a_dashboard_are_among_its_panels() -> None:
    pictures = {"class_path": "fpn.lit.wandb.DetectionPictures", "init_args": {"number": 3}}
    other = {"class_path": "fpn.lit.callbacks.Throughput"}
    panels = pictures | {"class_path": "fpn.lit.callbacks.Panels"}
    assert upgraded({"trainer": {"callbacks": [other, pictures]}}) == {
        "trainer": {"callbacks": [other, panels]}
    }
    assert upgraded({"trainer": {"callbacks": None}}) == {"trainer": {"callbacks": None}}

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fpn.errors import InputError
from fpn.evaluation import evaluate_proposals, score_boxes
from fpn.evaluation.inputs import read_truth

TRUTH: dict[str, Any] = {
    "images": [{"id": 5}, {"id": 6}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 0, 8, 8], "area": 60, "iscrowd": 0}
    ],
}
RESULT: dict[str, Any] = {"image_id": 5, "category_id": 3, "bbox": [0, 0, 8, 8], "score": 0.5}


def refused(annotations: Any, results: Any, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        score_boxes(annotations, results)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such annotations file", "check the path"]),
        (b"{", ["not a JSON file", "COCO annotations file"]),
        (b"\xff\xfe{", ["not a JSON file"]),
        (b"[" * 100_000, ["not a JSON file"]),
        (b"[]", ["a list, not an object"]),
        (b'{"images": [], "annotations": []}', ["'categories'", "missing"]),
        (b'{"images": {}, "annotations": [], "categories": []}', ["'images'", "an object"]),
    ],
)
def test_annotation_files_that_are_not_coco(tmp_path: Path, content: bytes | None, parts: list[str]) -> None:
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_bytes(content)
    refused(path, [], "truth.json", *parts)
    refused(str(path), [], "truth.json", *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such results file", "check the path"]),
        (b"", ["not a JSON file", "COCO results file"]),
        (b'{"annotations": []}', ["an object", "not a list of objects"]),
        (
            b'[{"image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1], "score": NaN}]',
            ["'score' of entry 0 is nan, not a finite number"],
        ),
    ],
)
def test_results_files_that_are_no_results(tmp_path: Path, content: bytes | None, parts: list[str]) -> None:
    path = tmp_path / "found.json"
    if content is not None:
        path.write_bytes(content)
    refused(TRUTH, path, "found.json", *parts)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path, [], str(tmp_path), "readable")


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the last of `path` where the others lead."""
    *keys, last, value = path

    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last = path

    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in keys:
            place = place[key]
        del place[last]

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (drop("images", 0, "id"), ["images: 'id' of entry 0 is missing"]),
        (put("images", 1, "id", 5), ["images: 'id' of entry 1 is 5, which an earlier one has"]),
        (put("images", 1, "id", "5"), ["images: 'id' of entry 1 is '5', which an earlier one has"]),
        (put("images", 1, "id", ""), ["images: 'id' of entry 1 is '', not an integer or a string"]),
        (put("images", 1, "id", True), ["images: 'id' of entry 1 is True, not an integer"]),
        (put("images", 1, "id", 1e300), ["images: 'id' of entry 1", "not an integer"]),
        (put("images", 1, 7), ["'images' is not a list of objects: entry 1 is a number"]),
        (drop("categories", 0, "name"), ["categories: 'name' of entry 0 is missing"]),
        (drop("annotations", 0, "image_id"), ["annotations: 'image_id' of entry 0 is missing"]),
        (drop("annotations", 0, "category_id"), ["annotations: 'category_id' of entry 0 is missing"]),
        (drop("annotations", 0, "bbox"), ["annotations: 'bbox' of entry 0 is missing"]),
        (put("annotations", 0, "bbox", [1, 2, 3]), ["'bbox' of entry 0 is [1, 2, 3], not four numbers"]),
        (put("annotations", 0, "image_id", 9), ["'image_id' of entry 0 is 9, which is not listed"]),
        (put("annotations", 0, "category_id", 9), ["'category_id' of entry 0 is 9, which is not"]),
        (put("annotations", 0, "area", "six"), ["'area' of entry 0 is 'six', not a number"]),
        (put("annotations", 0, "area", float("nan")), ["'area' of entry 0 is nan, not a finite number"]),
        (put("annotations", 0, "bbox", [0, 0, float("inf"), 8]), ["'bbox' of entry 0", "not four finite"]),
        (put("annotations", 0, "iscrowd", "no"), ["'iscrowd' of entry 0 is 'no', not 0 or 1"]),
        (put("annotations", 0, "iscrowd", 2), ["'iscrowd' of entry 0 is 2, not 0 or 1"]),
    ],
)
def test_annotations_that_cannot_be_scored(change: Callable[[Any], None], parts: list[str]) -> None:
    data = copy.deepcopy(TRUTH)
    change(data)
    refused(data, [], "annotations", *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (drop("image_id"), ["'image_id' of entry 1 is missing"]),
        (drop("category_id"), ["'category_id' of entry 1 is missing"]),
        (drop("bbox"), ["'bbox' of entry 1 is missing"]),
        (drop("score"), ["'score' of entry 1 is missing"]),
        (put("image_id", 5.5), ["'image_id' of entry 1 is 5.5, not an integer"]),
        (put("bbox", [0, 0, float("nan"), 1]), ["'bbox' of entry 1 is [0, 0, nan, 1], not four finite"]),
        (put("bbox", [0, 0, float("inf"), 1]), ["finite"]),
        (put("bbox", [0, 0, 10**400, 1]), ["not four numbers"]),
        (put("bbox", [0, 0, "one", 1]), ["not four numbers"]),
        (put("bbox", 4), ["'bbox' of entry 1 is 4"]),
        (put("bbox", list(range(5000))), ["'bbox' of entry 1 is [0, 1"]),
        (put("score", float("inf")), ["'score' of entry 1 is inf, not a finite"]),
        (put("score", "high"), ["'score' of entry 1 is 'high', not a number"]),
    ],
)
def test_results_that_cannot_be_scored(change: Callable[[Any], None], parts: list[str]) -> None:
    entry = copy.deepcopy(RESULT)
    change(entry)
    refused(TRUTH, [RESULT, entry], "results: ", *parts)


def test_unknown_images_are_counted_and_both_files_named(tmp_path: Path) -> None:
    annotations, results = tmp_path / "truth.json", tmp_path / "found.json"
    annotations.write_text(json.dumps(TRUTH))
    results.write_text(json.dumps([RESULT | {"image_id": 100 + i % 7} for i in range(30)]))
    refused(annotations, results, "found.json", "7 (100, 101, 102, …)", "truth.json")
    with pytest.raises(InputError, match=re.escape("7 (100")):
        evaluate_proposals(annotations, results)


def test_results_of_what_is_not_listed_are_left_out_and_told(tmp_path: Path) -> None:
    results = [
        RESULT,
        RESULT | {"image_id": 77},
        RESULT | {"category_id": "dog"},
        RESULT | {"category_id": 8},
    ]
    with pytest.warns(UserWarning, match="ids: ") as told:
        scores = score_boxes(TRUTH, results).overall
    assert scores == pytest.approx(score_boxes(TRUTH, [RESULT]).overall, nan_ok=True)
    lines = [str(one.message) for one in told]
    assert "image ids: 1 (77) not in annotations: 1 of 4 results" in lines[0]
    assert "category ids: 2 (dog, 8) not in annotations: 2 of 4 results" in lines[1]


def test_strings_that_spell_an_integer_are_that_integer() -> None:
    data = copy.deepcopy(TRUTH)
    data["images"][0]["id"] = data["annotations"][0]["image_id"] = "5"
    found = [RESULT | {"category_id": "3"}]
    assert score_boxes(data, found).overall == pytest.approx(
        score_boxes(TRUTH, [RESULT]).overall, nan_ok=True
    )


@pytest.mark.parametrize(
    "change",
    [
        put("images", 0, "id", 5.0),
        put("categories", 0, "id", 3.0),
        put("annotations", 0, "image_id", 5.0),
        put("annotations", 0, "iscrowd", None),
        put("annotations", 0, "iscrowd", False),
        drop("annotations", 0, "iscrowd"),
        drop("annotations", 0, "id"),
    ],
)
def test_what_is_written_otherwise_and_means_the_same(change: Callable[[Any], None]) -> None:
    data = copy.deepcopy(TRUTH)
    change(data)
    for one, other in zip(read_truth(data), read_truth(TRUTH), strict=True):
        assert np.array_equal(one, other)
    found = [RESULT | {"image_id": 5.0}]
    assert score_boxes(data, found).overall == pytest.approx(
        score_boxes(TRUTH, [RESULT]).overall, nan_ok=True
    )


@pytest.mark.parametrize("change", [drop("annotations", 0, "area"), put("annotations", 0, "area", None)])
def test_without_an_area_it_is_the_boxs(change: Callable[[Any], None]) -> None:
    data = copy.deepcopy(TRUTH)
    change(data)
    assert read_truth(data).areas.tolist() == [8 * 8]


def test_numbers_of_numpy_are_numbers() -> None:
    entry = {
        "image_id": np.int64(5),
        "category_id": np.int32(3),
        "bbox": np.array([0, 0, 8, 8], dtype=np.float32),
        "score": np.float32(0.5),
    }
    assert score_boxes(TRUTH, [entry]).overall == pytest.approx(
        score_boxes(TRUTH, [RESULT]).overall, nan_ok=True
    )

"""Whatever a JSON file holds, it is read in full or refused in one line that names it.

Small valid sets are damaged at random; the readers of training, of scoring and of proposals, the
audit and the command line then have to agree on the outcome.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fpn.data.audit import look_at
from fpn.data.coco import read_annotations
from fpn.data.results import proposals_from_results
from fpn.errors import InputError
from fpn.evaluation import evaluate_proposals, inputs, score_boxes
from fpn.lit.cli import main
from fpn.models.rpn import ANCHOR_SIZES

Json = Any

TRUTH: Json = {
    "info": {},
    "images": [
        {"id": 5, "file_name": "a.jpg", "height": 30, "width": 40},
        {"id": 9, "file_name": "b.jpg", "height": 40, "width": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 8, 8.5], "area": 60, "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 7, "bbox": [0, 0, 30, 40], "area": 9, "iscrowd": 1},
        {
            "id": 3,
            "image_id": 5,
            "category_id": 7,
            "bbox": [30.5, 20, 20, 20],
            "segmentation": [[1, 2, 3, 4]],
        },
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}
RESULTS: Json = [
    {"image_id": 5, "category_id": 3, "bbox": [1, 2, 8, 8], "score": 0.5},
    {"image_id": 9, "category_id": 7, "bbox": [0, 0, 10, 8], "score": 0.25},
    {"image_id": 5, "category_id": 7, "bbox": [30.5, 20, 9, 9], "score": 1},
]
NUMBERS = (
    st.sampled_from([0, -1, 1, 5, 7, 12.0, 0.5, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64, 10**400])
    | st.integers(-3, 50)
    | st.floats()
)
SCALARS = (
    NUMBERS | st.none() | st.booleans() | st.text(max_size=4) | st.sampled_from(["\ud800", "a\0b", "../a"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(value: Json, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything within a value."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*above, key)
        yield from places(value[key], (*above, key))


@st.composite
def damaged(draw: st.DrawFn, whole: Json) -> Json:
    """The whole with a change or more in it: something lost, replaced, repeated or emptied.

    Every other change is of a number where numbers are free, so that many of the files can be read.
    """
    content = copy.deepcopy(whole)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        change = draw(st.sampled_from(["number"] * 4 + ["replace", "drop", "repeat", "empty"]))
        found = list(places(content))
        if change == "number":
            found = [place for place in found if {"bbox", "area", "score"} & {*place[-2:]}]
        if not found:
            continue
        *above, key = draw(st.sampled_from(found))
        container = content
        for step in above:
            container = container[step]
        if change == "drop":
            del container[key]
        elif change == "repeat" and isinstance(container, list):
            container.extend([copy.deepcopy(container[key])] * draw(st.integers(1, 3)))
        elif change == "empty" and isinstance(container[key], list | dict):
            container[key].clear()
        else:
            container[key] = draw(NUMBERS if change == "number" else ANYTHING)
    return content


def outcome(call: Callable[[], Any], *files: Path) -> Any:
    """What a call returns, or the one line by which it refuses one of the files."""
    try:
        return call()
    except InputError as error:
        message = str(error)
        assert message.splitlines() == [message]
        assert any(str(file) in message for file in files), message
        return message


FUZZ = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.filterwarnings("ignore:.*areas are 0 or less")
@FUZZ
@given(content=damaged(TRUTH) | damaged(TRUTH) | damaged(TRUTH) | ANYTHING)
def test_annotations(tmp_path: Path, content: Json) -> None:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    read = outcome(lambda: read_annotations(path), path)
    report = outcome(lambda: look_at(path, anchor_sizes=ANCHOR_SIZES), path)
    assert not isinstance(report, str), "the audit reads all that is JSON"
    json.dumps(report.as_json(), allow_nan=False)
    scored = outcome(lambda: inputs.read_truth(path), path)

    if isinstance(read, str):
        assert report.refusal == read
    else:
        # Nothing is lost without a word …
        assert len(read.boxes) + read.degenerate == len(content["annotations"])
        assert read.image_ids.tolist() == [image["id"] for image in content["images"]]
        assert np.isfinite(read.boxes).all()
        assert (read.boxes[:, :2] < read.boxes[:, 2:]).all()
        # … the audit says the same …
        assert report.refusal == ""
        found = {key: len(one.items) for key, one in report.findings["annotations"].items()}
        gone = ("not_finite", "negative", "empty", "outside")
        assert sum(found[key] for key in gone) == read.degenerate
        assert report.sizes.overall["objects"] == (~read.crowd).sum()
        assert not any(
            found[key] for key in ("unknown_image", "unknown_category", "duplicate_ids", "malformed")
        )
        # … and so does scoring, but for what no number can be made of.
        assert (report.validation_refusal or None) == (scored if isinstance(scored, str) else None)
        if isinstance(scored, str):
            assert "finite" in scored

    if not isinstance(scored, str):
        assert len(scored.boxes) == len(content["annotations"])
        assert sorted(scored.image_ids) == sorted(image["id"] for image in content["images"])
        if isinstance(read, str):
            # Scoring has no use for these.
            assert any(
                word in read
                for word in ("'id'", "'height'", "'width'", "file_name", "pixels", "empty", "boxes")
            )


@pytest.mark.filterwarnings("ignore:.*(areas are 0 or less|are left out)")
@FUZZ
@given(truth=st.just(TRUTH) | damaged(TRUTH), results=damaged(RESULTS) | damaged(RESULTS) | ANYTHING)
def test_scoring(tmp_path: Path, truth: Json, results: Json) -> None:
    annotations, found = tmp_path / "truth.json", tmp_path / "found.json"
    annotations.write_text(json.dumps(truth))
    found.write_text(json.dumps(results))
    scores = outcome(lambda: score_boxes(annotations, found), annotations, found)
    if not isinstance(scores, str):
        numbers = np.array(list(scores.overall.values()))
        assert (np.isnan(numbers) | ((numbers >= 0) & (numbers <= 1))).all()
        reference = score_boxes(annotations, found, engine="pycocotools").overall
        assert scores.overall == pytest.approx(reference, abs=1e-12, nan_ok=True)
    recall = outcome(lambda: evaluate_proposals(annotations, found), annotations, found)
    assert isinstance(scores, str) or not isinstance(recall, str), "proposals need less than detections"
    out = tmp_path / "found.safetensors"
    number = outcome(lambda: proposals_from_results(found, annotations, out), annotations, found)
    assert isinstance(number, str) or number == len(results)


BROKEN = {
    "nothing": b"",
    "a truncated file": json.dumps(TRUTH).encode()[:200],
    "another encoding": b"\xff\xfe\x00" + json.dumps(TRUTH).encode(),
    "half a letter": json.dumps(TRUTH).encode().replace(b"cat", b"c\xc3"),
    "deep nesting": b"[" * 100_000,
    "deep nesting of a field": json.dumps(TRUTH).encode().replace(b"[1, 2, 8, 8.5]", b"[" * 900 + b"]" * 900),
    "too many digits": b'{"images": [' + b"1" * 5000 + b"]}",
    "a word": b"Infinity",
    "a number": b"-1e999",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_broken_bytes(tmp_path: Path, broken: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path, whole = tmp_path / "broken.json", tmp_path / "whole.json"
    path.write_bytes(broken)
    whole.write_text(json.dumps(RESULTS))
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    for arguments, statuses in (
        (["evaluate", "--annotations", str(path), "--results", str(whole)], {2}),
        (["evaluate", "--annotations", str(tmp_path / "truth.json"), "--results", str(path)], {2}),
        (["evaluate", "--annotations", str(path), "--results", str(whole), "--proposals"], {2}),
        (["proposals", str(path), str(tmp_path / "out.safetensors"), "--annotations", str(whole)], {2}),
        (["audit", "--annotations", str(path)], {1, 2}),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code in statuses
        printed = capsys.readouterr()
        # The audit says first what training would say.
        line = printed.err.splitlines()[-1] if caught.value.code == 2 else printed.out.splitlines()[0]
        assert ".json: " in line
    assert isinstance(outcome(lambda: read_annotations(path), path), str)


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        for call in (
            lambda path=path: read_annotations(path),
            lambda path=path: look_at(path, anchor_sizes=ANCHOR_SIZES),
            lambda path=path: inputs.read_truth(path),
        ):
            assert isinstance(outcome(call, path), str)


def test_what_was_damaged_is_whole_at_first(tmp_path: Path) -> None:
    """Otherwise nothing would be tested."""
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(TRUTH))
    found.write_text(json.dumps(RESULTS))
    assert len(read_annotations(truth).boxes) == 3
    assert look_at(truth, anchor_sizes=ANCHOR_SIZES).validation_refusal == ""
    assert score_boxes(truth, found).overall["AP50"] > 0
    assert proposals_from_results(found, truth, tmp_path / "out.safetensors") == 3

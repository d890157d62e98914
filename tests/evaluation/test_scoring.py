import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn.evaluation import evaluate_proposals, score_boxes, scoring
from fpn.evaluation.engines import Engine
from fpn.evaluation.inputs import read_results, read_truth
from fpn.evaluation.scoring import box_scores, proposal_scores

BOX_KEYS = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
BOX_KEYS += ["AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large"]
AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}
ENGINES: list[Engine] = ["faster", "pycocotools"]


def truth(*objects: dict[str, Any], images: int = 1, categories: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": 10 * number, "name": f"kind {number}"} for number in range(1, categories + 1)],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 10, "iscrowd": 0, **one}
            for number, one in enumerate(objects)
        ],
    }


def found(box: list[float], score: float, image_id: int = 1, category_id: int = 10) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


TWO_OBJECTS = truth(
    {"bbox": [0, 0, 10, 10], "area": 100}, {"bbox": [100, 0, 10, 10], "area": 100}, categories=2
)
# The first fits the first object, the second nothing, the third the other object at an IoU of .62.
THREE_FOUND = [found([0, 0, 10, 10], 0.9), found([50, 0, 10, 10], 0.8), found([100, 0, 10, 6.2], 0.7)]


@pytest.mark.parametrize("engine", ENGINES)
def test_boxes_equal_a_table_made_by_hand(engine: Engine) -> None:
    scores = score_boxes(TWO_OBJECTS, THREE_FOUND, engine=engine).overall

    # At IoU .50, .55 and .60 precision is 1 up to recall .5 (51 of 101 points), then 2/3; above, it ends.
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    expected = dict.fromkeys(BOX_KEYS, math.nan) | {
        "AP": 0.3 * loose + 0.7 * strict,
        "AP50": loose,
        "AP75": strict,
        "AP_small": 0.3 * loose + 0.7 * strict,
        "AR@1": 0.5,
        "AR@10": 0.3 * 1 + 0.7 * 0.5,
        "AR@100": 0.65,
        "AR_small": 0.65,
    }
    assert list(scores) == BOX_KEYS
    assert scores == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_categories_share_the_run_and_keep_those_without_objects() -> None:
    boxes, table, _ = score_boxes(TWO_OBJECTS, THREE_FOUND)

    assert list(table) == ["kind 1", "kind 2"]
    assert table["kind 1"] == pytest.approx({key: boxes[key] for key in BOX_KEYS[:6]}, abs=1e-12, nan_ok=True)
    assert all(math.isnan(value) for value in table["kind 2"].values())


def test_categories_of_one_name_are_told_apart() -> None:
    data = truth(categories=2) | {"categories": [{"id": 3, "name": "fish"}, {"id": 1, "name": "fish"}]}
    assert list(score_boxes(data, []).categories) == ["fish (1)", "fish (3)"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_area_is_the_annotations_not_the_boxs(engine: Engine) -> None:
    data = truth({"bbox": [0, 0, 50, 50], "area": 900})
    boxes = score_boxes(data, [found([0, 0, 50, 50], 1.0)], engine=engine).overall
    proposals = evaluate_proposals(data, [found([0, 0, 50, 50], 1.0)], engine=engine)

    assert boxes["AP_small"] == pytest.approx(1, abs=1e-12)
    assert math.isnan(boxes["AP_medium"])
    assert proposals["AR@100_small"] == 1
    assert math.isnan(proposals["AR@100_medium"])


def test_an_absent_area_is_that_of_the_box_and_an_absent_crowd_flag_is_no() -> None:
    data = truth({"bbox": [0, 0, 50, 50]})
    del data["annotations"][0]["iscrowd"], data["annotations"][0]["id"]
    assert evaluate_proposals(data, [found([0, 0, 50, 50], 1.0)])["AR@100_medium"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_annotation_id_0_can_be_matched(engine: Engine) -> None:
    data = truth({"bbox": [0, 0, 10, 10], "area": 100, "id": 0})
    assert score_boxes(data, [found([0, 0, 10, 10], 1.0)], engine=engine).overall["AR@1"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_found_scores_0_and_nothing_to_find_is_nan(engine: Engine) -> None:
    some = truth({"bbox": [0, 0, 10, 10], "area": 100})
    one = [found([0, 0, 10, 10], 1.0)]

    assert score_boxes(some, [], engine=engine).overall["AP"] == 0
    assert evaluate_proposals(some, [], engine=engine)["AR@1000"] == 0
    for results in ([], one):
        assert all(
            math.isnan(value) for value in score_boxes(truth(), results, engine=engine).overall.values()
        )
        assert all(math.isnan(v) for v in evaluate_proposals(truth(), results, engine=engine).values())
    nothing: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    assert math.isnan(score_boxes(nothing, [], engine=engine).overall["AP"])
    assert math.isnan(evaluate_proposals(nothing, [], engine=engine)["AR@100"])


def recall_by_loops(
    data: dict[str, Any], results: list[dict[str, Any]], limit: int, low: float, high: float
) -> float:
    """Average recall from its definition: each proposal, best first, takes the free object of highest IoU."""

    def iou(a: list[float], b: list[float]) -> float:
        width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        both = max(width, 0) * max(height, 0)
        return both / (a[2] * a[3] + b[2] * b[3] - both)

    hits, objects = 0, 0
    for image, percent in itertools.product(data["images"], range(50, 100, 5)):
        wanted = [
            one["bbox"]
            for one in data["annotations"]
            if one["image_id"] == image["id"] and not one["iscrowd"] and low <= one["area"] <= high
        ]
        objects += len(wanted)
        mine = [one for one in results if one["image_id"] == image["id"]]
        for one in sorted(mine, key=lambda one: -one["score"])[:limit]:
            overlaps = [iou(one["bbox"], box) for box in wanted]
            if overlaps and max(overlaps) >= percent / 100:
                wanted.pop(int(np.argmax(overlaps)))
                hits += 1
    return hits / objects


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_proposal_recall_equals_loops(engine: Engine, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "IMAGES_AT_ONCE", at_once)
    monkeypatch.setattr(scoring, "PROPOSAL_LIMITS", (5, 10, 100))
    random = np.random.default_rng(3)
    objects = [
        {
            "bbox": (random.random(4) * 200 + 1).tolist(),
            "image_id": int(random.integers(1, 10)),
            "category_id": int(random.choice([10, 20])),
            "iscrowd": int(random.random() < 0.2),
        }
        for _ in range(60)
    ]
    for one in objects:
        one["area"] = one["bbox"][2] * one["bbox"][3] * random.choice([0.1, 0.6])
    data = truth(*objects, images=11, categories=2)
    results = [
        {
            "image_id": one["image_id"],
            "bbox": (np.array(one["bbox"]) * random.normal(1, 0.1, 4).clip(0.5)).tolist(),
            "score": float(random.random()),
        }
        for one in objects
        for _ in range(3)
        if one["image_id"] > 2 and not one["iscrowd"]
    ]

    scores = evaluate_proposals(data, results, engine=engine)

    ranges = {"": (0, 1e10), "_small": (0, 1024), "_medium": (1024, 9216), "_large": (9216, 1e10)}
    assert scores == pytest.approx(
        {
            f"AR@{limit}{area}": recall_by_loops(data, results, limit, *ranges[area])
            for limit in (5, 10, 100)
            for area in AREAS
        },
        abs=1e-12,
    )
    assert 0.1 < scores["AR@5"] < scores["AR@100"] < 0.9


@pytest.mark.coco_mini
def test_boxes_equal_pycocotools(annotation_file: Path, made_up: Any, reference: Any) -> None:
    official = dict(zip(BOX_KEYS, reference(made_up).stats, strict=True))

    assert score_boxes(annotation_file, made_up, engine="pycocotools").overall == official
    faster = score_boxes(annotation_file, made_up).overall
    # pycocotools adds np.spacing(1) to the denominators of precision, and recall has none.
    assert faster == pytest.approx(official, abs=1e-15, rel=0)
    assert {key: faster[key] for key in BOX_KEYS[6:]} == {key: official[key] for key in BOX_KEYS[6:]}
    assert 0.1 < official["AP"] < 0.9


@pytest.mark.coco_mini
def test_categories_equal_pycocotools(annotation_file: Path, made_up: Any, reference: Any) -> None:
    precision = reference(made_up).eval["precision"]
    names = {one["id"]: one["name"] for one in json.loads(annotation_file.read_text())["categories"]}
    scores = score_boxes(annotation_file, made_up)
    table = scores.categories

    np.testing.assert_allclose(scores.precision, precision[..., 0, 2], rtol=0, atol=1e-15)
    assert list(table) == [names[id_] for id_ in sorted(names)]
    for k, row in enumerate(table.values()):
        parts = [precision[:, :, k, 0, 2], precision[0, :, k, 0, 2], precision[5, :, k, 0, 2]]
        parts += [precision[:, :, k, area, 2] for area in (1, 2, 3)]
        expected = [part[part > -1].mean() if (part > -1).any() else math.nan for part in parts]
        assert list(row.values()) == pytest.approx(expected, abs=1e-15, rel=0, nan_ok=True)


@pytest.mark.coco_mini
@pytest.mark.parametrize("at_once", [7, 1000])
def test_proposals_equal_pycocotools(
    annotation_file: Path, made_up: Any, reference: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "IMAGES_AT_ONCE", at_once)
    limits = (100, 1000)
    recall = reference(made_up, categories=False, maxDets=list(limits)).eval["recall"]
    official = {
        f"AR@{limit}{area}": recall[:, 0, a, i].mean()
        for i, limit in enumerate(limits)
        for area, a in AREAS.items()
    }

    for engine in ENGINES:
        assert evaluate_proposals(annotation_file, made_up, engine=engine) == official
    assert official["AR@100"] < official["AR@1000"] < 1


@pytest.mark.coco_mini
def test_some_images_equal_pycocotools(annotation_file: Path, made_up: Any, reference: Any) -> None:
    images = [image["id"] for image in json.loads(annotation_file.read_text())["images"]]
    some = images[1::3]
    truth = read_truth(annotation_file)
    found = read_results(made_up, truth, with_categories=True)
    boxes = reference(made_up, imgIds=some).stats
    recall = reference(made_up, categories=False, imgIds=some, maxDets=[10, 100, 1000]).eval["recall"]

    for engine in ENGINES:
        ours = box_scores(truth.restricted_to(some), found, engine=engine).overall
        assert list(ours.values()) == pytest.approx(list(boxes), abs=1e-15, rel=0)
        proposals = proposal_scores(truth.restricted_to(some), found, engine=engine)
        assert proposals["AR@1000"] == recall[:, 0, 0, 2].mean()


@pytest.mark.coco_mini
def test_nothing_is_printed_and_nothing_given_is_changed(
    annotation_file: Path, made_up: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = json.loads(annotation_file.read_text())
    results = made_up[:300]
    before = copy.deepcopy((data, results))
    for engine in ENGINES:
        score_boxes(data, results, engine=engine)
        evaluate_proposals(data, results, engine=engine)

    assert (data, results) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.coco_mini
@pytest.mark.parametrize("kinds", [(10, 20), (20, 10)])
def test_equal_ious_are_settled_by_category_as_in_pycocotools(
    tmp_path: Path, reference: Any, kinds: tuple[int, int]
) -> None:
    # The first proposal fits both objects alike, the second only the left one: if the first takes that, one
    # object is lost.
    left = {"bbox": [8, 0, 10, 10], "area": 100, "id": 1, "category_id": kinds[0]}
    right = {"bbox": [12, 0, 10, 10], "area": 100, "id": 2, "category_id": kinds[1]}
    results = [found([10, 0, 10, 10], 0.9), found([7, 0, 10, 10], 0.8)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth(left, right, categories=2)))
    official = reference(results, categories=False, annotations=path).eval["recall"][:, 0, 0, 2]

    for engine in ENGINES:
        scores = evaluate_proposals(path, results, engine=engine)
        assert scores["AR@100"] == official.mean()
    assert official[0] == {(10, 20): 1.0, (20, 10): 0.5}[kinds]


def test_proposals_of_an_unknown_category_count() -> None:
    data = truth({"bbox": [0, 0, 10, 10], "area": 100})
    proposal = found([0, 0, 10, 10], 1.0, category_id=1)
    assert evaluate_proposals(data, [proposal])["AR@100"] == 1
    del proposal["category_id"]
    assert evaluate_proposals(data, [proposal])["AR@100"] == 1


ANY_IDS = st.sets(
    st.uuids().map(str)
    | st.integers(-(2**130), 2**130)
    | st.sampled_from(["007", "part 7/ü.jpg", "1e3", "-0"]),
    min_size=3,
    max_size=3,
)


@settings(max_examples=30)
@given(
    images=st.sets(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3) | ANY_IDS,
    categories=st.sets(st.integers(2**53, 2**53 + 6), min_size=2, max_size=2) | ANY_IDS,
)
def test_ids_are_names_whatever_they_are(images: set[int | str], categories: set[int | str]) -> None:
    def scored(image_ids: list[int | str], category_ids: list[int | str], engine: Engine) -> list[float]:
        objects = [(0, 0, 5), (0, 1, 40), (1, 1, 8), (2, 0, 100), (2, 1, 30)]
        truth = {
            "images": [{"id": id_} for id_ in image_ids],
            "categories": [{"id": id_, "name": "thing"} for id_ in category_ids],
            "annotations": [
                {
                    "image_id": image_ids[image],
                    "category_id": category_ids[category],
                    "bbox": [1, 2, side, side],
                }
                for image, category, side in objects
            ],
        }
        found = [
            {**one, "bbox": [1, 2, one["bbox"][2] + 1, one["bbox"][3]], "score": 0.9 - 0.3 * (place % 2)}
            for place, one in enumerate(truth["annotations"][1:])
        ]
        found.append({**found[0], "image_id": image_ids[1]})
        boxes = score_boxes(truth, found, engine=engine).overall
        return [*boxes.values(), *evaluate_proposals(truth, found, engine=engine).values()]

    for engine in get_args(Engine):
        expected = scored([1, 2, 3], [1, 2], engine)
        ordered = (
            sorted(ids, key=lambda id_: (isinstance(id_, str), id_))[:3] for ids in (images, categories)
        )
        assert scored(*ordered, engine) == pytest.approx(expected, nan_ok=True)

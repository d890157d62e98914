"""Tables and curves of dashboards, against pycocotools' own numbers."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fpn.evaluation.panels import category_panel, precision_panels
from fpn.evaluation.scoring import score_boxes


def test_curves_are_those_of_pycocotools_and_their_means_its_ap(tmp_path: Path) -> None:
    chance = random.Random(0)
    truth = {
        "images": [{"id": number, "width": 100, "height": 100} for number in range(12)],
        # Nothing is of the last.
        "categories": [{"id": 3 * number, "name": f"c{number}"} for number in range(1, 5)],
        "annotations": [],
    }
    found = []
    for number in range(60):
        x, y, side = (chance.randint(0, 50), chance.randint(0, 50), chance.randint(8, 50))
        one = {"image_id": number % 12, "category_id": 3 * chance.randint(1, 3), "bbox": [x, y, side, side]}
        truth["annotations"].append(one | {"id": number + 1, "area": side * side, "iscrowd": 0})
        if number % 4:
            moved = [x + chance.randint(0, side // 4), y, side, side]
            found.append(one | {"bbox": moved, "score": chance.random()})
    (tmp_path / "truth.json").write_text(json.dumps(truth))

    scores = score_boxes(truth, found)
    pr, *by_category = precision_panels(scores.precision, list(scores.categories))
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    ap, ap50, ap75 = evaluation.stats[:3]
    assert 0.1 < ap < ap50
    for name, expected in (("IoU .50:.95", ap), ("IoU .50", ap50), ("IoU .75", ap75)):
        assert np.mean(pr.lines[name]) == pytest.approx(expected)
    assert pr.x == pytest.approx(evaluation.params.recThrs)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    expected = {"pr_50_by_category": precision[0], "pr_75_by_category": precision[5]}
    expected["pr_50_95_by_category"] = precision.mean(axis=0)
    assert [panel.name for panel in by_category] == list(expected)
    for panel in by_category:
        assert list(panel.lines) == ["c1", "c2", "c3"]
        for place, line in enumerate(panel.lines.values()):
            assert line == pytest.approx(expected[panel.name][:, place])

    table = category_panel(scores.categories)
    assert table.columns == ("category", "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    assert [row[0] for row in table.rows] == ["c1", "c2", "c3", "c4"]
    assert [row[1] for row in table.rows[:3]] == pytest.approx(list(precision.mean(axis=(0, 1))[:3]))
    assert table.rows[3][1:] == (None,) * 6
    assert not any(isinstance(cell, float) and math.isnan(cell) for row in table.rows for cell in row)


def test_data_without_objects_have_no_curves() -> None:
    panels = precision_panels(np.full((10, 101, 2), -1.0), ["a", "b"])
    assert [panel.lines for panel in panels] == [{}] * 4
    assert category_panel({}).rows == []

"""The page by itself, of made-up results: that it says what is so, of any categories, and loads nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import page_of
from PIL import Image
from torchvision.io import write_jpeg

from fpn.evaluation.inputs import GroundTruth, Results, read_results, read_truth
from fpn.evaluation.scoring import box_scores
from fpn.lit.cli import main
from fpn.report import Reported, write_report
from fpn.report.examples import extremes

IMAGES = 6


def test_no_image_is_both_best_and_worst() -> None:
    truth, _ = read(["a"])
    assert extremes(truth, [0.0] * IMAGES) == ([0, 1, 2], [3, 4, 5])
    assert extremes(truth, [0.5, None, 0.9, 0.1, 0.2, 0.3]) == ([2, 0], [3, 4])


def made_up(names: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    random = np.random.default_rng(0)
    objects, found = [], []
    for number in range(60):
        width, height = random.uniform(10, 60, 2).tolist()
        box = [*random.uniform(0, 60, 2).tolist(), width, height]
        image, category = number % IMAGES, 1 + number % len(names)
        objects.append({"image_id": image, "category_id": category, "bbox": box, "area": width * height})
        other = 1 + int(random.integers(len(names)))
        entry = {"image_id": image, "bbox": box, "score": float(random.random())}
        found.append(entry | {"category_id": category if number % 3 else other})
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 128, "height": 120} for i in range(IMAGES)]
    categories = [{"id": 1 + k, "name": name} for k, name in enumerate(names)]
    return {"images": images, "categories": categories, "annotations": objects}, found


def read(names: list[str]) -> tuple[GroundTruth, Results]:
    content, found = made_up(names)
    truth = read_truth(content)
    return truth, read_results(found, truth, with_categories=True)


def test_names_of_all_kinds(tmp_path: Path) -> None:
    names = ["<b>&amp;", '"quoted" & $x^2$', "_hidden", "größe", "</script><script>alert(1)</script>"]
    truth, found = read(names)
    tested = Reported("<&>", truth, found, box_scores(truth, found), settings="a: <&>\n")
    write_report(tested, tmp_path / "report.html", tmp_path / "curves.png")
    page = page_of(tmp_path / "report.html")
    assert page.headings[0] == "<&>"
    assert "a: <&>" in page.text
    counts = np.bincount(truth.category)
    by_name = {row[0]: row for row in page.rows if row and row[0] in names and len(row) == 9}
    assert {name: row[1] for name, row in by_name.items()} == dict(
        zip(names, map(str, counts.tolist()), strict=True)
    )
    assert '"quoted" & $x^2$' in page.text.partition("Precision and recall")[2].partition("Errors")[0]


def test_hundreds_of_categories_fit(tmp_path: Path) -> None:
    truth, found = read([f"category {number}" for number in range(120)])
    tested = Reported("many", truth, found, box_scores(truth, found), found, np.full((IMAGES, 2), 2.0))
    write_report(tested, tmp_path / "report.html", tmp_path / "curves.png")
    page = page_of(tmp_path / "report.html")
    assert "The 100 categories with most errors of 120." in page.text
    assert page.headings[1:6] == ["Scores", "Categories", "Precision and recall", "Errors", "Confusion"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1500


def test_evaluate_makes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content, found = made_up(["a", "b"])
    Path("truth.json").write_text(json.dumps(content))
    Path("run/test").mkdir(parents=True)
    Path("run/test/found.json").write_text(json.dumps(found))
    Path("run/metrics.csv").write_text("step,train/loss,val/AP\n0,2.5,\n9,1.5,\n9,,0.25\n")
    for number in range(IMAGES):
        noise = torch.randint(255, (3, 120, 128), dtype=torch.uint8)
        write_jpeg(noise, f"{number}.jpg")
    words = ["evaluate", "--annotations", "truth.json", "--results", "run/test/found.json"]
    main([*words, "--report", "all.html", "--images", ".", "--score_threshold", "0.2", "--short_side", "240"])
    assert "the report: all.html" in capsys.readouterr().out
    page = page_of(Path("all.html"))
    assert page.headings[-4:] == ["Best", "Worst", "Training", "Settings and versions"]
    assert page.pictures == IMAGES
    assert "scores from 0.2 on" in page.text
    # Twice as large at the input: what was small there has a fourth of the limit's area here.
    areas = np.array([one["area"] for one in content["annotations"]])
    small = {row[0]: row[2] for row in page.rows if len(row) == 6 and row[1] == "small"}
    assert small["size in the image"] == str((areas <= 32**2).sum())
    assert small["size at the input"] == str((areas <= 16**2).sum())
    Path("0.jpg").unlink()  # the best or the worst, perhaps
    main([*words, "--report", "fewer.html", "--images", "."])
    page = page_of(Path("fewer.html"))
    assert page.pictures == 4  # two pairs of five
    assert "size at the input" not in page.text

    main([*words, "--proposals", "--report", "proposals.html"])
    assert page_of(Path("proposals.html")).headings[1:] == ["Proposals", "Training", "Settings and versions"]
    assert Path("proposals_curves.png").is_file()
    with pytest.raises(SystemExit):
        main([*words, "--images", "."])
    assert "give --report" in capsys.readouterr().err

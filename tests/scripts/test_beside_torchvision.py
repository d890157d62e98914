"""Whole trainings beside torchvision's, in small: both sides have the same network, schedule and images."""

import csv
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.functional import hflip

import beside_torchvision
from benchmarks.stages import pairs
from fpn import CocoDataModule, Predictor, load
from fpn.interop.torchvision import from_torchvision
from parity.sampled import Alike, Budget, Images, drawn, network, ours, theirs
from parity.torchvision import rate, read

SMALL = Budget(steps=10, train=6, val=2, batch=2, channels=8, hidden=16, rois=8, proposals=20, long_side=128)


@pytest.mark.filterwarnings("ignore:.*was trained with other settings")
def test_both_sides_train_the_same(tmp_path: Path) -> None:
    """What is not drawn: the first weights, the schedule, the images, and what is made of an image."""
    root = drawn(SMALL, tmp_path / "shapes")
    for outcome in (ours(SMALL, root, 5, tmp_path / "run"), theirs(SMALL, root, 5)):
        assert 0 <= outcome.ap <= 100
        assert outcome.seconds > 0
    run = tmp_path / "run" / "version_0"
    with (run / "metrics.csv").open() as lines:
        rates = [float(row["lr-SGD"]) for row in csv.DictReader(lines) if row["lr-SGD"]]
    assert rates == pytest.approx(
        [rate(SMALL.lr, SMALL.warmup, SMALL.milestone, step) for step in range(SMALL.steps)]
    )
    other, first = network(SMALL, 5), torch.load(tmp_path / "run" / "first.pth", weights_only=True)
    assert all(torch.equal(value, first[name]) for name, value in other.state_dict().items())
    assert all(p.requires_grad for p in other.parameters())
    seen = CocoDataModule(str(root), num_workers=0)
    seen.setup("fit")
    used: Any = seen.train_dataloader()
    images = Images(root)
    assert images.ids == sorted(used.dataset.annotations.image_ids.tolist())

    trained = load(run / "checkpoints" / "last.ckpt")
    with torch.no_grad():  # so that no two boxes score nearly the same
        other.rpn.head.cls_logits.weight.mul_(1000)
        other.roi_heads.box_predictor.cls_score.weight.mul_(20)
    trained.detector.load_state_dict(from_torchvision(other.state_dict()))
    predictor, model = Predictor.of(trained), other.eval()
    for file in sorted((root / "val2017").glob("*.jpg")):
        found = predictor(file)
        with torch.no_grad():
            (expected,) = model([read(file)])
        assert len(expected["boxes"]) > 20
        parts = [expected[name] for name in ("boxes", "scores", "labels")]
        assert len(pairs(parts, [found.boxes, found.scores, found.labels], 1e-3, 1e-5)) == len(parts[0])


def test_their_batches_are_alike_and_take_every_image_in_turn(tmp_path: Path) -> None:
    budget = replace(SMALL, train=12, steps=5)
    images = Images(drawn(budget, tmp_path / "shapes"))
    alike = Alike(images, budget)
    batches = list(alike)
    assert [len(batch) for batch in batches] == [2] * 5
    assert all(len({alike.upright[index] for index in batch}) == 1 for batch in batches)
    assert len(set(chain(*batches))) >= 9  # of the first pass none comes twice


def test_what_is_done_is_passed_over_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    words = [f"--{name}={value}" for name, value in numbers.items()]
    words += ["--out", str(tmp_path), "--seeds", "[3, 5]"]
    for side in ("torchvision", "ours"):
        (tmp_path / f"{side}_3.json").write_text(json.dumps([30.0, 0.5]))
        (tmp_path / f"{side}_5.json").write_text(json.dumps([34.0 if side == "ours" else 32.0, 0.25]))
    beside_torchvision.main(words)
    shown = capsys.readouterr().out
    assert "| torchvision | 30.0, 32.0 | 31.0 ± 1.4 | 0.375 |" in shown
    assert "| ours | 30.0, 34.0 | 32.0 ± 2.8 | 0.375 |" in shown
    assert "+1.0 ± 2.2 (standard error)" in shown  # √(2 / 2 + 8 / 2), of variances over numbers
    with pytest.raises(SystemExit):
        beside_torchvision.main([*words, "--steps=9"])
    assert "has results of another budget" in capsys.readouterr().err


def test_their_images_are_mirrored_with_their_boxes(tmp_path: Path) -> None:
    """Half of the time, and nothing else; boxes enclose what they did."""
    root = drawn(SMALL, tmp_path / "shapes")
    images = Images(root)
    torch.manual_seed(0)
    seen = [images[0] for _ in range(12)]
    kinds = {target["boxes"].sum().item(): (image, target["boxes"]) for image, target in seen}
    (one, boxes), (other, mirrored) = kinds.values()
    assert torch.equal(hflip(one), other)
    width = one.shape[2]
    expected = [[width - x2, y1, width - x1, y2] for x1, y1, x2, y2 in boxes.tolist()]
    torch.testing.assert_close(mirrored, torch.tensor(expected))

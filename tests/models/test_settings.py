"""Numbers that make no sense are refused by the command line, in one line with the option's name."""

from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from fpn import InputError
from fpn.checkpoints import build_detector
from fpn.lit.cli import main
from fpn.lit.schedule import Schedule

SMALL = {
    "bottom_up": {"name": "resnet10", "norm": "batch", "width": 2},
    "neck": {"channels": 4},
    "roi_head": {"head": {"hidden": 4}},
}
FAST = {"class_path": "fpn.FastRCNN"}


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("training_proposals.pre_nms_top_n", [0, -1], 1),
        ("testing_proposals.post_nms_top_n", [0, -1], 1),
        ("training_proposals.nms_iou", [-0.1, 1.1, float("nan")], 1.0),
        ("training_proposals.min_size", [-1], 0),
        ("detections.max_detections", [-1], 0),
        ("detections.score_threshold", [-0.1, 70], 0.0),
        ("anchor_sampling.per_image", [0, -1], 1),
        ("anchor_sampling.fg_fraction", [-1, 2], 1.0),
        ("anchor_sampling.crowd_overlap", [70], None),
        ("roi_sampling.per_image", [0, -1], 1),
        ("roi_sampling.foreground_iou", [50], 0.5),
        ("rpn_box_loss.beta", [-1], 0),
        ("roi_box_loss.beta", [-1], 0),
        ("rpn_loss_per_image", [0], None),
        ("bottom_up.width", [0], 1),
        ("bottom_up.frozen_stages", [-1, 6], 5),
        ("bottom_up.stages", [0, 5], 4),
        ("neck.channels", [0], 1),
        ("rpn.ratios", [[], [1.0, 0.0]], [1.0]),
        ("rpn.sizes", [{2: []}, {2: [-8]}, {}], {2: [8], 3: [8], 4: [8], 5: [8]}),
        ("rpn.size_factor", [0], 0.5),
        ("rpn.box_weights", [[1, 1, 1, 0]], [1, 1, 1, 1]),
        ("roi_head.resolution", [0], 1),
        ("roi_head.canonical_size", [0, -224], 56),
        ("roi_head.head.hidden", [0], 1),
        ("roi_head.box_weights", [[10, 10, -5, 5]], [1, 1, 1, 1]),
        ("FAST training_top_n", [-1], 0),
        ("FAST testing_top_n", [-1], 0),
    ],
)
def test_a_number_out_of_its_bounds_is_named(name: str, wrong: list[Any], right: Any) -> None:
    base: list[dict[str, Any]] = [FAST, SMALL] if name.startswith("FAST") else [SMALL]
    keys = name.removeprefix("FAST ").split(".")

    def nested(value: Any) -> dict[str, Any]:
        for key in reversed(keys):
            value = {key: value}
        return dict(value)

    for value in wrong:
        with pytest.raises((ArgumentError, InputError)) as caught:
            build_detector([*base, nested(value)], 3)
        message = str(caught.value).partition("Got value:")[0]
        assert keys[-1] in message
        assert str(caught.value).count(keys[0]) or keys[0] in message
    build_detector([*base, nested(right)], 3)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("steps", [0, -5], 1),
        ("reference_images", [0], 1),
        ("length", [0.0, -1.0, float("nan")], 1e-6),
        ("milestones", [[-1, 5]], (0,)),
        ("warmup_steps", [-1], 0),
    ],
)
def test_a_schedule_out_of_bounds_is_named(name: str, wrong: list[Any], right: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule)
    for value in wrong:
        with pytest.raises(ArgumentError, match=name):
            parser.parse_args([f"--schedule.{name}={value}"])
    given = list(right) if isinstance(right, tuple) else right
    assert getattr(parser.parse_args([f"--schedule.{name}={given}"]).schedule, name) == right


def test_the_command_line_refuses_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--model.detector.anchor_sampling.per_image", "0"])
    assert caught.value.code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("fpn:")]
    assert "anchor_sampling.per_image is 0: give a number above 0" in line

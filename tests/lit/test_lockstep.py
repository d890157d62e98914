"""`fpn fit` step by step beside another's own model in a plain loop."""

import json
from pathlib import Path

import pytest

import lockstep as script
from fpn import InputError
from parity.plan import Plan, selected
from parity.training import Compared, lockstep

SMALL = {"images": 10, "short_side": 64, "proposals": 32, "channels": 64, "hidden": 64}


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # nothing is validated
@pytest.mark.parametrize(
    ("peer", "network", "double"),
    [
        ("torchvision", "resnet10", False),
        pytest.param("torchvision", "resnet10", True, marks=pytest.mark.long),
        ("detectron2", "resnet18", False),
    ],
)
def test_training_is_the_peers(peer: str, network: str, double: bool, tmp_path: Path) -> None:
    """Twenty steps over four epochs, of which the first four warm up and the last six are at a tenth.

    Of the weights, the norm of the difference counts over the norm of the change, of all tensors together and
    of the one where it is most.
    """
    if peer == "detectron2":
        pytest.importorskip("detectron2.modeling", exc_type=ImportError)
    found = lockstep(Plan(peer, 20, network=network, double=double, **SMALL), tmp_path)  # type: ignore[arg-type]
    assert len(found.losses) == 20
    assert found.first(20).keys() == {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
    assert max(found.first(20).values()) < (1e-5 if double else 1e-3)
    assert found.weights < (1e-5 if double else 1e-3)
    assert found.worst < (1e-5 if double else 1e-2)
    assert found.detections == 800
    assert found.matched >= (800 if double else 792)
    assert found.fell[1] < 0.9 * found.fell[0]
    assert found.agree
    assert f"| roi_box | {found.first(20)['roi_box']:.1e} |" in script.report(found, "as above")


def test_drawn_images_have_objects_and_no_crowds(tmp_path: Path) -> None:
    """Which some of forty have not, and some have: conventions' own matter."""
    data = selected(Plan(images=40), tmp_path)
    name = "annotations/instances_train2017.json"
    drawn, kept = (json.loads((root / name).read_text()) for root in (tmp_path / "drawn", data))
    with_objects = {one["image_id"] for one in drawn["annotations"] if not one["iscrowd"]}
    assert any(one["iscrowd"] for one in drawn["annotations"])
    assert len(with_objects) < len(drawn["images"])
    assert {image["id"] for image in kept["images"]} == with_objects
    assert not any(one["iscrowd"] for one in kept["annotations"])


def test_bad_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="steps 9: give an even number"):
        Plan(steps=9)
    with pytest.raises(SystemExit) as ended:
        script.main(["--steps", "9"])
    assert ended.value.code == 2
    assert "steps 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "weights", "matched"), [(2e-3, 1e-3, 800), (1e-6, 2e-2, 800), (1e-6, 1e-3, 700)]
)
def test_those_that_come_apart_are_told(
    loss: float, weights: float, matched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(plan: Plan, folder: Path) -> Compared:
        return Compared([{"rpn_box": 0.0}, {"rpn_box": loss}], weights, weights, matched, 800, (3.0, 2.0))

    monkeypatch.setattr(script, "lockstep", found)
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 1

"""`fpn fit` step by step beside torchvision's own model in a plain loop."""

from pathlib import Path

import pytest

from fpn import InputError
from lockstep import Plan, lockstep, main, report

SMALL = {"images": 10, "network": "resnet10", "short_side": 64, "proposals": 32, "channels": 64, "hidden": 64}


@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.long)])
def test_training_is_the_peers(double: bool, tmp_path: Path) -> None:
    """Twenty steps over four epochs, of which the first four warm up and the last six are at a tenth.

    Of the weights, the norm of the difference counts over the norm of the change, of all tensors together and
    of the one where it is most.
    """
    found = lockstep(Plan(20, double=double, **SMALL), tmp_path)  # type: ignore[arg-type]
    assert len(found.losses) == 20
    assert found.first(20).keys() == {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
    assert max(found.first(20).values()) < (1e-5 if double else 1e-3)
    assert found.weights < (1e-5 if double else 1e-3)
    assert found.worst < (1e-5 if double else 1e-2)
    assert found.detections == 800
    assert found.matched >= (800 if double else 792)
    assert found.fell[1] < 0.9 * found.fell[0]
    assert f"| roi_box | {found.first(20)['roi_box']:.1e} |" in report(found, "as above")


def test_bad_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="steps 9: give an even number"):
        Plan(9)
    with pytest.raises(SystemExit) as ended:
        main(["--steps", "9"])
    assert ended.value.code == 2
    assert "steps 9" in capsys.readouterr().err

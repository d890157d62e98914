"""The comparison with Detectron2's own code, run small where that can be imported."""

import sys
from functools import partial
from pathlib import Path

import pytest

import parity_detectron2 as script
from fpn import load_detectron2
from fpn.models.losses import SmoothL1
from parity.plan import Plan, selected
from parity.training import peer_of


def test_without_detectron2_one_line_tells_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.delitem(sys.modules, "parity.detectron2", raising=False)
    with pytest.raises(SystemExit) as ended:
        script.main([])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("parity_detectron2.py: Detectron2 cannot be imported")
    assert "PYTHONPATH" in line


def test_ours_does_as_detectron2(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("detectron2.modeling", exc_type=ImportError)
    script.main(["--short_side", "64", "--steps", "8"])
    out = capsys.readouterr().out
    assert "| 200 of 200 |" in out
    assert " of 82 | " in out
    assert "`python scripts/lockstep.py --peer=detectron2 --steps=8 " in out
    assert "detections matched" in out


def test_another_loss_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("detectron2.modeling", exc_type=ImportError)
    plan = Plan("detectron2", images=2, short_side=64)
    root = selected(plan, tmp_path)
    for arguments in ({}, {"rpn_box_loss": SmoothL1}):
        monkeypatch.setattr(script, "load_detectron2", partial(load_detectron2, **arguments))  # type: ignore[arg-type]
        peer = peer_of(plan, root, config="rpn_R_50_FPN_1x", frozen=1)
        assert script.once(peer, plan, root, 2000).agree is not bool(arguments)

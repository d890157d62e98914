"""`fpn export` through the real command line."""

from pathlib import Path

import pytest

from fpn import Predictor, load
from fpn.deploy import OnnxPredictor
from fpn.lit.cli import main


@pytest.mark.long
def test_a_checkpoint_becomes_a_file_that_finds_the_same(
    unbroken: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    checkpoint = unbroken / "checkpoints" / "last.ckpt"
    main(["export", str(checkpoint)])
    assert "MB written to last.onnx" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["last.onnx"]
    predictor, other = Predictor.of(load(checkpoint)), OnnxPredictor("last.onnx")
    for image in sorted((shapes / "val2017").iterdir()):
        expected, found = predictor(image), other(image)
        assert found.scores == pytest.approx(expected.scores.numpy(), abs=1e-4)
        assert sorted(found.names) == sorted(expected.names)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["absent.ckpt"], "absent.ckpt"),
        (
            ["own.ckpt", "--output", "own.ckpt"],
            "output own.ckpt: --format onnx makes a file",
        ),
        (["own.ckpt", "--output", "own.pt2"], "(.onnx of onnx, .pt2 of torch_export)"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", *words])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line

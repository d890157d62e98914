"""TensorBoard's files, read back by TensorBoard."""

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fpn.evaluation.panels import CurvesPanel
from fpn.lit import lightning_cli
from fpn.lit.cli import main
from fpn.lit.tensorboard import TensorBoard


def read(folder: Path) -> EventAccumulator:
    (file,) = folder.glob("events.*")
    return EventAccumulator(str(file)).Reload()


def test_a_run_and_its_test(config: str) -> None:
    main(["fit", "--config", config, "--config", "tensorboard"])
    run = Path("runs/tiny/version_0")
    names = {"config.yaml", "metrics.csv", "checkpoints"}
    assert {path.name for path in run.iterdir() if not path.name.startswith("events.")} == names
    events = read(run)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in set(rows[0]) - {"step"}:
        logged = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        shown = events.Scalars(name)
        assert [one.step for one in shown] == [step for step, _ in logged], name
        assert [one.value for one in shown] == pytest.approx([value for _, value in logged], nan_ok=True)
    images = events.Tags()["images"]
    assert sum(name.startswith("val/pictures/image 10000") for name in images) == 5
    assert {"val/pr", "val/pr_50_by_category", "val/pr_75_by_category"} <= set(images)
    (text,) = events.Tensors("val/categories/text_summary")
    assert "| category | AP | AP50" in text.tensor_proto.string_val[0].decode()
    (text,) = events.Tensors("config/text_summary")
    assert "batch_size: 2" in text.tensor_proto.string_val[0].decode()

    main(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt"), "--config", "tensorboard"])
    events = read(run / "test")
    assert "test/AP" in events.Tags()["scalars"]
    assert "test/pr" in events.Tags()["images"]


class OwnLogger(MLFlowLogger):
    """As a user's may derive from one of Lightning's."""


@pytest.mark.parametrize(
    ("added", "line"),
    [
        (["--config", "tensorboard"], "TensorBoard needs tensorboard, {}'fpn[tensorboard]'"),
        (["--trainer.logger+=lightning.pytorch.loggers.MLFlowLogger"], "MLFlowLogger needs mlflow, {}mlflow"),
        ([f"--trainer.logger={__name__}.OwnLogger"], "OwnLogger needs mlflow, {}mlflow"),
        (
            ["--trainer.logger=lightning.pytorch.loggers.CometLogger"],
            "CometLogger needs comet_ml, {}comet-ml",
        ),
    ],
)
def test_without_the_package(
    added: list[str],
    line: str,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lightning_cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", config, *added])
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1] == f"fpn: {line.format('which is not installed: pip install ')}"


def test_a_category_may_have_any_name(tmp_path: Path) -> None:
    """A dollar begins a formula in matplotlib, and a line of a name with _ is not in the legend."""
    board = TensorBoard(str(tmp_path))
    lines = {"$5 bill_$": [1.0, 0.5], "_hidden": [0.5, 0.25]}
    board.show_curves("curves", CurvesPanel("curves", "$US_1_$", "x", "y", [0.0, 1.0], lines), 0)
    board.finalize("success")
    assert read(tmp_path).Tags()["images"] == ["curves"]

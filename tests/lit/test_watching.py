"""Scores that callbacks watch."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from lightning.pytorch import Callback, LightningModule, Trainer

from fpn.lit.cli import main
from fpn.lit.module import DetectionModule

RUN = Path("runs/tiny/version_0")


def watching(kind: str, **options: object) -> str:
    return json.dumps([{"class_path": f"lightning.pytorch.callbacks.{kind}", "init_args": options}])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed.splitlines()[-1]


def test_the_names_in_docs_and_help_are_those_of_a_run(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / "docs/metrics.md").read_text()
    listed = set(re.findall(r"`((?:val|train)/[^`…]+)`", text.partition("\nA test has")[0]))
    main(["fit", "--config", config])
    with (RUN / "metrics.csv").open() as file:
        logged = {name for name in next(csv.reader(file)) if name.startswith(("val/", "train/"))}
    assert listed == logged
    capsys.readouterr()
    main(["fit", "--help", "all"])
    told = " ".join(capsys.readouterr().out.split()).partition("Callbacks may watch ")[2].partition(".")[0]
    assert set(told.split(", ")) == logged | {"epoch", "step"}


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (
            "EarlyStopping",
            {"monitor": "val_loss"},
            "monitor is val_loss, which is never logged; there are val/AP, ",
        ),
        (
            "ModelCheckpoint",
            {"monitor": "val/mAP"},
            "monitor is val/mAP, which is never logged; there are val/AP, ",
        ),
        (
            "ModelCheckpoint",
            {"filename": "{val/mAP:.2f}"},
            "filename is val/mAP, which is never logged; there ",
        ),
        (
            "EarlyStopping",
            {"monitor": "val/AP_large"},
            "monitor is val/AP_large, which is NaN: the validation ",
        ),
    ],
)
def test_what_is_no_score_is_refused_at_the_start(
    kind: str, options: dict[str, str], told: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "fit", "--config", config, "--trainer.callbacks", watching(kind, **options))
    assert line.startswith(f"fpn: {kind}: {told}")
    assert "val/proposal_AR@1000" in line or "NaN" in line
    assert not (RUN / "metrics.csv").exists()


class Own(Callback):
    """Logs a score of its own, or promises to."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("own/score", float(trainer.global_step > 4))


@pytest.mark.filterwarnings("ignore:(?s).*Unable to serialize")  # the device among SWA's defaults
@pytest.mark.parametrize(
    ("name", "option", "told"),
    [
        ("GradientAccumulationScheduler", ["scheduling", "{0: 2}"], "give trainer.accumulate_grad_batches"),
        ("StochasticWeightAveraging", ["swa_lrs", "0.01"], "use fpn.lit.callbacks.EMA"),
    ],
)
def test_callbacks_that_would_do_harm_are_refused(
    name: str, option: list[str], told: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--trainer.callbacks+=lightning.pytorch.callbacks.{name}"]
    words += [f"--trainer.callbacks.{option[0]}", option[1]]
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, *words])
    assert told in capsys.readouterr().err


def test_what_a_callback_logs_may_be_watched(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = json.loads(watching("ModelCheckpoint", monitor="own/score", mode="max", filename="own"))
    own.append({"class_path": f"{__name__}.Own"})
    main(["fit", "--config", config, "--trainer.callbacks", json.dumps(own)])
    assert (RUN / "checkpoints/own.ckpt").is_file()
    own[0]["init_args"]["monitor"] = "own/scores"
    line = refused(capsys, "fit", "--config", config, "--trainer.callbacks", json.dumps(own))
    assert "ModelCheckpoint(monitor='own/scores')` could not find the monitored key" in line
    assert "val/AP" in line


def test_nan_is_never_the_best(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three validations, the first and the last have no number."""
    original = DetectionModule.scores

    def scores(self: DetectionModule, split: Any) -> dict[str, float]:
        value = 0.25 if self.trainer.global_step == 4 else float("nan")
        return original(self, split) | {"val/AP": value}

    monkeypatch.setattr(DetectionModule, "scores", scores)
    keep = watching("ModelCheckpoint", monitor="val/AP", mode="max", filename="{val/AP:.2f}")
    given = ["--trainer.val_check_interval=2", "--trainer.num_sanity_val_steps=0", "--trainer.max_steps=5"]
    main(["fit", "--config", config, *given, "--trainer.callbacks", keep])
    # A name with a slash makes a folder, as Lightning's documentation has it.
    names = {str(path.relative_to(RUN / "checkpoints")) for path in RUN.rglob("*.ckpt")}
    assert names == {"best.ckpt", "last.ckpt", "val/AP=0.25.ckpt"}
    assert torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 4
    assert "best AP 25.0 at step 4" in capsys.readouterr().out

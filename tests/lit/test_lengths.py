"""Trainings that are told in epochs of one's own images, through the real command line."""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from lit_runs import kept
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from fpn.checkpoints import build_detector, start_from
from fpn.errors import InputError
from fpn.lit.cli import main
from fpn.lit.lengths import displaced_epochs
from fpn.lit.schedule import Schedule
from fpn.shipped import config_file
from fpn.words import spelled_out

RUNS = Path("runs/tiny")
QUIET = ["--trainer.limit_val_batches", "0"]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["fit", *words])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def steps_of(version: int) -> int:
    step: int = kept(RUNS / f"version_{version}", "last")["global_step"]
    return step


@pytest.mark.parametrize(
    ("schedule", "images", "per_epoch", "by_hand"),
    [
        # The paper's 80,000, 60,000 and 500 in 12 epochs of 50 steps: of 600, three quarters and a 160th.
        (Schedule(epochs=12), 2, 50, (600, (450,), 4)),
        (Schedule(epochs=12), 16, 7, (84, (63,), 1)),
        # Neither steps nor length count, only the shares.
        (
            Schedule(steps=100, milestones=(75, 90), warmup_steps=5, length=0.04, epochs=20),
            2,
            30,
            (600, (450, 540), 30),
        ),
        (Schedule(steps=3, milestones=(1,), warmup_steps=0, epochs=1), 5, 1, (1, (0,), 0)),
    ],
)
def test_epochs_are_stretched_to_by_hand(
    schedule: Schedule, images: int, per_epoch: int, by_hand: tuple[int, tuple[int, ...], int]
) -> None:
    planned = schedule.lasting(images, per_epoch).at(images)
    assert (planned.steps, planned.milestones, planned.warmup_steps) == by_hand
    with pytest.raises(ValueError, match="epochs"):
        schedule.at(images)


def test_it_ends_with_the_last_epoch_at_any_number_of_images_a_step(
    config: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten images: by 2 five steps an epoch; by 3, of 2 batches each, 3 batches and so two steps."""
    cases = [
        (["--epochs", "2"], 10, "2 epochs of 10 images, which are 10 steps of 2 images, warm-up of 5,"),
        (["--epochs=1", "--data.batch_size", "5"], 2, "1 epochs of 10 images, which are 2 steps of 5 images"),
        (
            ["--epochs", "2", "--data.batch_size", "3", "--trainer.accumulate_grad_batches", "2"],
            4,
            "2 epochs of 10 images, which are 4 steps of 6 images",
        ),
        (
            ["--epochs", "3", "--trainer.limit_train_batches", "2"],
            6,
            "3 epochs of 10 images, which are 6 steps",
        ),
        ([], 4, "0.8 epochs of 10 images, which are 4 steps of 2 images"),
    ]
    for version, (words, steps, told) in enumerate(cases):
        caplog.clear()
        main(["fit", "--config", config, *QUIET, *words])
        assert steps_of(version) == steps
        assert told in caplog.text
    rows = list(csv.DictReader((RUNS / "version_0/metrics.csv").read_text().splitlines()))
    rates = [float(row["lr-PaperSGD"]) for row in rows if row.get("lr-PaperSGD")]
    # Milestone 3 of 4 steps is 7.5 of 10, which rounds to 8; the last two steps have a tenth.
    assert rates[-2:] == pytest.approx([0.002, 0.002])
    assert rates[-3] == pytest.approx(0.02)


def test_what_goes_on_is_what_was_not_interrupted(config: str) -> None:
    whole = [*QUIET, "--epochs", "2"]
    main(["fit", "--config", config, *whole])
    main(["fit", "--config", config, *whole, "--trainer.max_steps", "3"])
    last = str(RUNS / "version_1/checkpoints/last.ckpt")
    # The files have steps, which would take the place of the checkpoint's epochs: as with any option.
    main(["fit", "--config", config, *whole, "--ckpt_path", last])
    ours, theirs = (kept(RUNS / f"version_{n}", "last") for n in (2, 0))
    assert ours["global_step"] == theirs["global_step"] == 10
    assert all(torch.equal(ours["state_dict"][k], v) for k, v in theirs["state_dict"].items())
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]


STEPS, EPOCHS, BOTH, LENGTH = (
    {"model": {"schedule": one}}
    for one in ({"steps": 4}, {"epochs": 2}, {"epochs": 2, "steps": 4}, {"length": 2.0})
)


@pytest.mark.parametrize(
    ("contents", "words", "steps"),
    [
        ([STEPS, EPOCHS], [], False),
        ([EPOCHS, STEPS], [], True),
        ([STEPS, BOTH, {}, None, {"model": None}], [], False),
        ([EPOCHS], ["--model.schedule.steps", "9"], True),
        ([EPOCHS], ["--model.schedule={steps: 9}"], True),
        ([STEPS, LENGTH], ["--epochs", "3"], False),
        ([STEPS], ["--model.schedule.length", "0.5"], False),
        ([EPOCHS, LENGTH, STEPS], [], True),
        ([EPOCHS, LENGTH], ["--epochs=3"], False),
        ([EPOCHS], ["--model.schedule.milestones", "[1]"], False),
        ([EPOCHS, {"model": {"schedule": {"epochs": None, "length": 2}}}], [], False),
    ],
)
def test_what_is_given_last_is_meant(contents: list[object], words: list[str], steps: bool) -> None:
    assert (displaced_epochs(contents, spelled_out(words)) == 2) is steps


def test_steps_given_last_are_told_and_contradictions_refused(
    config: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(EPOCHS))
    files = ["--config", config, "--config", "mine.yaml", *QUIET]
    main(["fit", *files, "--model.schedule.steps", "3"])
    assert steps_of(0) == 3
    assert "this run counts steps, which are given last, and not its 2 epochs" in caplog.text
    both = refusal(capsys, *files, "--epochs", "2", "--model.schedule.steps", "3")
    assert both == "fpn: --epochs and --model.schedule.steps both say how long it trains: give one"
    length = refusal(capsys, *files, "--model.schedule.length", "0.5")
    assert length.startswith(
        "fpn: model.schedule.length multiplies steps, and this run counts epochs: give --ep"
    )
    assert "schedule.epochs" in refusal(capsys, *files, "--epochs", "0")
    assert not Path(RUNS / "version_1").exists()


def test_a_study_of_so_many_epochs_tests_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is given to it goes to `fpn test` as well, which has no --epochs."""
    monkeypatch.chdir(tmp_path)
    main(["ablate", "table1", "--rows", "c", "--data", "shapes", "--dry-run", "--", "--epochs", "2"])
    fit, test = (line for line in capsys.readouterr().out.splitlines() if " -m fpn " in line)
    assert " fit " in fit
    assert " test " in test
    assert all(line.endswith(" --model.schedule.epochs 2") for line in (fit, test))


def test_fine_tuning_begins_with_all_but_the_head(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The shipped file, with a smaller detector of torchvision's, and what it offers in comments taken."""
    monkeypatch.chdir(tmp_path)
    name = "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"  # of that name, the norms' epsilon is 0
    peer = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), 91)
    torch.save(peer.state_dict(), name)
    main(["configs", "--copy", "finetune"])
    before, offer, after = Path("finetune.yaml").read_text().partition("\n#  callbacks+:")
    Path("finetune.yaml").write_text(before + f"{offer}{after}".replace("\n#", "\n"))
    small = [
        *("--model.detector.bottom_up.name", "resnet18", "--data.images.short_side", "96"),
        *("--model.detector.roi_head.head.hidden", "16", "--trainer.num_sanity_val_steps", "0"),
        *("--trainer.accelerator", "cpu", "--data.num_workers", "0", "--trainer.limit_val_batches", "1"),
        *("--epochs", "1", "--data.batch_size", "5"),
    ]
    main(["fit", "--config", "finetune.yaml", "--model.start_from", name, "--data.root", str(shapes), *small])
    assert f"bottom_up, neck, rpn: weights of {name}; roi_head: new" in caplog.text
    assert "1 epochs of 10 images, which are 2 steps of 5 images" in caplog.text
    assert "other settings" not in caplog.text
    (last,) = Path("runs").glob("*/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    stem = "detector.bottom_up.layer1.0.conv1.weight"
    # Averaged, though it is not trained.
    torch.testing.assert_close(checkpoint["state_dict"][stem], peer.backbone.body.layer1[0].conv1.weight.data)
    head = checkpoint["state_dict"]["detector.roi_head.head.shared.scores.weight"]
    assert len(head) == 11
    assert "current_model_state" in checkpoint
    assert any(re.match("EarlyStopping", name) for name in checkpoint["callbacks"])


PUBLISHED = {
    "v2": ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"),
    "mobilenet": ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth"),
    "mobilenet_320": (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
    ),
}


@pytest.mark.parametrize("which", PUBLISHED)
def test_fine_tuning_may_begin_with_any_of_torchvisions(which: str, tmp_path: Path) -> None:
    make, name = PUBLISHED[which]
    theirs = getattr(detection, make)(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), tmp_path / name)
    files = (config_file(file) for file in ("finetune", f"interop/torchvision_{which}"))
    rows = [yaml.safe_load(file.read_text())["model"]["detector"] for file in files]
    start = start_from(build_detector(rows, 3), tmp_path / name, ["bottom_up", "neck", "rpn"])
    assert (start.copied, start.new) == (["bottom_up", "neck", "rpn"], ["roi_head"])
    assert not start.other
    with pytest.raises(InputError, match=r"does not fit this detector"):  # v1's
        start_from(build_detector(rows[:1], 3), tmp_path / name, ["neck"])


@pytest.mark.long
def test_a_mobilenet_is_fine_tuned_and_tested(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The two shipped files, as the documentation has them."""
    monkeypatch.chdir(tmp_path)
    make, name = PUBLISHED["mobilenet_320"]
    theirs = getattr(detection, make)(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), name)
    words = ["--config", "finetune", "--config", "interop/torchvision_mobilenet_320"]
    words += ["--data.label_gaps", "false", "--data.root", str(shapes), "--model.start_from", name]
    words += ["--trainer.num_sanity_val_steps", "0", "--trainer.accelerator", "cpu", "--epochs", "1"]
    words += ["--data.num_workers", "0", "--trainer.limit_val_batches", "1", "--data.batch_size", "5"]
    main(["fit", *words, "--data.images.short_side", "96"])
    assert f"bottom_up, neck, rpn: weights of {name}; roi_head: new" in caplog.text
    assert "other settings" not in caplog.text
    (last,) = Path("runs").glob("*/version_0/checkpoints/last.ckpt")
    kept = torch.load(last, weights_only=True)["state_dict"]
    for layer, frozen in (("6.block.0.0", True), ("16.0", False)):
        before = theirs.backbone.body.get_submodule(layer).weight
        assert torch.equal(kept[f"detector.bottom_up.{layer}.weight"], before) == frozen
    main(["test", "--ckpt_path", str(last), "--trainer.limit_test_batches", "1"])

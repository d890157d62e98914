"""The losses of validation images, by the real command line and by hand."""

import csv
from pathlib import Path

import pytest
import torch
from processes import together

import fpn
from fpn.data.samplers import sample_seed
from fpn.lit.cli import main

NAMES = ("loss", "rpn_objectness", "rpn_box", "roi_class", "roi_box")


HERE = ("--trainer.logger.init_args.save_dir", "runs")  # and not beside the checkpoint, which others read too


def logged(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["val/AP"]]


def test_validation_losses_are_means_over_the_images(
    config: str, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(unbroken / "checkpoints" / "last.ckpt")
    trained = fpn.load(checkpoint)
    batches = []
    losses = type(trained.detector).losses
    monkeypatch.setattr(
        type(trained.detector), "losses", lambda *given: (batches.append(given[1]), losses(*given))[1]
    )
    words = ["--config", config, "--ckpt_path", checkpoint, *HERE, "--data.eval_batch_size", "2"]
    main(["validate", *words])
    (row,) = logged(Path("runs/tiny/version_0"))
    assert [len(batch.images) for batch in batches] == [2, 2, 1]
    sums = dict.fromkeys(NAMES, 0.0)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            chance = torch.Generator().manual_seed(sample_seed(0, number, 0))
            parts = losses(trained.detector.eval(), batch, chance)
            for name, value in {"loss": sum(parts.values(), torch.zeros(())), **parts}.items():
                sums[name] += float(value) * len(batch.images)
    expected = {name: total / 5 for name, total in sums.items()}
    assert {name: float(row[f"val/{name}"]) for name in NAMES} == pytest.approx(expected, rel=1e-4)
    assert all(expected.values())


def test_they_can_be_left_out_and_change_no_score(config: str, unbroken: Path) -> None:
    checkpoint = str(unbroken / "checkpoints" / "last.ckpt")
    main(["validate", "--config", config, "--ckpt_path", checkpoint, *HERE])
    main(["validate", "--config", config, "--ckpt_path", checkpoint, *HERE, "--model.val_losses", "false"])
    with_, without = (logged(Path(f"runs/tiny/version_{n}"))[0] for n in range(2))
    assert float(with_["val/loss"]) > 0
    assert not [name for name in without if name.startswith("val/") and name.removeprefix("val/") in NAMES]
    assert {name: with_[name] for name in without} == without


def test_two_processes_with_unlike_shares_have_the_mean_of_one(config: str, unbroken: Path) -> None:
    """Three images and two. All that can be is sampled, so that chance has no part."""
    words = [
        "validate",
        "--config",
        config,
        "--ckpt_path",
        str(unbroken / "checkpoints" / "last.ckpt"),
        *HERE,
    ]
    for sampling in ("anchor_sampling", "roi_sampling"):
        words += [f"--model.detector.{sampling}.per_image", "1000000"]
        words += [f"--model.detector.{sampling}.fg_fraction", "1.0"]
    main(words)
    together(words)
    one, two = (logged(Path(f"runs/tiny/version_{n}"))[0] for n in range(2))
    for name in NAMES:
        assert float(two[f"val/{name}"]) == pytest.approx(float(one[f"val/{name}"]), rel=1e-5)

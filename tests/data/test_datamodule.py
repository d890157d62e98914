"""The data module through real Trainers: what each process sees, in which order, also after a restart."""

import inspect
import json
import logging
import os
import re
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from processes import together
from torch import Tensor, nn

from fpn.data.audit import compare, look_at
from fpn.data.datamodule import CocoDataModule, ShapesDataModule
from fpn.data.options import ImageOptions, Split
from fpn.data.proposals import Stamp, file_hash, write_proposals
from fpn.data.shapes import CATEGORIES
from fpn.data.transforms import ImageSettings, normalise
from fpn.errors import InputError
from fpn.types import Batch

SMALL: dict[str, Any] = {"images": ImageOptions(32, 48), "num_workers": 0}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def write_split(root: Path, split: str, images: int, names: dict[int, str], empty: int = 0) -> None:
    """Images of alternating orientation with one box each but for the last `empty`, ids from 1."""
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    entries, annotations = [], []
    for image_id in range(1, images + 1):
        width, height = (40, 30) if image_id % 2 else (30, 40)
        pixels = np.full((height, width, 3), image_id, dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{split}2017" / f"{image_id}.png")
        entries.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        if image_id <= images - empty:
            box = {"bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
            annotations.append({"id": image_id, "image_id": image_id, "category_id": min(names), **box})
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """14 training images, of which 13 and 14 are empty, and 5 validation images."""
    write_split(tmp_path / "set", "train", 14, {7: "cat", 2: "dog"}, empty=2)
    write_split(tmp_path / "set", "val", 5, {2: "dog", 7: "cat"})
    return tmp_path / "set"


class Recorder(LightningModule):
    """Learns one number and records every training batch: (epoch, image ids, pixel sum)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, tuple[int, ...], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        weighted = batch.images * torch.arange(batch.images.shape[-1])
        self.seen.append((self.current_epoch, tuple(batch.image_ids), float(weighted.sum())))
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.validated += batch.image_ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(
    root: Path,
    epochs: int,
    resume: Path | None = None,
    workers: int = 0,
    max_unreadable: float = 0.0,
    **trainer: Any,
) -> Recorder:
    recorder = Recorder()
    data = CocoDataModule(str(root), max_unreadable=max_unreadable, **(SMALL | {"num_workers": workers}))
    trainer = {"enable_checkpointing": False} | trainer
    Trainer(max_epochs=epochs, **QUIET, **trainer).fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder


class Interrupt(Callback):
    """Saves in the middle of a training step and stops, as a preempted job does."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_index: int) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def test_epochs_differ_and_a_second_run_is_the_same(root: Path) -> None:
    first, second = train(root, 3), train(root, 3, workers=1)
    assert first.seen == second.seen
    epochs = [[ids for epoch, ids, _ in first.seen if epoch == wanted] for wanted in range(3)]
    assert len({tuple(batches) for batches in epochs}) == 3
    for batches in epochs:
        assert sorted(image for ids in batches for image in ids) == list(range(1, 13))
    assert first.validated == [1, 2, 3, 4, 5] * 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "when",
    [
        {"every_n_train_steps": 8},
        {"every_n_train_steps": 12},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    ],
    ids=["in an epoch", "at the last batch", "after an epoch", "after validation"],
)
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(
    root: Path, tmp_path: Path, when: dict[str, Any], workers: int
) -> None:
    whole = train(root, 3)
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, **when)
    train(root, 2, enable_checkpointing=True, callbacks=[saver])
    for path in (tmp_path / "saved").iterdir():
        done = torch.load(path, weights_only=True)["global_step"]
        resumed = train(root, 3, resume=path, workers=workers)
        assert [ids for _, ids, _ in resumed.seen] == [ids for _, ids, _ in whole.seen[done:]], path.name
        assert [pixels for *_, pixels in resumed.seen] == [pixels for *_, pixels in whole.seen[done:]]


def test_a_run_stopped_within_a_step_repeats_that_step(root: Path, tmp_path: Path) -> None:
    whole = train(root, 3)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(root, 3, callbacks=[Interrupt(tmp_path / "stopped.ckpt", 9)])
    resumed = train(root, 3, resume=tmp_path / "stopped.ckpt", workers=1)
    assert [item[1:] for item in resumed.seen] == [item[1:] for item in whole.seen[9:]]


def test_resuming_with_another_batch_size_warns(root: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2)
    train(root, 1, enable_checkpointing=True, callbacks=[saver], max_steps=2)
    data = CocoDataModule(str(root), batch_size=3, **SMALL)
    trainer = Trainer(max_epochs=1, **QUIET, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="batch_size was 2, is 3"):
        trainer.fit(Recorder(), datamodule=data, ckpt_path=next((tmp_path / "saved").iterdir()))


def test_overfitting_repeats_the_same_batches(root: Path) -> None:
    recorder = train(root, 3, overfit_batches=2)
    assert [item[1:] for item in recorder.seen[:2]] == [item[1:] for item in recorder.seen[2:4]]
    assert len(recorder.seen) == 6


def test_two_processes_share_every_image_exactly(root: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    together([str(root), str(tmp_path), "2"], script=script)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in ("train0", "train1"):
        batches = [seen[epoch] for seen in ranks]
        assert [[len(ids) for ids in own] for own in batches] == [[2, 2, 2], [2, 2, 2]]
        assert sorted(image for own in batches for ids in own for image in ids) == list(range(1, 13))
    assert ranks[0]["train0"] != ranks[0]["train1"]
    for stage in ("val0", "val1", "test2"):
        assert [seen[stage] for seen in ranks] == [[[1, 3], [5]], [[2, 4]]]


def test_lightnings_own_sharding_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CocoDataModule(str(root), **SMALL)
    data.setup("fit")
    data.trainer = Trainer(**QUIET)
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(InputError, match="use_distributed_sampler"):
        data.train_dataloader()


@pytest.mark.parametrize(("keep", "images"), [(False, 12), (True, 14)])
def test_images_without_objects_are_left_out_or_kept_and_counted(
    root: Path, keep: bool, images: int, caplog: pytest.LogCaptureFixture
) -> None:
    data = CocoDataModule(str(root), keep_empty_images=keep, **SMALL)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    assert len(data.train_dataloader()) == images // 2
    fate = "kept" if keep else "left out"
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: COCO 2017: train 14 images, 12 objects, val 5 images, 5 objects",
        f"train: {images} images, 12 objects, 0 crowd regions; 2 images without objects {fate},"
        " 0 degenerate boxes dropped",
        "val: 5 images, 5 objects, 0 crowd regions; 0 images without objects kept,"
        " 0 degenerate boxes dropped",
    ]


def batches(loader: Any) -> Iterator[Batch]:
    yield from loader


def test_testing_takes_the_validation_set_unless_told_otherwise(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = CocoDataModule(str(root), eval_batch_size=2, **SMALL)
    with caplog.at_level("INFO"):
        data.setup("test")
    assert "test (on the validation images): 5 images" in caplog.text
    assert [batch.image_ids for batch in batches(data.test_dataloader())] == [[1, 2], [3, 4], [5]]
    assert data.source("test") == data.source("val")
    folder = root / "train2017"
    annotations = root / "annotations" / "instances_train2017.json"
    other = CocoDataModule(str(root), test=Split(str(folder), str(annotations)), **SMALL)
    caplog.clear()
    with caplog.at_level("INFO"):
        other.setup("test")
    assert "test: 14 images" in caplog.text
    assert [batch.image_ids for batch in batches(other.test_dataloader())] == [[i] for i in range(1, 15)]
    assert other.source("test") == (annotations, folder)


def test_categories_need_no_setup_and_no_training_file(root: Path) -> None:
    assert CocoDataModule(str(root)).categories == ((2, 7), ("dog", "cat"))
    (root / "annotations" / "instances_train2017.json").unlink()
    data = CocoDataModule(str(root), **SMALL)
    assert data.categories == ((2, 7), ("dog", "cat"))
    data.setup("validate")
    assert len(data.val_dataloader()) == 5
    with pytest.raises(InputError, match=r"instances_train2017\.json: no such .* data\.train\.annotations"):
        data.setup("fit")


def test_splits_of_different_categories_are_an_error(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 4, {1: "cat"})
    write_split(tmp_path, "val", 2, {1: "dog", 3: "cat"})
    with pytest.raises(InputError, match=r"id 1 is 'dog' / 'cat'$") as caught:
        CocoDataModule(str(tmp_path), **SMALL).setup("fit")
    for split in ("train", "val"):
        assert str(tmp_path / "annotations" / f"instances_{split}2017.json") in str(caught.value)


def test_shared_ids_of_equal_names_agree(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 4, {0: "", 3: "cat", 5: "dog"})
    path = tmp_path / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    for entry in data["annotations"]:
        entry["category_id"] = 5
    path.write_text(json.dumps(data))
    write_split(tmp_path, "val", 2, {5: "dog", 8: "spare"})
    splits = CocoDataModule(str(tmp_path), **SMALL)
    assert splits.categories == ((3, 5), ("cat", "dog"))
    splits.setup("fit")
    for loader in (splits.train_dataloader(), splits.val_dataloader()):
        assert {
            label for batch in batches(loader) for one in batch.targets or () for label in one.labels.tolist()
        } == {2}
    gapped = CocoDataModule(str(tmp_path), label_gaps=True, **SMALL)
    gapped.setup("validate")
    assert len(gapped.categories.ids) == 5


@pytest.mark.parametrize(
    ("names", "told"),
    [({3: "cat "}, "'cat ' / 'cat'"), ({3: "cat", 5: "dog"}, ""), ({4: "cat"}, "id 4 is 'cat' / absent")],
)
def test_what_an_audit_of_two_files_passes_fit_takes(
    tmp_path: Path, names: dict[int, str], told: str
) -> None:
    write_split(tmp_path, "train", 4, {3: "cat"})
    write_split(tmp_path, "val", 2, names)
    train, val = (tmp_path / "annotations" / f"instances_{split}2017.json" for split in ("train", "val"))
    found = [look_at(file, None, anchor_sizes={2: (8,)}) for file in (train, val)]
    compare(*found)
    audited = found[0].refusal
    assert told in audited
    assert bool(audited) == bool(told)
    try:
        CocoDataModule(str(tmp_path), **SMALL).setup("fit")
        refusal = ""
    except InputError as error:
        refusal = str(error)
    assert refusal == audited


def test_missing_things_are_named_with_their_argument(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: no such image folder; data\.root or data\.val\.images"):
        CocoDataModule(str(root), val=Split(str(tmp_path / "none")), **SMALL).setup("validate")
    with pytest.raises(InputError, match=r"none: no such folder; data\.root .* data\.val\.annotations"):
        _ = CocoDataModule(str(tmp_path / "none")).categories


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", "0"),
        ("eval_batch_size", "0"),
        ("num_workers", "-1"),
        ("max_unreadable", "1.1"),
        ("max_unreadable", "-0.1"),
        ("seed", "-1"),
        ("images.flip_probability", "1.5"),
        ("images.short_side", "0"),
        ("images.scale", "0"),
        ("images.train_scales", "[1, 0]"),
        ("images.test_scales", "[nan]"),
    ],
)
@pytest.mark.parametrize("kind", [CocoDataModule, ShapesDataModule])
def test_impossible_values_are_named(kind: type, option: str, value: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "data")
    with pytest.raises(ArgumentError, match=f"data.{option}"):
        parser.parse_args([f"--data.{option}={value}"])


def test_too_few_images_for_a_step_is_an_input_error(root: Path) -> None:
    data = CocoDataModule(str(root), batch_size=13, **SMALL)
    data.setup("fit")
    with pytest.raises(InputError, match="12 images do not make one batch of 13"):
        data.train_dataloader()


def test_settings_reach_the_images(root: Path) -> None:
    images = ImageOptions(32, 48, train_scales=(1, 2), scale_max_side=False, flip_probability=0.0)
    data = CocoDataModule(str(root), batch_size=1, **(SMALL | {"images": images}))
    data.setup("fit")
    assert data.image_settings.short_side == 32
    sides = {min(batch.sizes[0]) for batch in batches(data.train_dataloader())}
    # max_side wins over the short side of 64: 48 · 30 / 40.
    assert sides == {32, 36}
    assert {min(batch.sizes[0]) for batch in batches(data.val_dataloader())} == {32}


@pytest.mark.parametrize(
    ("arguments", "sides"),
    [
        ({"scale": 0.75}, (600, 1000)),
        ({"short_side": 101, "max_side": 203, "scale": 0.5}, (51, 102)),
        ({"scale": 2.0}, (1600, 2666)),
        ({"short_side": 600}, (600, 1000)),
        ({"short_side": 500, "max_side": 1333}, (500, 1333)),
        ({}, (800, 1333)),
    ],
)
def test_a_size_in_pixels_and_its_scale(arguments: dict[str, Any], sides: tuple[int, int]) -> None:
    data = CocoDataModule(images=ImageOptions(**arguments))
    assert data.image_settings == ImageSettings(*sides)


def test_batches_are_padded_to_multiples(root: Path) -> None:
    data = CocoDataModule(root, images=ImageOptions(32, 48, divisor=40), eval_batch_size=5, num_workers=0)
    data.setup("validate")
    (batch,) = batches(data.val_dataloader())
    for side, longest in zip(batch.images.shape[-2:], map(max, zip(*batch.sizes, strict=True)), strict=True):
        assert side % 40 == 0
        assert 0 <= side - longest < 40


def test_detectron2s_training_sizes_are_exact() -> None:
    images = ImageOptions(train_scales=(0.8, 0.84, 0.88, 0.92, 0.96, 1.0), scale_max_side=False)
    found = [(scale.short_side, scale.max_side) for scale in images.training.scales]
    assert found == [(short, 1333) for short in (640, 672, 704, 736, 768, 800)]


def test_a_factor_reaches_the_images(root: Path) -> None:
    images = ImageOptions(64, 200, scale=0.5, train_scales=(1, 1.5))
    data = CocoDataModule(str(root), batch_size=1, **(SMALL | {"images": images}))
    data.setup("fit")
    assert {min(batch.sizes[0]) for batch in batches(data.train_dataloader())} == {32, 48}
    assert {min(batch.sizes[0]) for batch in batches(data.val_dataloader())} == {32}


def test_factors_change_shapes_of_every_format(tmp_path: Path) -> None:
    """A factor meant for short sides alone too, as the recipe's: the long side decides how large they are."""
    images = ImageOptions(train_scales=(0.5,), scale_max_side=False)
    data = ShapesDataModule(str(tmp_path), 12, 1, long_side=64, images=images, batch_size=1, num_workers=0)
    data.prepare_data()
    data.setup("fit")
    found = [batch.sizes[0] for batch in batches(data.train_dataloader())]
    assert {max(size) for size in found} == {32}
    assert len(set(found)) > 2


def test_factors_are_drawn_for_each_training_image(root: Path) -> None:
    """They multiply the long side's limit too, which would hold a larger image back otherwise."""
    images = ImageOptions(64, 70, train_scales=(0.5, 1.0, 2.0))
    data = CocoDataModule(str(root), batch_size=1, **(SMALL | {"images": images}))
    data.setup("fit")
    found = [max(batch.sizes[0]) for _ in range(4) for batch in batches(data.train_dataloader())]
    assert set(found) == {35, 70, 140}
    assert {max(batch.sizes[0]) for batch in batches(data.val_dataloader())} == {70}


@pytest.mark.parametrize(
    ("images", "side"),
    [(ImageOptions(), 64), (ImageOptions(scale=0.5), 32), (ImageOptions(max_side=48), 48)],
)
def test_shapes_keep_their_size_unless_told_otherwise(
    images: ImageOptions, side: int, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"train_count": 2, "val_count": 2, "long_side": 64, "num_workers": 0}
    data = ShapesDataModule(str(tmp_path / "shapes"), images=images, **arguments)
    data.prepare_data()
    data.setup("test")
    for batch in batches(data.test_dataloader()):
        assert max(batch.sizes[0]) == side
        assert max(batch.original_sizes[0]) == 64


def test_an_image_pyramid_is_for_testing_only(root: Path) -> None:
    pyramid = {"images": ImageOptions(32, 48, test_scales=(0.5, 1.0, 2.0))}
    data = CocoDataModule(str(root), eval_batch_size=2, **(SMALL | pyramid))
    data.setup("fit")
    data.setup("test")
    assert all(isinstance(batch, Batch) for batch in batches(data.val_dataloader()))
    plain = CocoDataModule(str(root), eval_batch_size=2, **SMALL)
    plain.setup("test")
    expected = list(batches(plain.test_dataloader()))
    found: list[Any] = list(data.test_dataloader())
    assert [[batch.image_ids for batch in scales] for scales in found] == [
        [[1, 2]] * 3,
        [[3, 4]] * 3,
        [[5]] * 3,
    ]
    for scales, batch in zip(found, expected, strict=True):
        # 30 × 40 pixels; the long side's limit is 24, 48 and 96.
        assert [min(one.sizes[0]) for one in scales] == [16, 32, 64]
        assert [max(one.sizes[0]) for one in scales] == [21, 42, 85]
        assert torch.equal(scales[1].images, batch.images)
        assert torch.equal(scales[1].targets[0].boxes, batch.targets[0].boxes)


def write_proposal_file(root: Path, split: str, image_ids: range) -> str:
    """Image i has i boxes, (i, 0, i + 1, 10 + j) in pixels of the original, best first."""
    truth = root / "annotations" / f"instances_{split}2017.json"
    path = root / f"{split}.safetensors"
    boxes = [torch.tensor([[i, 0, i + 1, 10 + j] for j in range(i)], dtype=torch.float32) for i in image_ids]
    scores = [torch.linspace(1, 0, len(own)) for own in boxes]
    stamp = Stamp(file_hash(truth), truth.name, "", "hand")
    write_proposals(path, image_ids, boxes, scores, stamp)
    return str(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_proposals_come_with_their_images(root: Path, workers: int) -> None:
    data = CocoDataModule(
        str(root),
        train=Split(proposals=write_proposal_file(root, "train", range(1, 15))),
        val=Split(proposals=write_proposal_file(root, "val", range(1, 6))),
        **(SMALL | {"num_workers": workers}),
    )
    assert data.reads_proposals
    data.setup("fit")
    data.setup("test")
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    flipped = set()
    for split, loader in loaders.items():
        for batch in batches(loader):
            assert batch.proposals is not None
            for image_id, size, original, boxes, target in zip(
                batch.image_ids,
                batch.sizes,
                batch.original_sizes,
                batch.proposals,
                batch.targets or [],
                strict=True,
            ):
                y, x = size[0] / original[0], size[1] / original[1]
                left = image_id * x
                # The true box begins at 1 pixel from the left of the original.
                if bool(len(target.boxes)) and target.boxes[0, 0] != x:
                    left = size[1] - (image_id + 1) * x
                    flipped.add(split)
                expected = [[left, 0, left + x, (10 + j) * y] for j in range(image_id)]
                assert boxes.tolist() == [pytest.approx(box, rel=1e-5) for box in expected]
    assert flipped == {"train"}


def test_proposals_go_with_every_scale(root: Path) -> None:
    path = write_proposal_file(root, "val", range(1, 6))
    images = ImageOptions(30, 48, test_scales=(1.0, 2.0))
    data = CocoDataModule(str(root), test=Split(proposals=path), **(SMALL | {"images": images}))
    data.setup("test")
    scales: Any
    for scales in data.test_dataloader():
        one, two = (batch.proposals[0] for batch in scales)
        assert one.shape == (scales[0].image_ids[0], 4)
        assert torch.equal(two, one * 2)


def test_only_the_same_annotations_pass_on_their_proposals(root: Path) -> None:
    path = write_proposal_file(root, "val", range(1, 6))
    train = root / "train2017", root / "annotations" / "instances_train2017.json"
    other = Split(str(train[0]), str(train[1]))
    data = CocoDataModule(str(root), val=Split(proposals=path), test=other, **SMALL)
    data.setup("test")
    assert all(batch.proposals is None for batch in batches(data.test_dataloader()))
    data = CocoDataModule(str(root), test=Split(proposals=path), **SMALL)
    data.setup("validate")
    assert all(batch.proposals is None for batch in batches(data.val_dataloader()))
    assert not CocoDataModule(str(root), **SMALL).reads_proposals


@pytest.mark.parametrize(("given", "missing"), [("train", "val"), ("val", "train")])
def test_training_needs_the_proposals_of_both_splits(root: Path, given: str, missing: str) -> None:
    path = write_proposal_file(root, given, range(1, 6))
    splits: dict[str, Any] = {given: Split(proposals=path)}
    data = CocoDataModule(str(root), **splits, **SMALL)
    with pytest.raises(
        InputError, match=rf"data\.{missing}\.proposals is not given: .* data\.val\.proposals"
    ):
        data.setup("fit")


def test_proposals_of_something_else_are_refused(root: Path) -> None:
    val = write_proposal_file(root, "val", range(1, 6))
    some = write_proposal_file(root, "train", range(1, 9))
    for path, message in (
        (val, r"val\.safetensors: made for another annotation file, instances_val2017\.json, not"),
        (some, r"train\.safetensors: lacks 4 images of .*instances_train2017\.json, the first of id 9"),
        ("absent.safetensors", "absent.safetensors: no such proposal file"),
    ):
        data = CocoDataModule(str(root), train=Split(proposals=path), val=Split(proposals=val), **SMALL)
        with pytest.raises(InputError, match=message):
            data.setup("fit")


def test_the_same_argument_has_the_same_default_in_both() -> None:
    """Where one class takes the other's place in a configuration, arguments of the same name keep values."""
    coco, shapes = (inspect.signature(kind).parameters for kind in (CocoDataModule, ShapesDataModule))
    assert all(coco[name] == shapes[name] for name in coco if name in shapes)


def test_shapes_are_drawn_once_and_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    data = ShapesDataModule(str(folder), train_count=6, val_count=3, batch_size=3, num_workers=0, seed=4)
    assert data.categories == CATEGORIES
    assert not folder.exists()
    Trainer(max_epochs=1, **QUIET, enable_checkpointing=False).fit(recorder := Recorder(), datamodule=data)
    assert len(recorder.seen) == 2
    assert len(recorder.validated) == 3
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


@pytest.mark.parametrize("kind", [CocoDataModule, ShapesDataModule])
def test_every_argument_shows_its_help(kind: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    text = " ".join(parser.format_help().split())
    described = {
        "batch_size": "Training images per process and step.",
        "images.flip_probability": "mirrored left to right",
        "keep_empty_images": "otherwise they are left out",
        "train.proposals": "Proposal file of these images",
        "images.scale": "0.75 makes 600 of 800",
        "images.test_scales": "a featurized image pyramid",
    }
    for name, help_text in described.items():
        assert f"--data.{name}" in text
        assert help_text in text
    assert all(action.help for action in parser._actions)


def spoil(root: Path, *image_ids: int) -> None:
    """Has training images missing, of another size, and torn, in turn."""
    for place, image_id in enumerate(image_ids):
        path = root / "train2017" / f"{image_id}.png"
        if place % 3 == 0:
            path.unlink()
        elif place % 3 == 1:
            Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(path)
        else:
            path.write_bytes(path.read_bytes()[:40])


def loaded(root: Path, workers: int, share: float, epoch: int = 0) -> list[Batch]:
    data = CocoDataModule(str(root), batch_size=1, max_unreadable=share, **(SMALL | {"num_workers": workers}))
    data.setup("fit")
    loader: Any = data.train_dataloader()
    loader._position = lambda: (epoch, 0)
    return list(batches(loader))


def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(root: Path) -> None:
    whole = loaded(root, 0, 0.0)
    sizes = {batch.image_ids[0]: batch.original_sizes[0] for batch in whole}
    spoil(root, 12, 4, 5)
    # The twelfth is the last with objects: the first follows. The fourth and fifth are replaced by the sixth.
    follows = {12: 1, 4: 6, 5: 6}
    for workers in (0, 2):
        spoiled = loaded(root, workers, 0.25)
        for before, after in zip(whole, spoiled, strict=True):
            (wanted,), (got,) = before.image_ids, after.image_ids
            assert got == follows.get(wanted, wanted)
            assert after.original_sizes == [sizes[got]]
            # All pixels of an image are its id.
            shown = normalise(after, ImageSettings())
            restored = ImageSettings().restore(shown.images[0], after.sizes[0])
            assert set(restored.unique().tolist()) == {got}
            names = [Path(line.partition(":")[0]).name for line in after.unreadable]
            assert names == {12: ["12.png"], 4: ["4.png", "5.png"], 5: ["5.png"]}.get(wanted, [])
            if wanted not in follows:
                assert torch.equal(before.images, after.images)
    told = {line for batch in loaded(root, 0, 0.25) for line in batch.unreadable}
    assert {line.partition(": ")[2].split(" ")[0] for line in told} == {"no", "9", "cannot"}


@pytest.mark.parametrize("workers", [0, 1])
def test_replacements_are_the_same_in_a_resumed_run(root: Path, tmp_path: Path, workers: int) -> None:
    spoil(root, 2, 3)
    more: dict[str, Any] = {"max_unreadable": 0.2}
    whole = train(root, 2, **more)
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, every_n_train_steps=4)
    train(root, 1, enable_checkpointing=True, callbacks=[saver], **more)
    resumed = train(root, 2, resume=tmp_path / "saved" / "step=4.ckpt", workers=workers, **more)
    assert [item[1:] for item in resumed.seen] == [item[1:] for item in whole.seen[4:]]
    assert not {2, 3} & {image for _, ids, _ in whole.seen for image in ids}


@pytest.mark.filterwarnings("ignore:.*takes its place")
@pytest.mark.parametrize(("share", "allowed"), [(0.25, 3), (0.249, 2), (0.0, 0), (0.5, 6), (0.999, 11)])
def test_a_share_of_the_images_is_rounded_down(root: Path, share: float, allowed: int) -> None:
    """Of twelve with objects."""
    data = CocoDataModule(str(root), max_unreadable=share, **SMALL)
    data.setup("fit")
    lines = [f"{i}.png: torn" for i in range(12)]
    with pytest.warns(UserWarning, match="takes its place") if allowed else nullcontext():
        data.note_unreadable(lines[:allowed])
        data.note_unreadable(lines[:allowed])
    names = "; ".join(lines[: min(allowed + 1, 3)]) if allowed else lines[0]
    with pytest.raises(InputError, match=re.escape(names)) as caught:
        data.note_unreadable(lines[: allowed + 1])
    assert allowed == 0 or f"{allowed + 1} of the 12 images" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_to_read_ends_at_once(root: Path, workers: int) -> None:
    spoil(root, *range(1, 13))
    with pytest.raises(InputError, match=r"12 of the 12 images .* cannot be read"):
        loaded(root, workers, 11.99 / 12)


def test_images_to_score_must_be_readable(root: Path) -> None:
    (root / "val2017" / "3.png").write_bytes(b"torn")
    data = CocoDataModule(str(root), max_unreadable=0.9, **SMALL)
    data.setup("fit")
    with pytest.raises(InputError, match=r"3\.png: cannot be decoded"):
        list(batches(data.val_dataloader()))


def test_workers_outlive_the_signals_of_a_cluster(root: Path) -> None:
    data = CocoDataModule(str(root), **(SMALL | {"num_workers": 2}))
    data.setup("validate")
    loader: Any = data.val_dataloader()
    seen = []
    for batch in loader:
        seen += batch.image_ids
        if len(seen) == 1:
            continue  # the second worker may not have begun
        for worker in loader._iterator._workers:
            for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
                os.kill(worker.pid, number)
    # Again, as a persistent worker that was ended would only now be missed.
    seen += [image for batch in loader for image in batch.image_ids]
    assert seen == [1, 2, 3, 4, 5] * 2


@pytest.mark.parametrize("scales", [(), (0.5, 1.0)])
@pytest.mark.parametrize("antialias", [True, False])
def test_batches_come_through_where_shared_memory_has_no_room(
    root: Path, antialias: bool, scales: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may write no file of more than a kilobyte, and shared memory is one."""
    monkeypatch.setattr("fpn.data.loader._LARGE", 1024)
    images = ImageOptions(32, 48, antialias=antialias, test_scales=scales)
    found: list[list[Any]] = []
    for workers, limit in ((0, 0), (1, 0), (1, 1024)):
        data = CocoDataModule(str(root), images=images, eval_batch_size=2, num_workers=workers)
        data.setup("test")
        dataset = data._datasets["test"]
        original = dataset.transform

        def limited(sample: Any, generator: Any, limit: int = limit, original: Any = original) -> Any:
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return original(sample, generator)

        loader = data.test_dataloader()
        dataset.transform = limited
        loaded: list[Any] = list(loader)
        images_of = [one.images for batch in loaded for one in (batch if scales else [batch])]
        assert {own.is_shared() for own in images_of} == {workers > 0 and not limit}
        assert {own.dtype for own in images_of} == {torch.uint8 if antialias else torch.float32}
        found.append([data.on_after_batch_transfer(batch, 0) for batch in loaded])
    for own in (images for batch in found[0] for images in (batch if scales else [batch])):
        assert own.images.dtype == torch.float32
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=0, atol=0)


def test_little_room_in_shared_memory_is_told_at_the_start(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three workers holds two batches of both kinds: 64 x 96 pixels of three channels an image."""
    settings: dict[str, Any] = {
        "images": ImageOptions(60, 90, antialias=True),
        "batch_size": 4,
        "eval_batch_size": 2,
    }
    needed = 3 * 2 * (4 + 2) * 3 * 64 * 96
    for free, workers, told in ((needed, 3, False), (needed - 1, 3, True), (0, 0, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        data = CocoDataModule(str(root), num_workers=workers, **settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data.setup("fit")
            data.setup("fit")
        assert sum("/dev/shm" in str(one.message) for one in caught) == told

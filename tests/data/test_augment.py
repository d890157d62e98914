"""Augmented images: boxes against the paint that they frame, torchvision's own functions, and the loaders."""

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as image_ops

import fpn
from fpn.data.options import ImageOptions
from fpn.data.shapes import generate_shapes
from fpn.data.transforms import Sample
from fpn.described import remade
from fpn.errors import InputError
from fpn.lit.cli import main
from fpn.shipped import config_file
from fpn.types import Batch, Targets

BOXES = torch.tensor([[10.0, 20, 40, 50], [60, 5, 110, 30], [70, 50, 100, 85]])
"""Of an object, a crowd region and a proposal, each painted into a colour of its own."""
SIZE = (96, 128)


def painted() -> Sample:
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    for colour, (x1, y1, x2, y2) in enumerate(BOXES.int().tolist()):
        image[colour, y1:y2, x1:x2] = 255
    return Sample(image, SIZE, SIZE, 1, Targets(BOXES[:1], torch.tensor([7]), BOXES[1:2]), BOXES[2:])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augmented(changes: Sequence[Any], seed: int, sample: Sample | None = None) -> Sample:
    """A sample changed, but neither flipped nor resized: there is nothing to normalise of bytes."""
    side = 10**4
    options = ImageOptions(side, side, antialias=True, flip_probability=0, augment=changes)
    first: Any = options.training
    first = type(first)(first.changes, lambda sample, generator: sample)
    return first(sample or painted(), seeded(seed))


def where_painted(channel: Tensor) -> list[float]:
    rows, columns = (channel > 127).any(dim=1).nonzero(), (channel > 127).any(dim=0).nonzero()
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


def albumentations(*transforms: dict[str, Any]) -> fpn.Albumentations:
    pytest.importorskip("albumentations")
    return fpn.Albumentations(list(transforms))


def recipe() -> tuple[v2.Transform, ...]:
    """Large-scale jitter's transforms, at an eighth of the size."""
    content = yaml.safe_load(config_file("recipes/large_scale_jitter").read_text())
    resize, crop = content["data"]["images"]["augment"]
    assert resize["init_args"]["target_size"] == crop["init_args"]["size"] == [1024, 1024]
    assert [one["class_path"].rpartition(".")[2] for one in (resize, crop)] == ["ScaleJitter", "RandomCrop"]
    options = crop["init_args"] | {"size": (128, 128), "fill": 0}
    return v2.ScaleJitter((128, 128)), v2.RandomCrop(**options)


CHANGES = {
    "mirrored": lambda: [v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(0.5)],
    "cropped": lambda: [v2.RandomCrop((60, 70))],
    "zoomed": lambda: [v2.RandomZoomOut(side_range=(1.0, 2.0)), v2.RandomCrop(90)],
    "jitter": lambda: [*recipe()],
    "affine": lambda: [v2.RandomAffine(0, (0.2, 0.2), (0.7, 1.3))],
    "resized": lambda: [v2.RandomResizedCrop((80, 60)), v2.ColorJitter(0.1)],
    "albumentations": lambda: [
        albumentations(
            {"__class_fullname__": "HorizontalFlip"},
            {"__class_fullname__": "RandomCrop", "height": 60, "width": 70, "p": 1.0},
            {"__class_fullname__": "RandomScale", "scale_limit": 0.4},
            {"__class_fullname__": "Transpose"},
        )
    ],
}


@pytest.mark.parametrize("name", CHANGES)
def test_boxes_of_every_kind_frame_what_they_framed(name: str) -> None:
    changes, kept, left_out = CHANGES[name](), 0, 0
    for seed in range(40):
        sample = augmented(changes, seed)
        assert sample.image.dtype == torch.uint8
        assert type(sample.image) is type(sample.target.boxes) is Tensor
        assert sample.image.shape == (3, *sample.size)
        assert sample.original_size == SIZE
        assert sample.target.labels.tolist() == [7] * len(sample.target.boxes)
        found = (sample.target.boxes, sample.target.crowds, sample.proposals)
        for channel, boxes in zip(sample.image, found, strict=True):
            assert boxes is not None
            if not (channel > 127).any():
                left_out += 1
                # At most a sliver, that is no pixel.
                assert all(float((box[2:] - box[:2]).min()) < 2 for box in boxes)
                continue
            kept += 1
            ((box,), paint) = boxes.tolist(), where_painted(channel)
            assert np.abs(np.subtract(box, paint)).max() <= 1.5, (name, seed)
            assert min(box) >= 0
            assert box[2] <= sample.size[1]
            assert box[3] <= sample.size[0]
    assert kept > 40
    if name in ("cropped", "jitter", "zoomed"):
        assert left_out > 0


def test_boxes_are_those_of_torchvisions_own_functions() -> None:
    sample = augmented([v2.Resize((150, 90)), v2.CenterCrop((100, 60)), v2.RandomHorizontalFlip(1.0)], 0)
    boxes = tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=SIZE)  # type: ignore[call-overload]
    for each in (
        partial(image_ops.resize, size=[150, 90]),
        partial(image_ops.center_crop, output_size=[100, 60]),
        image_ops.horizontal_flip,
    ):
        boxes = each(boxes)
    sane, valid = image_ops.sanitize_bounding_boxes(boxes, min_size=0.01, min_area=1e-4)
    assert sample.proposals is not None
    found = (sample.target.boxes, sample.target.crowds, sample.proposals)
    assert torch.equal(torch.cat(found), sane)
    assert list(map(len, found)) == valid.long().tolist()


def test_a_change_that_changes_nothing_leaves_all_as_it_was() -> None:
    sample, before = augmented([v2.Identity()], 0), painted()
    assert torch.equal(sample.image, before.image)
    assert sample.proposals is not None
    for found, expected in zip((*sample.target, sample.proposals), (*before.target, BOXES[2:]), strict=True):
        assert torch.equal(found, expected)
    assert sample._replace(image=0, target=0, proposals=0) == before._replace(image=0, target=0, proposals=0)


def test_labels_go_with_their_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [50, 40, 70, 60], [120, 90, 128, 96], [60, 45, 64, 50]])
    target = Targets(boxes, torch.tensor([3, 5, 3, 9]), boxes[:0])
    raw = painted()._replace(target=target, proposals=None)
    for changes in (
        [v2.CenterCrop((48, 64))],
        [v2.CenterCrop((48, 64)), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=4)],
    ):
        sample = augmented(changes, 0, raw)
        assert sample.target.labels.tolist() == [5, 9]
        assert sample.target.boxes.tolist() == [[18, 16, 38, 36], [28, 21, 32, 26]]
        assert sample.proposals is None
    none = raw._replace(target=Targets(boxes[:0], target.labels[:0], boxes[:0]))
    assert augmented([v2.RandomIoUCrop(), v2.RandomAffine(30)], 0, none).target.boxes.shape == (0, 4)


class Own(v2.Transform):
    """Draws from everywhere."""

    def forward(self, *inputs: Any) -> Any:
        (sample,) = inputs
        drawn = torch.rand(()), random.random(), np.random.rand()
        return sample | {"image": torch.full((3, 8, 8), float(sum(drawn)) / 3)}


def test_chance_is_the_samples_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    values = [float(augmented([Own()], seed).image[0, 0, 0]) for seed in (1, 2, 1)]
    assert values[0] == values[2] != values[1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    torch.manual_seed(5)
    random.seed(5)
    assert float(augmented([Own()], 1).image[0, 0, 0]) == values[0]


def test_what_albumentations_draws_is_the_samples_and_of_each_transform_its_own() -> None:
    one = albumentations(
        {"__class_fullname__": "HorizontalFlip", "p": 0.5}, {"__class_fullname__": "VerticalFlip", "p": 0.5}
    )
    seen = set()
    for seed in range(40):
        sample = augmented([one], seed)
        assert torch.equal(sample.image, augmented([one], seed).image)
        seen.add(tuple(sample.target.boxes[0].tolist()))
    assert len(seen) == 4


def test_albumentations_are_told_also_where_they_are_made_in_python() -> None:
    library = pytest.importorskip("albumentations")
    made = fpn.Albumentations([library.OneOf([library.MotionBlur(), library.Affine(rotate=(-9, 9))], p=1.0)])
    options = ImageOptions(augment=[made])
    data = fpn.CocoDataModule(images=options)
    assert not data.untold
    (again,) = yaml.safe_load(yaml.safe_dump(data.made_of))["images"]["augment"]
    other = fpn.Albumentations(**again["init_args"])
    for seed in range(5):
        assert torch.equal(augmented([made], seed).image, augmented([other], seed).image)
    with pytest.raises(InputError, match=r"cannot make .*Nope"):
        fpn.Albumentations([{"__class_fullname__": "Nope"}])
    with pytest.raises(InputError, match=r"cannot make .*: there is no argument q"):
        fpn.Albumentations([{"__class_fullname__": "HorizontalFlip", "q": 1}])


def test_albumentations_takes_what_albumentations_writes() -> None:
    """Arguments of a base class among it, of which it warns itself."""
    library = pytest.importorskip("albumentations")
    for transform in (library.PadIfNeeded(320, 320), library.SafeRotate()):
        made = fpn.Albumentations([transform])
        assert augmented([made], 0).image.ndim == 3
    blur = {"__class_fullname__": "Blur", "p": 1.0, "sigm": 1}
    with pytest.raises(InputError, match="there is no argument sigm"):
        fpn.Albumentations([{"__class_fullname__": "OneOf", "transforms": [blur], "p": 1.0}])


def test_without_albumentations_it_is_made_but_not_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpn.data.augment.find_spec", lambda name: None)
    made = fpn.Albumentations([{"__class_fullname__": "HorizontalFlip"}])
    with pytest.raises(InputError, match=r"pip install 'fpn\[albumentations\]'"):
        augmented([made], 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (v2.RandomCrop(500), r"RandomCrop failed on image 1: Required crop size"),
        (v2.ToPILImage(), "ToPILImage gives an image of Image, not a tensor"),
        (v2.Grayscale(), r"Grayscale gives an image of shape \(1, 96, 128\)"),
        (v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]), "normalis"),
        (
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}),
            "neither bytes nor floats from 0 to 1",
        ),
    ],
)
def test_a_bad_transform_ends_in_a_line(change: v2.Transform, words: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.images\.augment: .*{words}[^\n]*$"):
        augmented([change], 0)


def test_what_is_no_transform_is_refused() -> None:
    for wrong in ("flip", lambda sample: sample, partial(dict)):
        with pytest.raises(InputError, match=r"is no transform of torchvision\.transforms\.v2"):
            _ = ImageOptions(augment=[wrong]).training  # type: ignore[list-item]


def loaded(data: fpn.CocoDataModule, epoch: int = 1) -> list[Batch]:
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        current_epoch=epoch,
        global_rank=0,
        world_size=1,
        num_devices=1,
        overfit_batches=0,
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=False),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(is_done=True))),
    )
    data._position = lambda: (epoch, 0)  # type: ignore[method-assign]
    data.setup("fit")
    return list(data.train_dataloader())


def test_workers_load_what_one_process_does_and_testing_sees_nothing(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "shapes", train=8, val=2, long_side=96)
    augment = (partial(v2.ColorJitter, 0.5), v2.RandomIoUCrop, partial(v2.RandomRotation, 10))

    def data(workers: int, **options: Any) -> fpn.CocoDataModule:
        images = ImageOptions(64, 96, **options)
        return fpn.CocoDataModule(str(tmp_path / "shapes"), images=images, num_workers=workers)

    alone, shared = loaded(data(0, augment=augment)), loaded(data(2, augment=augment))
    plain, other = loaded(data(0)), loaded(data(0, augment=augment), epoch=2)
    assert len(alone) == len(shared) == len(plain) == 4
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one.images, two.images)
        assert one.targets is not None
        assert two.targets is not None
        assert all(map(torch.equal, [t.boxes for t in one.targets], [t.boxes for t in two.targets]))
    assert [b.image_ids for b in alone] == [b.image_ids for b in plain] != [b.image_ids for b in other]
    assert all(
        a.images.shape != b.images.shape or not torch.equal(a.images, b.images)
        for a, b in zip(alone, plain, strict=True)
    )
    for split in ("val", "test"):
        batches = []
        for options in ({"augment": augment}, {}):
            module = data(0, **options)
            module.setup("validate" if split == "val" else split)
            batches.append(list(getattr(module, f"{split}_dataloader")()))
        assert all(torch.equal(one.images, two.images) for one, two in zip(*batches, strict=True))


def test_what_a_checkpoint_can_tell() -> None:
    parts = [partial(v2.RandomRotation, 10, expand=True), v2.RandomGrayscale]
    data = fpn.CocoDataModule(images=ImageOptions(augment=parts))
    assert not data.untold
    assert data.made_of["images"]["augment"] == [
        {
            "class_path": "torchvision.transforms.v2.RandomRotation",
            "init_args": {"degrees": 10, "expand": True},
        },
        {"class_path": "torchvision.transforms.v2.RandomGrayscale", "init_args": {}},
    ]
    data = fpn.CocoDataModule(images=ImageOptions(600, augment=[v2.RandomGrayscale()]))
    assert data.untold == ["images.augment"]
    assert data.made_of["images"]["short_side"] == 600
    assert "augment" not in data.made_of["images"]


def test_what_a_transform_refuses_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    jitter = {"class_path": "torchvision.transforms.v2.ColorJitter", "init_args": {"brightness": -1}}
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "quickstart", "--data.images.augment", json.dumps([jitter])])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "fpn: a setting cannot be used: If brightness is a single number, it must be non negative."


@pytest.mark.parametrize(
    "inner",
    ["os.system", {"class_path": "os.system"}, {"class_path": "subprocess.Popen", "init_args": {"args": []}}],
)
def test_a_checkpoint_names_no_function_and_no_process_among_them(inner: Any) -> None:
    given = {"class_path": "torchvision.transforms.v2.RandomApply", "init_args": {"transforms": [inner]}}
    with pytest.raises(InputError, match=r"no class|is nothing that detectors are made of"):
        remade(fpn.CocoDataModule, {"images": {"augment": [given]}}, "a checkpoint")

"""The peers' weights and conventions through the command line."""

import dataclasses
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2_peer import detector_weights
from torch import nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision_peer import peer

from fpn import (
    DETECTRON2_IMAGES,
    FasterRCNN,
    InputError,
    Predictor,
    ProposalNetwork,
    load,
    load_detectron2,
    load_torchvision,
)
from fpn.checkpoints import build_detector
from fpn.data.coco import read_annotations
from fpn.data.decoding import read_image
from fpn.data.transforms import ImageSettings
from fpn.lit.cli import main
from fpn.models.losses import SmoothL1
from fpn.models.mobilenet import MobileNetV3
from fpn.models.postprocess import DetectionSelection, ProposalSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.types import NO_CATEGORY, Categories
from fpn.weights import read_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def given(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return content


def settings(detector: nn.Module) -> dict[str, Any]:
    """All that a detector does besides what its weights say."""
    plain = (bool, int, float, str, tuple, type(None))
    return {
        f"{name}.{key}": value
        for name, module in detector.named_modules()
        for key, value in vars(module).items()
        if (isinstance(value, plain) or dataclasses.is_dataclass(value)) and not key.startswith("_")
    }


def test_detectron2s_conventions_are_the_loaders() -> None:
    with torch.device("meta"):
        row = [given(n)["model"]["detector"] for n in ("base", "conventions/detectron2")]
        configured = build_detector(row, 80)
        # By hand, from Detectron2's documentation of its defaults.
        loaders = FasterRCNN(
            80,
            bottom_up=partial(
                ResNet, "resnet50", weights="IMAGENET1K_V1", stride_in_1x1=True, frozen_stages=2
            ),
            rpn=partial(RegionProposalNetwork, rounded=False, grid="stride"),
            roi_head=partial(RoIHead, sampling_ratio=0, aligned=True, epsilon=0.0),
            anchor_sampling=AnchorSampling(crowd_overlap=None),
            roi_sampling=RoISampling(crowd_overlap=None),
            training_proposals=ProposalSelection(2000, 1000, min_size=1e-30),
            testing_proposals=ProposalSelection(1000, 1000, min_size=1e-30),
            detections=DetectionSelection(min_size=1e-30),
            rpn_box_loss=partial(SmoothL1, beta=0.0),
            roi_box_loss=partial(SmoothL1, beta=0.0),
            rpn_loss_per_image=256,
        )
    assert settings(configured) == settings(loaders)
    data = given("conventions/detectron2")["data"]
    assert (data["images"]["antialias"], data["images"]["rounding"]) == (
        DETECTRON2_IMAGES.antialias,
        DETECTRON2_IMAGES.rounding,
    )


def test_torchvisions_conventions_are_its_own() -> None:
    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        row = [given(n)["model"]["detector"] for n in ("base", "conventions/torchvision")]
        ours = build_detector(row, 90)
    defaults = FasterRCNN(
        90,
        bottom_up=partial(ResNet, "resnet50", weights="IMAGENET1K_V1", frozen_stages=2),
        anchor_sampling=AnchorSampling(crowd_overlap=None),
        roi_sampling=RoISampling(crowd_overlap=None),
    )
    assert settings(ours) == settings(defaults)
    data = given("conventions/torchvision")["data"]
    assert (data["images"]["antialias"], data["images"]["rounding"], data["label_gaps"]) == (
        False,
        "down",
        True,
    )
    rpn, roi, pool = theirs.rpn, theirs.roi_heads, theirs.roi_heads.box_roi_pool
    assert isinstance(ours, FasterRCNN)
    assert ours.rpn.box_weights == rpn.box_coder.weights
    assert ours.roi_head.box_weights == roi.box_coder.weights
    proposals = (ours.training_proposals, ours.testing_proposals)
    assert [p.pre_nms_top_n for p in proposals] == list(rpn._pre_nms_top_n.values())
    assert [p.post_nms_top_n for p in proposals] == list(rpn._post_nms_top_n.values())
    assert {(p.nms_iou, p.min_size) for p in proposals} == {(rpn.nms_thresh, rpn.min_size)}
    found = ours.detections
    assert (found.score_threshold, found.nms_iou) == (roi.score_thresh, roi.nms_thresh)
    assert found.max_detections == roi.detections_per_img
    assert (ours.roi_head.sampling_ratio, ours.roi_head.aligned) == (pool.sampling_ratio, False)
    assert (ours.roi_head.resolution,) * 2 == pool.output_size
    assert (ours.roi_head.canonical_size, ours.roi_head.canonical_level) == (
        pool.canonical_scale,
        pool.canonical_level,
    )
    matcher, sampler = rpn.proposal_matcher, rpn.fg_bg_sampler
    anchors = ours.anchor_sampling
    assert (anchors.foreground_iou, anchors.background_iou) == (matcher.high_threshold, matcher.low_threshold)
    assert (anchors.per_image, anchors.fg_fraction) == (
        sampler.batch_size_per_image,
        sampler.positive_fraction,
    )
    assert (ours.roi_sampling.per_image, ours.roi_sampling.fg_fraction) == (
        roi.fg_bg_sampler.batch_size_per_image,
        roi.fg_bg_sampler.positive_fraction,
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "interop").glob("*.yaml")))
def test_published_detectors_are_what_their_weights_are_of(name: str) -> None:
    files = ["conventions/detectron2"] if name.startswith("detectron2") else []
    with torch.device("meta"):
        rows = [given(file)["model"]["detector"] for file in [*files, f"interop/{name}"]]
        ours = build_detector(rows, 80)
    assert isinstance(ours, ProposalNetwork)
    assert isinstance(ours, FasterRCNN) == ("rpn" not in name)
    if "mobilenet" in name:
        assert isinstance(ours.bottom_up, MobileNetV3)
    else:
        assert len(ours.bottom_up.layer3) == (23 if "r101" in name else 6)
        assert (ours.rpn.grid == "stride") == (ours.bottom_up.stride_in_1x1) == bool(files)


@pytest.fixture
def small(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes at the size they are drawn in, and a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": ".", "name": "run"},
    }
    words = ["--data.root", str(shapes), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    words += ["--data.images.short_side", "96", "--data.images.max_side", "128"]
    return [*words, "--trainer.logger", json.dumps(logger)]


def written(shapes: Path) -> dict[str, list[dict[str, Any]]]:
    """A test's detections by file name."""
    listed = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())["images"]
    entries = json.loads(Path("run/version_0/detections.json").read_text())
    return {
        image["file_name"]: [one for one in entries if one["image_id"] == image["id"]] for image in listed
    }


def assert_same(entries: list[dict[str, Any]], found: list[tuple[list[float], float, int]]) -> None:
    """The same boxes, scores and category ids, in the order of their scores."""
    assert [one["category_id"] for one in entries] == [category for _, _, category in found]
    for one, (box, score, _) in zip(entries, found, strict=True):
        x, y, w, h = one["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(box, abs=2e-3)
        assert one["score"] == pytest.approx(score, abs=1e-5)


def test_torchvisions_weights_are_tested_as_torchvision_finds(
    shapes: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    categories = read_annotations(shapes / "annotations" / "instances_val2017.json").categories
    theirs = peer(max(categories.ids) + 1, min_size=96, max_size=128)
    torch.save(theirs.state_dict(), "theirs.pth")
    config = str(CONFIGS / "interop" / "torchvision_coco_v1.yaml")
    main(["test", "--config", config, "--model.start_from", "theirs.pth", *small])
    # Below the tables.
    assert capsys.readouterr().out.strip().endswith("; published 37.0 (torchvision, COCO val2017)")
    total = 0
    for name, entries in written(shapes).items():
        with torch.inference_mode():
            (expected,) = theirs([read_image(shapes / "val2017" / name) / 255])
        rows = zip(*(expected[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
        # Where labels are category ids, some are of no category.
        wanted = [row for row in rows if row[2] in categories.ids]
        assert_same(entries, wanted)
        total += len(wanted)
    assert total > 50


def test_detectron2s_weights_are_tested_as_loaded(
    shapes: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    categories = read_annotations(shapes / "annotations" / "instances_val2017.json").categories
    state = detector_weights(classes=len(categories.ids))
    torch.save({"model": state}, "theirs.pth")
    files = [str(CONFIGS / f"{n}.yaml") for n in ("conventions/detectron2", "interop/detectron2_r50_1x")]
    words = [word for file in files for word in ("--config", file)]
    main(["test", *words, "--model.start_from", "theirs.pth", *small])
    assert "; published 37.9 (Detectron2, COCO val2017)" in capsys.readouterr().out
    predictor = Predictor(load_detectron2(state), 96, 128, settings=DETECTRON2_IMAGES)
    total = 0
    for name, entries in written(shapes).items():
        boxes, scores, labels = (part.tolist() for part in predictor([shapes / "val2017" / name])[0])
        assert_same(entries, list(zip(boxes, scores, [categories.ids[k - 1] for k in labels], strict=True)))
        total += len(entries)
    assert total > 20


def test_random_weights_are_not_scored(
    shapes: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: value for name, value in detector_weights(classes=3).items() if "roi_heads" not in name}
    torch.save(state, "rpn.pth")
    conventions = ["--config", str(CONFIGS / "conventions" / "detectron2.yaml")]
    for words, message in (
        ([], "needs --ckpt_path, the checkpoint to be scored, or --model.start_from"),
        (["--model.start_from", "rpn.pth"], "rpn.pth has no weights of roi_head"),
        (["--model.start_from", "absent.pth"], "absent.pth does not exist"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["test", *conventions, *small, *words])
        assert caught.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("fpn: ")
        assert message in error


def test_weights_are_not_scored_under_other_settings(
    shapes: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    classes = read_annotations(shapes / "annotations" / "instances_val2017.json").categories.ids
    torch.save(detector_weights(classes=len(classes)), "detectron2.pth")
    torch.save(peer(len(classes) + 1).state_dict(), "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    published = ["--model.start_from", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"]
    detectron2 = ["--model.start_from", "detectron2.pth"]
    conventions = ["--config", str(CONFIGS / "conventions" / "detectron2.yaml")]
    for words, names in (
        (
            detectron2,
            ["rpn.grid 'spread' instead of 'stride'", "configs/conventions/detectron2.yaml has them"],
        ),
        (
            [*detectron2, *conventions, "--model.detector.roi_head.aligned", "false"],
            ["aligned False instead"],
        ),
        (published, ["norm_eps 1e-05 instead of 0.0;", "configs/interop/torchvision_coco_v1.yaml has them"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["test", *small, *words])
        assert caught.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert all(name in error for name in names), error


@pytest.mark.long
def test_a_fit_from_a_peers_weights_goes_on_and_is_used_without_them(
    config: str, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = read_annotations(shapes / "annotations" / "instances_val2017.json").categories.ids
    weights = detector_weights(classes=len(classes))
    torch.save(weights, "theirs.pth")
    content = yaml.safe_load(Path(config).read_text())
    detector = {"neck": {"channels": 256}, "roi_head": {"head": {"hidden": 1024}, "aligned": False}}
    detector["bottom_up"] = {"name": "resnet50", "norm": "frozen", "frozen_stages": 2}
    content["model"]["detector"] = detector
    content["data"]["images"] = {"short_side": 64, "max_side": 64}
    Path("from_peer.yaml").write_text(yaml.safe_dump(content))
    files = [str(CONFIGS / "conventions" / "detectron2.yaml"), "from_peer.yaml"]
    words = [word for file in files for word in ("--config", file)]
    words += ["--data.images.train_scales", "[]", "--model.start_from", "theirs.pth"]
    with pytest.warns(UserWarning, match=r"roi_head\.aligned False instead of True; configs/conventions/det"):
        main(["fit", *words, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"])
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    # Stages that a detector freezes are the peer's to the bit.
    kept = load(last).detector.bottom_up
    assert torch.equal(kept.layer1[0].conv1.weight, weights["backbone.bottom_up.res2.0.conv1.weight"])
    Path("theirs.pth").unlink()
    main(["fit", "--ckpt_path", last, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"])
    assert read_checkpoint("runs/fpn/version_0/checkpoints/last.ckpt")["global_step"] == 2
    main(["test", "--ckpt_path", last, "--trainer.limit_test_batches", "1"])
    main(["predict", "--ckpt_path", last, "--images", str(shapes / "val2017")])
    assert json.loads(Path("predictions/detections.json").read_text())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["test", *words, "--model.start_from", last])
    assert "is a checkpoint of this project: give it as --ckpt_path" in capsys.readouterr().err


def test_a_start_from_ours_under_other_settings_warns(config: str) -> None:
    main(["fit", "--config", config, "--trainer.max_steps", "1"])
    words = ["--model.start_from", "runs/tiny/version_0/checkpoints/last.ckpt", "--trainer.max_steps", "1"]
    with pytest.warns(
        UserWarning, match=r"settings of the detector: rpn\.grid 'stride' instead of 'spread'; the"
    ):
        main(["fit", "--config", config, *words, "--model.detector.rpn.grid", "stride"])
    with pytest.warns(UserWarning, match=r"data\.images\.mean \(0\.5, 0\.5, 0\.5\) instead of \(0\.485"):
        main(["fit", "--config", config, *words, "--data.images.mean", "[0.5, 0.5, 0.5]"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other settings of the detector")
        main(["fit", "--config", config, *words])


def test_what_is_given_beside_a_checkpoint_and_differs_is_told(config: str) -> None:
    main(["fit", "--config", config, "--model.detector.neck.top_down", "false"])
    last = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    told = r"the checkpoint was trained with other settings .*: neck\.top_down True instead of False"
    Path("base.yaml").write_text(yaml.safe_dump({"model": {"detector": {"neck": {"top_down": True}}}}))
    for command in (["test"], ["fit", "--config", config, "--model.schedule.steps", "6"]):
        with pytest.warns(UserWarning, match=told):
            main([*command, "--config", "base.yaml", *last])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other settings of the detector")
        main(["test", *last])


def test_a_score_that_no_test_has_is_named(
    shapes: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = given("interop/torchvision_coco_v1")
    config["trainer"]["callbacks"][0]["init_args"]["scores"] = {"mAP": 37.0}
    Path("typo.yaml").write_text(yaml.safe_dump(config))
    classes = max(read_annotations(shapes / "annotations" / "instances_val2017.json").categories.ids)
    torch.save(peer(classes + 1).state_dict(), "theirs.pth")
    main(["test", "--config", "typo.yaml", "--model.start_from", "theirs.pth", *small])
    assert "mAP: no such score among " in capsys.readouterr().out
    assert Path("run/version_0/scores.json").is_file()


def test_labels_with_gaps(shapes: Path) -> None:
    plain = read_annotations(shapes / "annotations" / "instances_val2017.json")
    gapped = plain.labelled_by_id()
    ids = plain.categories.ids
    assert len(gapped.categories.ids) == max(ids) > len(ids)
    assert [plain.categories.ids[label - 1] for label in plain.labels] == gapped.labels.tolist()
    assert gapped.categories.listed() == plain.categories
    assert gapped.categories.names.count(NO_CATEGORY) == max(ids) - len(ids)


@pytest.mark.parametrize("id_", [-1, 1_000_000_000_000])
def test_ids_that_cannot_be_labels_are_named(shapes: Path, tmp_path: Path, id_: int) -> None:
    content = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    content["categories"].append({"id": id_, "name": "odd"})
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"odd\.json: category ids .*{id_}.* set data.label_gaps to false"):
        read_annotations(file).labelled_by_id()


def test_a_checkpoint_with_gaps_trains_tests_and_predicts(
    config: str, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", config, "--data.label_gaps", "true", "--trainer.max_steps", "2"])
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    main(["test", "--ckpt_path", last, "--trainer.accelerator", "cpu"])
    ids = read_annotations(shapes / "annotations" / "instances_val2017.json").categories.ids
    words = ["--annotations", str(shapes / "annotations" / "instances_val2017.json")]
    main(["predict", "--ckpt_path", last, *words, "--images", str(shapes / "val2017")])
    found = json.loads(Path("predictions/detections.json").read_text())
    assert found
    assert {one["category_id"] for one in found} <= set(ids)
    trained = load(last)
    image = read_image(next((shapes / "val2017").glob("*.jpg")))
    kept = Predictor.of(trained)([image])[0].labels.tolist()
    everything = Predictor(trained.detector, 96, 96)([image])[0].labels.tolist()
    assert set(everything) - set(ids)
    assert kept == [label for label in everything if label in ids]
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", last, "--data.label_gaps", "false"])
    assert "other categories" in capsys.readouterr().err


def test_torchvisions_published_name_is_downloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Published

    state = peer(91).state_dict()
    asked: list[tuple[object, dict[str, Any]]] = []

    def fetch(self: object, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((self, options))
        return state

    monkeypatch.setattr(Published, "get_state_dict", fetch)
    for name in ("COCO_V1", "FasterRCNN_ResNet50_FPN_Weights.COCO_V1", Published.COCO_V1):
        detector = load_torchvision(name)
        assert detector.classes == 90
        assert torch.equal(detector.bottom_up.conv1.weight, state["backbone.body.conv1.weight"])
    assert [which for which, _ in asked] == [Published.COCO_V1] * 3
    assert all(options["check_hash"] for _, options in asked)


def test_a_peers_file_is_loaded_and_predicts(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = peer(4)
    torch.save({"model": theirs.state_dict()}, "theirs.pth")
    trained = load("theirs.pth")
    assert trained.categories == Categories((1, 2, 3), ("1", "2", "3"))
    file = min((shapes / "val2017").iterdir())
    main(["predict", "theirs.pth", "--images", str(file), "--device", "cpu", "--pictures", "false"])
    assert "in 1 of 1 images" in capsys.readouterr().out
    entries = json.loads(Path("predictions/detections.json").read_text())
    boxes, scores, labels = Predictor(load_torchvision(theirs.state_dict()), 800, 1333)(file)
    assert [one["category_id"] for one in entries] == labels.tolist()
    assert [one["score"] for one in entries] == pytest.approx(scores.tolist(), abs=1e-5)
    corners = torch.tensor([one["bbox"] for one in entries])
    corners[:, 2:] += corners[:, :2]
    torch.testing.assert_close(corners, boxes, rtol=0, atol=0.011)  # of hundredths


def test_published_detectors_name_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    state = peer(91).state_dict()
    monkeypatch.setattr(FasterRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda *_, **options: state)
    trained = load("COCO_V1")
    assert trained.image == ImageSettings(800, 1333)
    assert len(trained.categories.listed().ids) == 80
    for label, name in zip(*trained.categories, strict=True):
        assert name == (NO_CATEGORY if names[label] == "N/A" else names[label])

    content = {"model": detector_weights(classes=80), "__author__": "Detectron2 Model Zoo"}
    torch.save(content, "zoo.pth")
    zoo = load("zoo.pth")
    assert zoo.image == DETECTRON2_IMAGES
    assert zoo.categories == trained.categories.listed()
    assert zoo.categories.ids[-1] == 90
    torch.save({"model": content["model"]}, "own.pth")
    assert load("own.pth").categories.names[:2] == ("1", "2")

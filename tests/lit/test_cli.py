"""The real command line, on tiny data: what a user does, and the mistakes a user makes."""

import csv
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from lit_runs import TEN_STEPS, kept, scores_of
from pages import page_of
from processes import run, together

from fpn.evaluation import evaluate_proposals, score_boxes
from fpn.lit.cli import COMMANDS, main
from fpn.lit.help_pages import PAGES
from fpn.lit.module import DetectionModule
from fpn.shipped import config_file
from fpn.types import Batch, Detections, Inference

REPOSITORY = Path(__file__).resolve().parents[2]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is printed on standard error by a command that must end with status 2 and without a traceback."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    lines = [line for line in message.splitlines() if line.startswith("fpn: ")]
    assert len(lines) == 1
    assert message.endswith(lines[0] + "\n")
    return lines[0]


def only(pattern: str) -> Path:
    (path,) = Path().glob(pattern)
    return path


@pytest.fixture
def trained(config: str) -> tuple[str, str]:
    """The configuration and the checkpoint of a finished run."""
    main(["fit", "--config", config])
    return config, str(only("runs/tiny/version_0/checkpoints/best.ckpt"))


def test_fit_test_predict_evaluate(
    config: str, shapes: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", "--config", config])
    printed = capsys.readouterr().out + caplog.text
    assert "0.8 epochs of 10 images, which are 4 steps of 2 images, warm-up of 2" in printed
    assert "PaperSGD, learning rate 0.02" in printed
    assert "step 4: AP " in printed
    checkpoint = str(only("runs/tiny/version_0/checkpoints/best.ckpt"))
    rows = list(csv.DictReader(Path("runs/tiny/version_0/metrics.csv").read_text().splitlines()))
    columns = {name for row in rows for name, value in row.items() if value}
    names = {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "loss", "images_per_second"}
    assert {f"train/{name}" for name in names} <= columns
    assert {"val/AP", "val/AP_small", "val/proposal_AR@100", "val/proposal_AR@1000", "lr-PaperSGD"} <= columns
    assert Path("runs/tiny/version_0/checkpoints/last.ckpt").is_file()

    # A checkpoint is all that a test needs; its folder lies in that of the run.
    main(["test", "--ckpt_path", checkpoint])
    tables = capsys.readouterr().out
    for word in ("AP50", "AR@1000", "crescent", "medium"):
        assert word in tables
    folder = Path("runs/tiny/version_0/test")
    scores = scores_of(folder)
    detections = json.loads((folder / "detections.json").read_text())
    truth = shapes / "annotations" / "instances_val2017.json"
    ids = {image["id"] for image in json.loads(truth.read_text())["images"]}
    assert {d["image_id"] for d in detections} == ids
    assert {d["category_id"] for d in detections} <= set(map(int, (1, 2, 4, 5, 7, 8, 11, 13, 16, 19)))

    page = page_of(folder / "report.html")
    parts = ["Scores", "Categories", "Precision and recall", "Errors", "Confusion", "Sizes and levels"]
    parts += ["Proposals", "Images", "Best", "Worst", "Training", "Settings and versions"]
    assert page.headings[1:] == parts
    assert f"{100 * scores['AP']:.1f}" == next(row[1] for row in page.rows if row[:1] == ["AP"])
    assert ["level", "P5"] in [row[:2] for row in page.rows]
    assert page.pictures == 4
    assert page.figures == 2 + 1 + 3 + 2
    assert "canonical_size: 56" in page.text
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    again = score_boxes(truth, folder / "detections.json", engine="pycocotools").overall
    assert {key: scores[key] for key in again} == pytest.approx(again, abs=1e-12, nan_ok=True)
    for flags in ([], ["--proposals"]):
        main(["evaluate", "--annotations", str(truth), "--results", str(folder / "detections.json"), *flags])
        assert "AR@100" in capsys.readouterr().out

    main(
        ["predict", "--ckpt_path", checkpoint, "--images", str(shapes / "val2017"), "--score_threshold", "0"]
    )
    results = json.loads(Path("predictions/detections.json").read_text())
    listed = json.loads(Path("predictions/predictions.json").read_text())["images"]
    assert len(listed) == 5
    assert {r["image_id"] for r in results} <= {image["id"] for image in listed}
    assert len(list(Path("predictions/pictures").glob("*.jpg"))) == 5
    by_name = {Path(i["file_name"]).name: i["id"] for i in listed}
    for image in json.loads(truth.read_text())["images"]:
        mine = [r["score"] for r in results if r["image_id"] == by_name[image["file_name"]]]
        tested = [d["score"] for d in detections if d["image_id"] == image["id"]]
        assert mine == pytest.approx(tested, abs=1e-5)


def test_what_the_user_gives_wins_over_the_checkpoint(trained: tuple[str, str]) -> None:
    _, checkpoint = trained
    one = {"model": {"detector": {"detections": {"max_detections": 1}}}}
    Path("one.yaml").write_text(yaml.safe_dump(one))
    for name, limit, given in (
        ("test", 1, ["--config", "one.yaml"]),
        ("test_2", 2, ["--model.detector.detections.max_detections", "2", "--report", "false"]),
    ):
        main(["test", "--ckpt_path", checkpoint, *given])
        detections = json.loads(Path(f"runs/tiny/version_0/{name}/detections.json").read_text())
        counts = [sum(d["image_id"] == i for d in detections) for i in {d["image_id"] for d in detections}]
        assert max(counts) == limit
        assert Path(f"runs/tiny/version_0/{name}/report.html").exists() == (name == "test")


def test_a_run_can_be_resumed(trained: tuple[str, str]) -> None:
    config, _ = trained
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    main(["fit", "--config", config, "--model.schedule.steps", "6", "--ckpt_path", last])
    rows = list(csv.DictReader(Path("runs/tiny/version_1/metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [4, 5]
    state = torch.load("runs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 6


OTHER_OPTIONS = [
    (["--model.optimizer.lr", "0.5"], "model.optimizer.lr 0.02, this run has 0.5"),
    (["--model.optimizer.weight_decay", "0.3"], "model.optimizer.weight_decay 0.0001, this run has 0.3"),
    (["--model.optimizer", "torch.optim.AdamW"], "model.optimizer PaperSGD, this run has AdamW"),
    (["--model.schedule.reference_images", "4"], "model.schedule.reference_images 8, this run has 4"),
    (["--model.frozen_parts", "[neck]"], "model.frozen_parts [], this run has ['neck']"),
]


def test_a_run_goes_on_with_the_optimiser_it_had(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning restores it as it was: other options would be told and not used."""
    schedule = ["--config", config, "--model.schedule.reference_images", "8"]
    main(["fit", *schedule])
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    more = ["--model.schedule.steps", "2", "--ckpt_path", last]
    for given, told in OTHER_OPTIONS:
        assert f"trained with {told}: leave it" in refused(capsys, "fit", *schedule, *more, *given)
    main(["fit", *schedule, *more])


def test_options_of_the_trainer_that_a_checkpoint_was_trained_with_are_asked_for(config: str) -> None:
    given = ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"]
    main(["fit", "--config", config, *given])
    more = ["--model.schedule.steps", "6", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    with pytest.warns(UserWarning, match="trained with trainer") as caught:
        main(["fit", "--config", config, *more])
    lines = [str(one.message) for one in caught if "trained with trainer" in str(one.message)]
    assert [re.findall(r"trainer\.(\w+) (\S+), this run goes on with (\S+):", line) for line in lines] == [
        [("precision", "bf16-mixed", "32-true")],
        [("gradient_clip_val", "1.0", "None")],
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the checkpoint was trained with")
        main(["fit", "--config", config, *more, *given])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("schedule.reference_images=0", "schedule.reference_images is 0: give a number above 0"),
        ("optimizer.lr=-1", "model.optimizer: Invalid learning rate: -1.0"),
        (
            "detector.roi_sampling.per_image=-1",
            "model.detector.roi_sampling.per_image is -1: give a number above 0",
        ),
        ("detector.rpn.box_weights=[1,1,1]", "model.detector.rpn.box_weights: give a list of 4"),
    ],
)
def test_numbers_that_make_no_sense(
    config: str, option: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "fit", "--config", config, f"--model.{option}")


@pytest.mark.parametrize(
    ("option", "cut"),
    [("max_epochs=1", True), ("max_steps=7", True), ("max_epochs=2", False), ("max_steps=10", False)],
)
def test_a_schedule_cut_short_is_told(config: str, option: str, cut: bool) -> None:
    """Five steps an epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", "--config", config, "--model.schedule", TEN_STEPS, f"--trainer.{option}"])
    end = 5 if "epochs" in option else 7
    told = [str(one.message) for one in caught if "of the schedule's" in str(one.message)]
    assert [line.partition(" steps")[0] for line in told] == [
        f"training ends after {end} of the schedule's 10"
    ] * cut


def test_averaged_weights_are_validated_as_they_are_kept(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of the checkpoint, which has the averaged weights, finds what its validation found."""
    found: list[Detections] = []
    collect = DetectionModule._collect

    def collected(module: DetectionModule, batch: Batch, one: Inference) -> None:
        collect(module, batch, one)
        found.extend(module.last_found.proposals)

    monkeypatch.setattr(DetectionModule, "_collect", collected)
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.6}}
    schedule = ["--model.schedule", TEN_STEPS, f"--trainer.callbacks={json.dumps([average])}"]
    main(["fit", "--config", config, *schedule])
    main(["test", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"])
    for validated, tested in zip(found[-10:-5], found[-5:], strict=True):
        assert len(tested.boxes) == 50
        torch.testing.assert_close(tested.scores, validated.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(tested.boxes, validated.boxes, atol=1e-2, rtol=0)


@pytest.mark.filterwarnings("ignore:(The PyTorch Profiler|The PyTorchProfiler)")
def test_trainer_flags_that_rule_callbacks_out(config: str) -> None:
    flags = ("enable_progress_bar", "enable_checkpointing", "logger")
    main(["fit", "--config", config, *(f"--trainer.{flag}=false" for flag in flags)])
    assert not list(Path().rglob("*.ckpt"))
    main(["fit", "--config", config, "--trainer.fast_dev_run", "true", "--trainer.profiler", "pytorch"])


def test_mixed_precision(config: str) -> None:
    main(["fit", "--config", config, "--trainer.precision", "bf16-mixed"])
    checkpoint = str(only("runs/tiny/version_0/checkpoints/last.ckpt"))
    main(["test", "--ckpt_path", checkpoint, "--trainer.precision", "bf16-mixed"])
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_options_of_the_checkpoints_own_classes(config: str, shapes: Path) -> None:
    """What the remembered classes accept can be given, though the default ones have no such option."""
    content = yaml.safe_load(Path(config).read_text())
    content["data"] = {
        "class_path": "fpn.data.datamodule.ShapesDataModule",
        "init_args": {"folder": "drawn", "train_count": 4, "val_count": 2, "long_side": 96, "num_workers": 0},
    }
    Path(config).write_text(yaml.safe_dump(content))
    main(["fit", "--config", config])
    checkpoint = str(only("runs/tiny/version_0/checkpoints/best.ckpt"))
    main(["test", "--ckpt_path", checkpoint, "--data.folder", "other", "--data.val_count", "3"])
    detections = json.loads(Path("runs/tiny/version_0/test/detections.json").read_text())
    assert len({d["image_id"] for d in detections}) == 3


def test_resuming_repeats_the_unbroken_run(config: str) -> None:
    """Stopped after an epoch and resumed, a run has the losses of one that was not stopped: its seed too."""
    steps = ["--model.schedule", '{"steps": 10, "milestones": [8], "warmup_steps": 2, "reference_images": 2}']
    seeded = [*steps, "--seed_everything", "5"]
    main(["fit", "--config", config, *seeded])
    main(["fit", "--config", config, *seeded, "--trainer.max_epochs", "1"])
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    main(["fit", "--config", config, *steps, "--ckpt_path", last])
    losses = []
    for version in (0, 2):
        rows = csv.DictReader(Path(f"runs/tiny/version_{version}/metrics.csv").read_text().splitlines())
        names = ("train/rpn_objectness", "train/rpn_box", "train/roi_class", "train/roi_box")
        losses.append([[row[name] for name in names] for row in rows if row["train/loss"]])
    assert len(losses[0]) == 10
    assert losses[1] == losses[0][5:]


def test_another_number_of_images_a_step_is_refused_on_resuming(
    trained: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = trained
    message = refused(capsys, "fit", "--config", config, "--ckpt_path", checkpoint, "--data.batch_size", "3")
    assert "trained with 2 images a step, this run has 3" in message


def test_proposal_network(config: str, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(Path(config).read_text())
    detector = content["model"]["detector"]
    for key in ("roi_head", "roi_sampling", "detections"):
        del detector[key]
    content["model"]["detector"] = {"class_path": "fpn.ProposalNetwork", "init_args": detector}
    Path(config).write_text(yaml.safe_dump(content))
    main(["fit", "--config", config])
    checkpoint = str(only("runs/tiny/version_0/checkpoints/best.ckpt"))
    main(["test", "--ckpt_path", checkpoint])
    assert "Proposals" in capsys.readouterr().out
    main(["predict", "--ckpt_path", checkpoint, "--images", str(shapes / "val2017")])
    assert {d["category_id"] for d in json.loads(Path("predictions/detections.json").read_text())} == {1}
    assert not Path("runs/tiny/version_0/test/detections.json").exists()
    scores = scores_of(Path("runs/tiny/version_0/test"))
    truth = shapes / "annotations" / "instances_val2017.json"
    recall = evaluate_proposals(truth, "runs/tiny/version_0/test/proposals.json", engine="pycocotools")
    assert {key: scores[f"proposal_{key}"] for key in recall} == pytest.approx(recall, nan_ok=True)


def test_a_switch_takes_any_word_for_true_and_false(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = shapes / "annotations" / "instances_val2017.json"
    found = [annotation | {"score": 1.0} for annotation in json.loads(truth.read_text())["annotations"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    given = ["evaluate", "--annotations", str(truth), "--results", str(tmp_path / "found.json")]

    def page(*words: str) -> str:
        main([*given, *words])
        return capsys.readouterr().out

    objects, proposals = page(), page("--proposals")
    assert objects != proposals
    assert {page("--proposals", word) for word in ("true", "True", "TRUE", "yes")} == {proposals}
    assert {page("--proposals", word) for word in ("false", "False", "FALSE", "no")} == {objects}
    assert page("--proposals", "--engine", "pycocotools") == proposals
    assert "proposals" in refused(capsys, *given, "--proposals", "ture")


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)])
def test_help_pages(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        main([*command, "--help"])
    page = capsys.readouterr().out
    assert "usage: fpn" in page
    assert "help: " not in page.lower().replace(".help", "")
    if not command:
        assert all(name in page for name in COMMANDS)
    for line in page.splitlines() if command and command[0] in PAGES else ():
        assert len(line) <= 100
    assert len(page.splitlines()) <= 50 or command[0] not in PAGES


def test_the_options_and_examples_of_the_first_pages_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """By what the parser lists: as a whole, and by its parts, with options of the detector and the data."""
    main(["test", "--help", "all"])
    known = capsys.readouterr().out
    for topic, left_out in (("model", "--trainer"), ("data", "--model"), ("trainer", "--model")):
        main(["fit", "--help", topic])
        part = capsys.readouterr().out
        assert f"\n  --{topic}." in part
        assert f"\n  {left_out}." not in part
        known += part
    assert "--model.detector.detections.score_threshold " in known
    not_listed = {"--help", "--copy", "--epochs", "--model.optimizer.lr", "--model.detector.neck.help"}
    for page in PAGES.values():
        named = set(re.findall(r"(?<= )--[a-z_]+(?:\.[a-z0-9_]+)*", page)) - not_listed
        assert len(named) >= 10
        assert {option for option in named if f"{option} " not in known} == set()
        for name in re.findall(r"--config ([a-z]\S+)", page):
            assert config_file(name).is_file()


def test_help_on_something_else_is_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help", "modell"], ["--config", "base", "--help=modell"]):
        assert refused(capsys, "fit", *words) == (
            "fpn: fpn fit --help has no 'modell'; it has all, model, data, trainer"
        )


def test_the_help_of_a_class_is_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--model.detector.neck.help", "FeaturePyramid"])
    assert caught.value.code == 0
    assert "--neck.lateral {true,false}" in capsys.readouterr().out


def test_mistakes_end_in_one_line(config: str, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fit(*given: str) -> str:
        return refused(capsys, "fit", "--config", config, *given)

    assert "top_dwn" in fit("--model.detector.neck.top_dwn", "false")
    assert "stepz" in fit("--model.schedule.stepz", "3")
    assert "fpn has no command 'train'" in refused(capsys, "train")
    assert "absent.yaml" in refused(capsys, "fit", "--config", "absent.yaml")
    Path("torn.yaml").write_text("model: {detector: [}")
    assert "torn.yaml: not a YAML file: " in fit("--config", "torn.yaml")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: not a YAML file: " in fit("--config", "binary.yaml")
    assert "choose one of 32-true, bf16-mixed, 16-mixed" in fit("--trainer.precision", "bf16-true")
    assert "number of the training batches (5)" in fit("--trainer.val_check_interval", "6")
    assert "requires a GPU accelerator" in fit("--trainer.strategy", "fsdp")
    for every in ("0", "-1"):
        message = fit("--trainer.check_val_every_n_epoch", every)
        assert f"trainer.check_val_every_n_epoch is {every}: give 1 at least; trainer.limit_val_b" in message
    main(["fit", "--config", config, "--trainer.limit_val_batches", "0"])  # the remedy
    assert "-1 is not in bounds" in fit("--seed_everything", "-1")
    assert "both false" in fit("--model.detector.neck", '{"lateral": false, "top_down": false}')
    message = fit("--data.root", "nowhere")
    assert "nowhere: no such folder" in message
    assert "data.train.annotations" in message
    Path("no.json").write_text("[1, 2]")
    message = fit("--data.train.annotations", "no.json")
    assert "no.json" in message
    Path("torn.json").write_text('{"images": [')
    assert "torn.json" in fit("--data.val.annotations", "torn.json")
    assert "absent.ckpt" in fit("--ckpt_path", "absent.ckpt")
    message = fit("--ckpt_path", "last", "--seed_everything", "1")
    assert "last.ckpt was trained with seed_everything 0, this run has 1" in message
    assert "needs --ckpt_path" in refused(capsys, "test", "--config", config)
    truth = str(shapes / "annotations" / "instances_val2017.json")
    assert "absent.json" in refused(capsys, "evaluate", "--annotations", truth, "--results", "absent.json")
    assert "torn.json" in refused(capsys, "evaluate", "--annotations", truth, "--results", "torn.json")


def test_a_checkpoint_of_another_model(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, checkpoint = trained
    message = refused(capsys, "test", "--ckpt_path", checkpoint, "--model.detector.neck.channels", "12")
    assert "has a shape of" in message
    torch.save({"state_dict": {}}, "foreign.ckpt")
    for command in ("test", "fit"):
        assert "not a checkpoint of this project" in refused(capsys, command, "--ckpt_path", "foreign.ckpt")
    assert "no images" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "runs")
    assert "neither" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "nothing")


def test_a_checkpoint_for_other_categories(
    trained: tuple[str, str], shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = trained
    annotations = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    annotations["categories"][2]["name"] = "tesseract"
    Path("other.json").write_text(json.dumps(annotations))
    given = ["--data.train.annotations", "other.json", "--data.val.annotations", "other.json"]
    message = refused(capsys, "test", "--ckpt_path", checkpoint, *given)
    assert "is 'square' / 'tesseract'" in message


def test_a_corrupt_image_is_named(
    config: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    victim = sorted((copy / "val2017").iterdir())[3]
    victim.write_bytes(b"\xff\xd8 torn")
    for workers in ("0", "1"):
        message = refused(
            capsys, "fit", "--config", config, "--data.root", str(copy), "--data.num_workers", workers
        )
        assert victim.name in message


def test_python_m_fpn_and_a_seed_fixes_all(config: str) -> None:
    """Two processes with one seed train the same weights, bit for bit."""
    command = [sys.executable, "-m", "fpn", "fit", "--config", config]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    run(["fit", "--config", config])
    states = [kept(Path(f"runs/tiny/version_{version}"), "last")["state_dict"] for version in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_two_processes_score_as_one(trained: tuple[str, str]) -> None:
    """Five images over two processes: every image once, the very same numbers; and training runs."""
    config, checkpoint = trained
    main(["test", "--ckpt_path", checkpoint])
    together(["test", "--ckpt_path", checkpoint])
    together(["fit", "--config", config])
    one, other = (scores_of(Path("runs/tiny/version_0", name)) for name in ("test", "test_2"))
    categories = one.pop("by_category"), other.pop("by_category")
    assert one == pytest.approx(other, abs=1e-6, nan_ok=True)
    assert categories[0].keys() == categories[1].keys()
    # Four images a step are twice the schedule's two: half the steps.
    state = torch.load("runs/tiny/version_1/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 2


@pytest.mark.long
def test_two_nodes_by_torchrun(config: str) -> None:
    """The command of a cluster, its two nodes on one machine: both learn, one writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_id", "test", "--rdzv_endpoint", f"localhost:{port}"]
    nodes = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*launcher, "-m", "fpn", "fit", "--config", config, *nodes],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    # Two processes of two images are twice the schedule's two: half the steps.
    state = torch.load(only("runs/tiny/version_0/checkpoints/last.ckpt"), weights_only=True)
    assert (state["global_step"], state["fpn"]["images_per_step"]) == (2, 4)

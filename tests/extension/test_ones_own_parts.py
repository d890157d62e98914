"""What users write outside of the package, by the real command line, from a first fit to a table's report.

The files in `files/` are theirs: a neck, a bottom-up, a box head, a box loss, a metric and a row of a table.
They lie in a temporary folder, which is the working directory.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import Started, run

from fpn.data.shapes import generate_shapes

FILES = Path(__file__).parent / "files"
MODULES = ("panet", "plain", "conv_head", "balanced_l1", "counting")
IMPORT = [word for module in MODULES for word in ("--import", module)]
DETECTOR = {
    "bottom_up": {"class_path": "plain.Plain", "init_args": {"width": 4}},
    "neck": {"class_path": "panet.PANet", "init_args": {"channels": 8, "weighted": True}},
    "rpn": {"sizes": {2: [8], 3: [16], 4: [32], 5: [64], 6: [128]}},
    "roi_head": {
        "canonical_size": 56,
        "head": {"class_path": "conv_head.ConvHead", "init_args": {"width": 8}},
    },
    "roi_box_loss": {"class_path": "balanced_l1.BalancedL1", "init_args": {"alpha": 0.6}},
    "training_proposals": {"pre_nms_top_n": 50, "post_nms_top_n": 50},
    "testing_proposals": {"pre_nms_top_n": 50, "post_nms_top_n": 50},
    "roi_sampling": {"per_image": 16},
    "detections": {"score_threshold": 0.0, "max_detections": 20},
}
METRICS = [
    {"class_path": "fpn.evaluation.BoxAP"},
    {"class_path": "fpn.evaluation.ProposalRecall"},
    {"class_path": "counting.CountError", "init_args": {"threshold": 0.3}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: their files, ten images, and a configuration that names all five parts."""
    folder: Path = tmp_path_factory.mktemp("own")
    shutil.copytree(FILES, folder, dirs_exist_ok=True)
    generate_shapes(folder / "shapes", train=10, val=5, long_side=96)
    config = {
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1, "enable_model_summary": False},
        "model": {
            "detector": DETECTOR,
            "metrics": METRICS,
            "lr_factors": {"bottom_up": 0.1},
            "schedule": {"steps": 10, "milestones": [8], "warmup_steps": 2, "reference_images": 2},
        },
        "data": {
            "root": "shapes",
            "images": {"short_side": 96, "max_side": 96},
            "batch_size": 2,
            "num_workers": 0,
        },
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    return folder


def shell(folder: Path, *command: str) -> str:
    """What a command prints, run in that folder as from a shell."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# As the installed script does it: the working directory is on the path of no script in another folder.
ENTRY = "import sys; sys.path.pop(0); from fpn.__main__ import main; sys.argv[0] = 'fpn'; main()"


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Path:
    """The last checkpoint of a fit of five of ten steps."""
    name = ["--trainer.logger.init_args.name", "own"]
    words = ["fit", "--config", "own.yaml", "--trainer.max_steps", "5", *name]
    (folder / "said.txt").write_text(shell(folder, "-c", ENTRY, *words))
    return folder / "runs" / "own" / "version_0" / "checkpoints" / "last.ckpt"


def test_a_fit_trains_what_its_configuration_names(fitted: Path) -> None:
    state = torch.load(fitted, weights_only=True)["state_dict"]
    names = {".".join(name.split(".")[1:4]) for name in state}
    assert {"bottom_up.stage2.0", "neck.down.3", "neck.gate", "roi_head.head.shared"} <= names


def test_the_fit_goes_on(folder: Path, fitted: Path) -> None:
    said = run(["fit", "--ckpt_path", str(fitted), "--trainer.accelerator", "cpu", *IMPORT], folder)
    newest = max(
        folder.glob("runs/fpn/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime
    )
    assert torch.load(newest, weights_only=True)["global_step"] == 10, said


@pytest.mark.parametrize("command", ["validate", "test"])
def test_it_is_scored_by_the_users_metric_too(folder: Path, fitted: Path, command: str) -> None:
    words = [command, "--ckpt_path", str(fitted), *IMPORT]
    if command == "test":  # as the end of the fit says it
        (told,) = re.findall(r"^next: fpn (.*)$", (folder / "said.txt").read_text(), re.MULTILINE)
        words = shlex.split(told)
        assert [word for word in words if word in MODULES] == sorted(MODULES, key=words.index)
    words += ["--trainer.accelerator", "cpu", "--trainer.logger.init_args.name", command]
    said = shell(folder, "-m", "fpn", *words) if command == "test" else run(words, folder)
    assert "count_error" in said
    if command == "test":
        scores = json.loads((folder / "runs/test/version_0/scores.json").read_text())
        assert scores["count_error"] >= 0
        assert "AP" in scores


def test_it_predicts(folder: Path, fitted: Path) -> None:
    images = ["--images", "shapes/val2017", "--device", "cpu"]
    run(["predict", "--ckpt_path", str(fitted), *images, *IMPORT], folder)
    assert json.loads((folder / "predictions" / "detections.json").read_text())


def test_python_loads_it(folder: Path, fitted: Path) -> None:
    """A script beside the modules has imported them; boxes are those of the detector itself."""
    script = """
import sys, torch, fpn
from pathlib import Path
import panet, plain, conv_head, balanced_l1, counting
from fpn.data.decoding import read_image
trained = fpn.load(sys.argv[1])
assert type(trained.detector.neck) is panet.PANet and trained.detector.neck.gate is not None
assert type(trained.detector.bottom_up) is plain.Plain
image = read_image(Path(sys.argv[2]))
found = fpn.Predictor.of(trained)([image])[0]
again = fpn.Predictor.of(trained)([image])[0]
assert len(found.boxes) and torch.equal(found.boxes, again.boxes)
"""
    (folder / "use.py").write_text(script)
    image = next((folder / "shapes" / "val2017").iterdir())
    with Started([str(fitted), str(image)], folder, script=folder / "use.py") as script:
        assert script.status() == 0, script.said()


def test_a_checkpoint_does_not_import_what_merely_lies_here(folder: Path, fitted: Path) -> None:
    said = run(["test", "--ckpt_path", str(fitted), "--trainer.accelerator", "cpu"], folder, status=2)
    (line,) = [line for line in said.splitlines() if line.startswith("fpn: ")]
    assert any(f"--import {module}" in line for module in MODULES)


@pytest.mark.long
def test_timms_networks_go_the_same_way(folder: Path) -> None:
    """Named in the configuration of the fit alone: timm is installed."""
    pytest.importorskip("timm")
    parts = {"class_path": "fpn.TimmBottomUp", "init_args": {"name": "mobilenetv3_small_050", "norm": "live"}}
    words = ["--config", "own.yaml", "--model.metrics", '["fpn.evaluation.BoxAP"]']
    words += ["--model.detector.bottom_up", json.dumps(parts), "--trainer.max_steps", "2"]
    run(["fit", *words, "--trainer.logger.init_args.name", "timm"], folder)
    checkpoint = str(folder / "runs" / "timm" / "version_0" / "checkpoints" / "last.ckpt")
    own = ["--ckpt_path", checkpoint, *IMPORT]
    test = ["--trainer.accelerator", "cpu", "--trainer.logger.init_args.name", "timm_test"]
    run(["test", *own, *test], folder)
    assert "AP" in json.loads((folder / "runs" / "timm_test" / "version_0" / "scores.json").read_text())
    images = ["--images", "shapes/val2017", "--device", "cpu", "--out", "timm", "--pictures", "false"]
    run(["predict", *own, *images], folder)
    assert json.loads((folder / "timm" / "detections.json").read_text())


@pytest.mark.parametrize(
    ("table", "row"), [("table1", "c_panet"), pytest.param("table4", "own_parts", marks=pytest.mark.long)]
)
def test_a_file_is_a_row(folder: Path, table: str, row: str) -> None:
    """`ablate` trains and tests it after the table's recipe, and `report` shows it by its own name."""
    small = [
        "--data.train_count=6", "--data.val_count=3", "--data.long_side=96", "--data.batch_size=2",
        "--model.schedule.steps=2", "--model.schedule.length=1", "--model.schedule.reference_images=2",
        "--model.schedule.warmup_steps=0", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    small += ["--model.detector.bottom_up.width=8"] if table == "table1" else []
    words = ["ablate", table, "--rows", f"./{row}.yaml", "--data", "shapes", "--devices_per_run", "0"]
    said = run([*words, *IMPORT, "--", *small], folder)
    (scores,) = folder.glob(f"runs/study/{table}/{row}/seed_0/scores.json")
    run(["report", f"runs/study/{table}"], folder)
    report = (folder / "report" / "report.md").read_text()
    name = {"c_panet": "FPN with PANet's bottom-up path", "own_parts": "Parts of one's own, all at once"}[row]
    assert f"| {row} | {name} |" in report.replace("\\_", "_")
    config = yaml.safe_load(next(scores.parent.glob("version_0/config.yaml")).read_text())
    detector = config["model"]["detector"]["init_args"]
    if table == "table1":
        # As wide as the other rows on this data are.
        assert detector["neck"]["class_path"] == "panet.PANet"
        assert detector["neck"]["init_args"]["channels"] == 32
        assert detector["neck"]["init_args"]["weighted"]
    if table == "table4":
        assert "own_parts.yaml: its classes keep their own widths" in said
        # The loss is the file's, though the recipe has one too; and its metric has a column.
        assert detector["roi_box_loss"]["class_path"] == "balanced_l1.BalancedL1"
        assert f"{json.loads(scores.read_text())['count_error']:.4g}" in report


def test_a_row_names_only_what_its_test_would_import(folder: Path) -> None:
    """Before anything is trained; and a dry run prints commands that do what the study does."""
    (folder / "short.yaml").write_text("model: {detector: {neck: panet.PANet}}")
    for row in ("c_panet", "short"):
        words = ["ablate", "table1", "--rows", f"./{row}.yaml", "--out", "runs/dry", "--dry-run"]
        assert f"{row}.yaml: " in (said := run(words, folder, status=2))
        assert "add --import panet" in said
        commands = re.findall(r"fpn (?:fit|test) .*", run([*words, "--import", "panet"], folder))
        assert len(commands) == 2
        assert all(line.endswith(" --import panet") for line in commands)


def test_what_the_command_line_names_is_found_here(folder: Path, fitted: Path) -> None:
    """Also where there is a checkpoint, which may not name it itself."""
    others = [word for module in MODULES if module != "counting" for word in ("--import", module)]
    words = ["test", "--ckpt_path", str(fitted), "--trainer.accelerator", "cpu", *others]
    # What is called as a file is, is no reason to run it.
    (folder / "train.py").write_text("raise SystemExit('ran')")
    shutil.copy(folder / "shapes/annotations/instances_train2017.json", folder / "train.json")
    words += ["--data.train.annotations", "train.json"]
    said = run([*words, "--model.metrics", "[counting.CountError]"], folder)
    assert "count_error" in said


def test_a_class_in_anothers_place_has_its_own_defaults(folder: Path) -> None:
    words = ["fit", "--config", "base", "--model.detector.bottom_up", "plain.Plain"]
    said = run([*words, "--model.optimizer", "torch.optim.AdamW", "--print_config"], folder)
    model = yaml.safe_load(said[said.index("seed_everything") :])["model"]
    assert model["detector"]["init_args"]["bottom_up"]["init_args"] == {"width": 4, "frozen_stages": 0}
    assert model["optimizer"]["init_args"]["lr"] == 0.001
    # A detector takes over what is said of its parts.
    said = run([*words, "--model.detector", "fpn.ProposalNetwork", "--print_config"], folder)
    model = yaml.safe_load(said[said.index("seed_everything") :])["model"]
    assert model["detector"]["class_path"].endswith("ProposalNetwork")
    assert model["detector"]["init_args"]["bottom_up"]["class_path"] == "plain.Plain"


def test_a_refusal_names_all_that_is_missing(folder: Path, fitted: Path) -> None:
    said = run(["predict", "--ckpt_path", str(fitted), "--images", "shapes/val2017"], folder, status=2)
    parts = [module for module in MODULES if module != "counting"]  # a prediction is not scored
    assert all(f"--import {module}" in said for module in parts), said
    variables = {"FPN_IMPORT": ",".join(MODULES)}
    (folder / "load.py").write_text("import sys, fpn; fpn.load(sys.argv[1])")
    with Started([str(fitted)], folder, variables, script=folder / "load.py") as script:
        assert script.status() == 0, script.said()

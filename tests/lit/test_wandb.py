"""W&B without its server: the records of offline runs, read back, and what a sweep's agent would start."""

import csv
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from lit_runs import kept

from dashboard_picture import WandbRun, draw, read_run
from fpn.evaluation import BoxAP
from fpn.lit.callbacks.scores import Scores
from fpn.lit.cli import main
from fpn.study import pool
from fpn.study.paper import paper_table
from fpn.study.rows import plan

REPOSITORY = Path(__file__).resolve().parents[2]
TOGGLES = {"lateral": True, "top_down": True, "smooth": True, "nonlinearity": False, "shared": True}


@pytest.fixture(autouse=True)
def _without_an_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(Path("absent").absolute()))
    yield
    wandb.teardown()  # or the next test gets its open run and its working directory


def recorded(*words: str) -> WandbRun:
    """What the W&B run of a command holds."""
    before = set(Path("runs").glob("wandb/offline-run-*"))
    main([*words])
    wandb.finish()  # which the end of a process does
    (folder,) = set(Path("runs").glob("wandb/offline-run-*")) - before
    deadline = time.monotonic() + 60
    # Another process writes the records, and goes on for a while.
    while "exit" not in (run := read_run(folder)).about and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.about["exit"] == 0
    return run


def steps(run: WandbRun) -> list[float]:
    return [row["trainer/global_step"] for row in run.history if "trainer/global_step" in row]


def at(config: Any, path: str) -> Any:
    """A value of a nested configuration by its name with dots."""
    for key in path.split("."):
        config = config[key]
    return config


def test_a_training_that_goes_on_and_its_test_are_one_run(
    config: str, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AP of the validations is given: 1/8, 3/8, 1/4, and after going on 5/16."""
    given = iter([0.125, 0.375, 0.25, 0.3125, 0.1875])
    scored = BoxAP._scored
    monkeypatch.setattr(BoxAP, "_scored", lambda self, scores: scored(self, scores) | {"AP": next(given)})
    often = ["--trainer.num_sanity_val_steps", "0", "--trainer.check_val_every_n_epoch", "1"]
    words = ["fit", "--config", "wandb", "--config", config, *often]
    monkeypatch.setenv("WANDB_PROJECT", "detector")

    first = recorded(*words, "--model.schedule.steps", "15")
    # What the run is.
    resolved = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    neck = resolved["model"]["detector"]["init_args"]["neck"]["init_args"]
    told = at(first.config, "model.detector.neck")
    assert {key: told[key] for key in neck if key != "levels"} == {
        key: value for key, value in neck.items() if key != "levels"
    }
    assert yaml.safe_load(told["levels"]) == neck["levels"]
    assert at(first.config, "model.schedule.steps") == 15
    assert at(first.config, "model.optimizer.class_path") == resolved["model"]["optimizer"]["class_path"]
    assert at(first.config, "data.root") == str(shapes)
    assert at(first.config, "trainer.check_val_every_n_epoch") == 1
    assert set(resolved) <= set(first.config)
    assert {name: first.config[name] for name in TOGGLES} == TOGGLES
    assert first.about["tags"] == ["lateral", "top_down", "smooth", "no nonlinearity", "shared"]
    packages = ("fpn", "torch", "torchvision", "lightning")
    assert first.config["versions"] == {name: version(name) for name in packages}
    # What came out.
    with Path("runs/tiny/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert first.series("train/loss")[1] == pytest.approx([float(row["train/loss"]) for row in rows])
    assert first.series("val/AP")[1] == [0.125, 0.375, 0.25]
    assert first.summary["val/AP"] == 0.375
    assert first.summary["train/loss"] == first.series("train/loss")[1][-1]
    for name in ("toggles", "lr_seed"):  # is what a sweep maximises
        sweep = yaml.safe_load((REPOSITORY / f"scripts/sweep_{name}.yaml").read_text())
        assert isinstance(first.summary[sweep["metric"]["name"]], float)
    assert steps(first) == sorted(steps(first))
    assert [place for place, row in enumerate(first.history) if "val/categories" in row] != []

    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    second = recorded(*words, "--model.schedule.steps", "20", "--ckpt_path", last)
    assert second.about["id"] == first.about["id"]
    assert second.series("val/AP")[1] == [0.3125]
    assert second.summary["val/AP"] == 0.375
    assert min(steps(second)) >= max(steps(first)) - 1
    assert at(second.config, "model.schedule.steps") == 20

    best = "runs/tiny/version_1/checkpoints/best.ckpt"
    assert (
        kept(Path("runs/tiny/version_1"), "best")["fpn"]["loggers"]["Dashboard"]
        == f"detector/{first.about['id']}"
    )
    monkeypatch.delenv("WANDB_PROJECT")
    test = recorded("test", "--ckpt_path", best, "--config", "wandb", "--data.batch_size", "1")
    scores = json.loads(Path("runs/tiny/version_1/test/scores.json").read_text())
    by_category = scores.pop("by_category")
    assert test.about["id"] == first.about["id"]
    assert {run.about["project"] for run in (first, second, test)} == {"detector"}
    assert set(test.config) == {"_wandb"}, "the configuration stays that of the training"
    assert steps(test) == []
    assert not {name for name in test.summary if name.startswith(("val/", "train", "epoch"))}
    for name, value in scores.items():
        expected = math.nan if value is None else value
        assert test.summary[f"test/{name}"] == pytest.approx(expected, nan_ok=True), name
    table = test.table("test/categories")
    assert table.pop("category") == list(by_category)
    for name, column in table.items():
        assert column == [one[name] for one in by_category.values()]
    assert len(test.pictures("test/pictures")) == 5
    assert set(test.curves("test/pr")) == {"IoU .50", "IoU .75", "IoU .50:.95"}
    draw(first)
    draw(second, "val")


@pytest.mark.parametrize(
    ("host", "base"),
    [("api.wandb.ai", None), ("wandb.corp.example:8080", "http://wandb.corp.example:8080"), ("other", None)],
)
def test_it_is_online_where_an_account_is_known(
    host: str, base: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", base or "https://api.wandb.ai")
    ask = [
        sys.executable,
        "-c",
        "from fpn.lit.wandb import _offline; print(_offline())",
    ]  # which W&B remembers
    assert subprocess.run(ask, capture_output=True, check=True, text=True).stdout.strip() == str(
        host == "other"
    )


def test_numbers_of_a_callback_in_a_test_are_sent(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Scores, "on_test_epoch_end", lambda _, trainer, module: module.log("latency_ms", 12.5), raising=False
    )
    main(["fit", "--config", config])
    last = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--config", "wandb"]
    assert recorded("test", *last).summary["latency_ms"] == 12.5


def test_panels_of_a_validation(config: str, shapes: Path) -> None:
    """Whichever place the file has that adds the dashboard; pictures have the boxes of the annotations."""
    run = recorded("fit", "--config", config, "--config", str(REPOSITORY / "configs/wandb.yaml"))
    pictures = run.pictures("val/pictures")
    assert len({image.size for image, _ in pictures}) == 1, "as W&B takes them to be"
    truth = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    objects = [one for one in truth["annotations"] if not one["iscrowd"]]
    assert sum(len(layers["truth"]) for _, layers in pictures) == len(objects)
    # Images of 96 pixels at most are not resized.
    boxes = [tuple(box["position"].values()) for _, layers in pictures for box in layers["truth"]]
    corners = [(x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in objects)]
    for box, expected in zip(sorted(boxes), sorted(corners), strict=True):
        assert box == pytest.approx(expected, abs=0.01)
    categories = run.table("val/categories")["category"]
    assert categories == [one["name"] for one in truth["categories"]]
    present = {one["category_id"] for one in objects}
    names = [one["name"] for one in truth["categories"] if one["id"] in present]
    for end in ("50", "75", "50_95"):
        assert list(run.curves(f"val/pr_{end}_by_category")) == names
    for name, (recall, _) in run.curves("val/pr").items():
        assert recall == pytest.approx([number / 100 for number in range(101)]), name


def test_rows_of_a_table_have_names_and_groups(config: str) -> None:
    (task,) = plan(["table1"], ["d"], seeds=[2], wandb=True)
    fit, test = task.steps
    logger = ["--trainer.logger", fit.words[fit.words.index("--trainer.logger") + 1]]
    neck = ["--model.detector.neck.top_down", "false"]
    run = recorded("fit", "--config", config, *neck, *(word.replace("runs/study", "runs") for word in logger))
    about = {"name": "table1 d seed_2", "group": "table1/d"}
    assert {key: run.about[key] for key in about} == about
    toggles = ["lateral", "no top_down", "smooth", "no nonlinearity", "shared"]
    assert run.about["tags"] == ["table1", "table1 d", "paper", "coco", *toggles]
    assert {name: run.config[name] for name in TOGGLES} == TOGGLES | {"top_down": False}
    study = run.config["study"]
    assert (study["table"], study["row"], study["name"]) == ("table1", "d", "bottom-up pyramid")
    assert (study["seed"], study["family"], study["data"]) == (2, "paper", "coco")
    # Its test goes on with it; that of another row's detector does not.
    _, dashboard = json.loads(test.words[test.words.index("--trainer.logger") + 1])
    assert dashboard["init_args"] == json.loads(logger[1])[1]["init_args"]
    *_, other = plan(["table3"], ["c"], wandb=True)
    (words,) = (step.words for step in other.steps)
    _, dashboard = json.loads(words[words.index("--trainer.logger") + 1])
    assert dashboard["init_args"]["go_on"] is False


@pytest.mark.parametrize("command", ["ablate", "report"])
def test_the_table_of_a_report(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the paper's each, our means over two seeds beside its numbers."""
    monkeypatch.chdir(tmp_path)
    for row, seed, score in (("c", 0, 0.4), ("c", 1, 0.5), ("e", 0, 0.25), ("e", 1, None)):
        folder = Path(f"runs/table1/{row}/seed_{seed}")
        folder.mkdir(parents=True)
        about = {
            "table": "table1",
            "row": row,
            "name": "one",
            "seed": seed,
            "family": "paper",
            "data": "coco",
        }
        (folder / "run.json").write_text(json.dumps(about))
        if score is not None:
            scores = {"proposal_AR@1000": score, "proposal_AR@100": score / 2}
            (folder / "scores.json").write_text(json.dumps(scores))
    monkeypatch.setattr(pool, "run", lambda *_: 0)
    words = {"ablate": ["table1", "--out", "runs"], "report": ["runs", "--out", "runs"]}[command]
    run = recorded(command, *words, "--wandb")
    about = {"name": "table1 report", "group": "table1", "job_type": "report"}
    assert {key: run.about[key] for key in about} == about
    table = run.table("report/paper_coco")
    paper = paper_table("table1")
    assert table["row"] == list(paper.rows)
    for column in ("AR@1000", "AR@100", "AR@1000_small"):
        assert table[f"{column} paper"] == [row.values[column] for row in paper.rows.values()]
    ours = dict(
        zip(table["row"], zip(*(table[f"AR@1000 {s}"] for s in ("ours", "sd")), strict=True), strict=True)
    )
    assert ours["c"] == pytest.approx((45, 100 * 0.1 / 2**0.5))
    assert ours["e"] == (25, None)
    assert ours["a"] == (None, None)
    assert dict(zip(table["row"], table["n"], strict=True)) == dict.fromkeys(table["row"], 0) | {
        "c": 2,
        "e": 1,
    }


def test_the_commit_is_that_of_where_one_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Or else that of the clone that this project is run from, if it is."""
    from fpn.lit.wandb import _settings

    elsewhere = tmp_path / "mine" / "below"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    clone = REPOSITORY if (REPOSITORY / ".git").exists() else None
    assert _settings(True).git_root == (None if clone is None else str(clone))
    (tmp_path / "mine" / ".git").mkdir()
    assert _settings(True).git_root == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("files", "loggers"),
    [
        (["wandb"], ["fpn", "Dashboard"]),
        (["wandb", "tiny.yaml"], ["tiny", "Dashboard"]),
        (["tensorboard", "tiny.yaml", "wandb"], ["tiny", "TensorBoard", "Dashboard"]),
        (["tiny.yaml", "wandb", "own.yaml"], ["own", "Dashboard"]),
        (["more.yaml", "tiny.yaml", "wandb", "own.yaml"], ["own", "Dashboard"]),
        (["own.yaml", "wandb", "more.yaml"], ["own", "Dashboard"]),
        (["more.yaml", "tiny.yaml"], ["tiny"]),
    ],
)
def test_a_file_adds_its_dashboard_wherever_it_stands(
    files: list[str], loggers: list[str], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"class_path": "fpn.lit.metrics_file.MetricsFile", "init_args": {"save_dir": "runs", "name": "own"}}
    callbacks = [{"class_path": "fpn.lit.callbacks.Throughput"}]
    Path("own.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [own], "callbacks": callbacks}}))
    more = [{"class_path": "fpn.lit.callbacks.Scores"}]
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": more}}))
    words = [word for file in files for word in ("--config", file)]
    with pytest.raises(SystemExit):
        main(["fit", *words, "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    first, *others = given if isinstance(given := trainer["logger"], list) else [given]
    assert [first["init_args"]["name"], *(one["class_path"].rpartition(".")[2] for one in others)] == loggers
    all_callbacks = callbacks * ("own.yaml" in files) + more * ("more.yaml" in files)
    assert trainer["callbacks"] == (all_callbacks or None)


def test_a_run_is_named_by_wandb_unless_it_is_told(config: str) -> None:
    given = ["fit", "--config", config, "--config", "wandb", "--trainer.max_steps", "1"]
    given += ["--trainer.limit_val_batches", "0"]
    assert not recorded(*given).about["name"]
    assert recorded(*given, "--trainer.logger.init_args.name", "mine").about["name"] == "mine"


def test_a_dashboard_leaves_every_run_its_folder(config: str) -> None:
    """Whether there is a file logger too, and in whatever order."""
    both: list[dict[str, Any]] = [
        {"class_path": "fpn.lit.wandb.Dashboard"},
        {"class_path": "fpn.lit.metrics_file.MetricsFile", "init_args": {"save_dir": "runs", "name": "fpn"}},
    ]
    for loggers in ("fpn.lit.wandb.Dashboard", json.dumps(both)):
        recorded("fit", "--config", config, "--trainer.logger", loggers)
    written = {path for path in Path("runs").rglob("*") if path.is_file() and "wandb" not in path.parts}
    names = ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    assert written == {Path(f"runs/fpn/version_{run}", name) for run in range(2) for name in names}


@pytest.mark.long
@pytest.mark.parametrize(("name", "runs"), [("toggles", 12), ("lr_seed", 12)])
def test_every_run_of_a_sweep_is_one_of_its_own(
    name: str, runs: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    sweep = yaml.safe_load((REPOSITORY / f"scripts/sweep_{name}.yaml").read_text())
    keys = list(sweep["parameters"])
    seen = set()
    for values in itertools.product(*(sweep["parameters"][key]["values"] for key in keys)):
        # As the agent fills in its macros.
        arguments = [f"--{key}={value}" for key, value in zip(keys, values, strict=True)]
        words = [
            word
            for part in sweep["command"]
            for word in {"${env}": [], "${args}": arguments}.get(part, [part])
        ]
        assert words[0] == "fpn"
        with pytest.raises(SystemExit) as caught:
            main([*words[1:], "--print_config"])
        assert caught.value.code == 0
        resolved = yaml.safe_load(capsys.readouterr().out)
        loggers = [logger["class_path"] for logger in resolved["trainer"]["logger"]]
        assert "fpn.lit.wandb.Dashboard" in loggers
        seen.add(json.dumps([resolved["model"], resolved["seed_everything"]]))
    assert len(seen) == runs
    assert sweep["metric"] == {"name": "val/AP", "goal": "maximize"}

"""W&B without its server: what runs are called, that they go on, and what a sweep's agent would start."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from fpn.lit.cli import main
from fpn.study.rows import plan

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _without_an_account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(Path("absent").absolute()))
    yield
    wandb.teardown()  # or the next test gets its open run and its working directory


def test_a_run_that_goes_on_goes_on_in_wandb(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    original = wandb.init

    def init(**arguments: Any) -> Any:
        given.append(arguments)
        return original(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    (task,) = plan(["table1"], ["d"], seeds=[2], wandb=True)
    words = list(task.steps[0].words)
    logger = ["--trainer.logger", words[words.index("--trainer.logger") + 1].replace("runs/study", "runs")]
    main(["fit", "--config", config, *logger])
    wandb.finish()  # which the end of a process does
    last = "runs/table1/d/seed_2/version_0/checkpoints/last.ckpt"
    main(["fit", "--config", config, *logger, "--ckpt_path", last, "--model.schedule.steps", "6"])
    wandb.finish()
    first, second = given
    assert (first["project"], first["group"], first["name"]) == ("fpn", "table1/d", "table1 d seed_2")
    toggles = ["lateral", "no top_down", "smooth", "no nonlinearity", "shared"]
    assert first["tags"] == ["table1", "table1 d", "paper", "coco", *toggles]
    assert first["id"] is None
    (id_,) = {folder.name.rpartition("-")[2] for folder in Path("runs/wandb").glob("offline-run-*")}
    assert (second["id"], second["resume"]) == (id_, "allow")


def test_a_dashboard_leaves_every_run_its_folder(config: str) -> None:
    """Whether there is a file logger too, and in whatever order."""
    both: list[dict[str, Any]] = [
        {"class_path": "fpn.lit.wandb.Dashboard"},
        {"class_path": "fpn.lit.metrics_file.MetricsFile", "init_args": {"save_dir": "runs", "name": "fpn"}},
    ]
    for loggers in ("fpn.lit.wandb.Dashboard", "fpn.lit.wandb.Dashboard", json.dumps(both)):
        main(["fit", "--config", config, "--trainer.logger", loggers])
        wandb.finish()  # which the end of a process does
    written = {path for path in Path("runs").rglob("*") if path.is_file() and "wandb" not in path.parts}
    names = ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    assert written == {Path(f"runs/fpn/version_{run}", name) for run in range(3) for name in names}
    assert len(list(Path("runs/wandb").glob("offline-run-*"))) == 3


def test_pictures_without_an_account(config: str, shapes: Path) -> None:
    main(["fit", "--config", config, "--config", str(REPOSITORY / "configs/wandb.yaml")])
    wandb.finish()  # which writes its files
    (run,) = Path("runs/wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    pictures = list(run.glob("files/media/images/val/pictures_*.png"))
    assert len(pictures) == 5
    layers = [json.loads(p.read_text()) for p in run.glob("files/media/metadata/boxes2D/val/*.json")]
    truth = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())["annotations"]
    drawn = [len(layer["box_data"]) for layer in layers if layer["box_data"]]
    assert sum(drawn) == sum(not a["iscrowd"] for a in truth)


@pytest.mark.parametrize(
    ("name", "runs"), [("toggles", 12), pytest.param("lr_seed", 12, marks=pytest.mark.long)]
)
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

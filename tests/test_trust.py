"""No code runs from a checkpoint, and of a configuration only the classes it names."""

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.elastic.multiprocessing.subprocess_handler
import torch.distributed.optim
import yaml

from fpn import InputError, ProposalNetwork, load
from fpn.checkpoints import build_detector, remembered_version, start_from
from fpn.data.datamodule import CocoDataModule
from fpn.data.shapes import generate_shapes
from fpn.lit.cli import main
from fpn.lit.module import DetectionModule
from fpn.models.detectors import Detector
from fpn.trust import check_classes, check_remembered

OWN = """
from pathlib import Path
import fpn
Path("imported").touch()

class Mine(fpn.ProposalNetwork):
    pass

def run(*words, **more):
    Path("ran").touch()
"""
DETECTOR = {
    "class_path": "fpn.ProposalNetwork",
    "init_args": {
        "bottom_up": {
            "class_path": "fpn.models.resnet.ResNet",
            "init_args": {"name": "resnet18", "norm": "batch", "width": 8},
        },
    },
}


def checkpoint(detector: Any, path: Path, **data: Any) -> Path:
    """As `fpn fit` writes it, but for the weights."""
    kept = {
        "config": {"model": {"detector": detector}, "data": data},
        "categories": {"ids": [1, 2], "names": ["a", "b"]},
        "image": {"short_side": 64, "max_side": 64},
    }
    torch.save({"fpn": kept, "state_dict": {}}, path)
    return path


def naming(path: list[str], value: Any) -> dict[str, Any]:
    detector: dict[str, Any] = copy.deepcopy(DETECTOR)
    inner = detector
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return detector


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module beside the working directory's files, imported by nobody yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    return name


@pytest.mark.parametrize(
    "path",
    [
        ["class_path"],
        ["init_args", "bottom_up"],
        ["init_args", "bottom_up", "class_path"],
        ["init_args", "rpn", "class_path"],
        ["init_args", "neck"],
    ],
)
@pytest.mark.parametrize(
    "value", ["os.system", "subprocess.getoutput", "{own}.run", "{own}.Mine", "antigravity.x"]
)
def test_a_checkpoint_names_nothing_strange(path: list[str], value: str, own: str, tmp_path: Path) -> None:
    before = set(sys.modules)
    file = checkpoint(naming(path, value.format(own=own)), tmp_path / "strange.ckpt")
    with pytest.raises(InputError, match=r"strange\.ckpt names .*(is not loaded unasked|is no class$)"):
        load(file)
    assert not Path("imported").exists()
    assert not {own, "antigravity"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "function", ["fpn.lit.cli.main", "torch.hub.load", "torch.load", "fpn.data.shapes.generate_shapes"]
)
def test_a_checkpoint_runs_no_function(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (["class_path"], ["init_args", "bottom_up"], ["init_args", "bottom_up", "class_path"]):
        file = checkpoint(naming(path, function), tmp_path / "function.ckpt")
        with pytest.raises(InputError, match=rf"function\.ckpt names {function}, which is no class"):
            load(file)
    assert list(tmp_path.iterdir()) == [tmp_path / "function.ckpt"]


def test_a_class_of_ones_own_is_loaded_once_imported(own: str, tmp_path: Path) -> None:
    file = checkpoint(naming(["class_path"], f"{own}.Mine"), tmp_path / "own.ckpt")
    with pytest.raises(InputError, match=f"import {own} first"):
        load(file)
    __import__(own)
    # Built, and only then found to lack its weights.
    with pytest.raises(InputError, match=r"own\.ckpt does not fit this detector: it has no bottom_up"):
        load(file)


def test_the_command_line_loads_what_its_user_names(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(naming(["class_path"], f"{own}.Mine"), tmp_path / "own.ckpt", root="absent")
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"model": {"detector": {"class_path": f"{own}.Mine"}}}))
    for words, message in (
        ([], f"own.ckpt names {own}.Mine, which is not loaded unasked"),
        (["--config", str(config)], "no such annotation file"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["test", "--ckpt_path", str(file), *words])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
        assert Path("imported").exists() == bool(words)


def test_a_configuration_runs_no_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "ran"
    refused = "is no class: a configuration names classes only"
    for detector, message in (
        ({"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}, refused),
        (
            {"bottom_up": {"class_path": "subprocess.getoutput", "init_args": {"cmd": f"touch {marker}"}}},
            refused,
        ),
        ({"bottom_up": "subprocess.getoutput"}, "subprocess.getoutput"),
    ):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"model": {"detector": detector}}))
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--config", str(config)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
        assert not marker.exists()


Rewritten = Callable[[Callable[[dict[str, Any]], object]], Path]

SHELL = {"args": "touch ran", "shell": True}
POPEN = {"class_path": "torch.utils.collect_env.subprocess.Popen", "init_args": SHELL}
HANDLER = {
    "class_path": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
    "init_args": {
        "entrypoint": "touch",
        "args": ["ran"],
        "env": {},
        "stdout": None,
        "stderr": None,
        "local_rank_id": 0,
    },
}


def linear(device: Any) -> dict[str, Any]:
    """A head that is a network, with something else where its constructor's hints are none."""
    return {"class_path": "torch.nn.Linear", "init_args": {"out_features": 2, "device": device}}


def with_head(content: dict[str, Any], head: Any) -> None:
    content["fpn"]["config"]["model"]["detector"]["init_args"]["roi_head"]["init_args"]["head"] = head


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `fpn fit` writes."""
    folder = tmp_path_factory.mktemp("trained")
    generate_shapes(folder / "shapes", train=2, val=1, long_side=64)
    content = {
        "trainer": {
            "accelerator": "cpu",
            "logger": {
                "class_path": "fpn.lit.metrics_file.MetricsFile",
                "init_args": {"save_dir": str(folder), "name": "run"},
            },
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "enable_model_summary": False,
        },
        "model": {
            "detector": {
                "bottom_up": {"name": "resnet18", "norm": "batch", "width": 8},
                "neck": {"channels": 8},
                "roi_head": {"head": {"hidden": 16}},
            },
            "schedule": {"steps": 1, "milestones": [], "warmup_steps": 0, "reference_images": 2},
        },
        "data": {
            "root": str(folder / "shapes"),
            "images": {"short_side": 64, "max_side": 64},
            "num_workers": 0,
        },
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(config)])
    checkpoint: dict[str, Any] = torch.load(folder / "run/version_0/checkpoints/last.ckpt", weights_only=True)
    return checkpoint


@pytest.fixture
def rewritten(trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rewritten:
    """That checkpoint with a change of ill will, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        content = copy.deepcopy(trained)
        change(content)
        torch.save(content, "evil.ckpt")
        return Path("evil.ckpt")

    return write


def began_from(file: Path) -> None:
    with torch.device("meta"):  # refused before its weights are copied
        detector = build_detector([{"bottom_up": {"name": "resnet18", "width": 8}}], 10)
    start_from(detector, file)


def refused(command: str, file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Why `fpn COMMAND`, or what Python calls in its place, refuses a checkpoint."""
    called = {
        "load": load,
        "start_from": began_from,
        "loggers": lambda file: remembered_version(file, "Dashboard"),
    }
    if command in called:
        with pytest.raises(InputError) as caught:
            called[command](file)
        return str(caught.value)
    words = ["--split", "val"] if command == "predict" else []
    with pytest.raises(SystemExit) as ended:
        main([command, "--ckpt_path", str(file), *words])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["load", "start_from", "test"])
@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (linear(POPEN), "Popen, which is no network"),
        (linear([{"more": POPEN}]), "Popen, which is no network"),
        ({**linear(None), "dict_kwargs": {"device": POPEN}}, "Popen, which is no network"),
        (linear(yaml.safe_dump(POPEN)), "which may be read as a file or as settings"),
        (linear(HANDLER), "SubprocessHandler, which is no network"),
    ],
    ids=["popen", "in a list", "in dict_kwargs", "as a text", "handler"],
)
def test_a_checkpoint_makes_no_process(
    command: str, head: Any, reason: str, rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rewritten(lambda content: with_head(content, head))
    assert reason in refused(command, file, capsys)
    time.sleep(0.1)  # as long as a process of ill will takes to be seen
    assert not Path("ran").exists()


def test_an_optimizer_of_a_checkpoint_makes_no_process(
    rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = {
        "class_path": "torch.distributed.optim.ZeroRedundancyOptimizer",
        "init_args": {"optimizer_class": "torch.optim.SGD", "process_group": HANDLER},
    }
    file = rewritten(lambda content: content["fpn"]["config"]["model"].update(optimizer=optimizer))
    assert "SubprocessHandler, which is no network" in refused("test", file, capsys)
    time.sleep(0.1)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("test", "model"),
        ("test", "data"),
        ("test", "model.detector"),
        ("test", "model.optimizer"),
        ("test", "model.schedule"),
        ("test", "model.detector.init_args.neck"),
        ("test", "model.detector.init_args.loss"),
        ("load", "model"),
        ("load", "model.detector"),
        ("load", "model.detector.init_args.neck"),
        ("start_from", "model.detector.init_args.neck"),
        ("predict", "data"),
    ],
)
@pytest.mark.parametrize("text", ["own.yaml", "memory://own.yaml"])
def test_a_checkpoint_has_no_file_read(
    command: str,
    place: str,
    text: str,
    rewritten: Rewritten,
    own: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the parser of configurations takes as a file of them is not read: nobody looked at its names."""
    settings: dict[str, Any] = {"class_path": f"{own}.Mine"}
    Path("own.yaml").write_text(yaml.safe_dump({"detector": settings} if place == "model" else settings))

    def change(content: dict[str, Any]) -> None:
        *above, last = place.split(".")
        inner = content["fpn"]["config"]
        for key in above:
            inner = inner[key]
        inner[last] = text

    message = refused(command, rewritten(change), capsys)
    assert f"as {place.rpartition('.')[2]}, which may be read" in message or "no mapping" in message
    assert not Path("imported").exists()


def test_a_checkpoint_says_nothing_of_the_trainer(rewritten: Rewritten, tmp_path: Path) -> None:
    logger = {
        "class_path": "fpn.lit.metrics_file.MetricsFile",
        "init_args": {"save_dir": "elsewhere", "name": "run"},
    }
    more = {"trainer": {"logger": logger}, "verbose": True, "ckpt_path": "another.ckpt"}
    file = rewritten(lambda content: content["fpn"]["config"].update(more))
    main(["test", "--ckpt_path", str(file)])
    assert Path("runs/fpn/version_0/scores.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"evil.ckpt", "runs"}


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("categories", None, "no mapping"),
        ("categories", {"ids": [1, 2]}, "does not tell its categories"),
        ("categories", {"ids": [1, 2], "names": ["one"]}, "does not tell its categories"),
        ("image", 7, "no mapping"),
        ("image", {"long_side": 7}, "does not tell how its images are prepared"),
        ("loggers", [1], "no mapping"),
    ],
)
def test_a_checkpoint_that_lacks_what_it_must_tell(
    part: str, value: Any, reason: str, rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    readers = {
        "categories": ["load", "start_from", "test"],
        "image": ["load", "predict"],
        "loggers": ["loggers"],
    }
    file = rewritten(lambda content: content["fpn"].update({part: value}))
    for command in readers[part]:
        assert reason in refused(command, file, capsys)


@pytest.mark.parametrize("values", [torch.zeros(2), {1, 2}, b"x"])
def test_a_checkpoint_has_plain_values(
    values: Any, rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rewritten(lambda content: content["fpn"]["config"]["model"].update(frozen_parts=[values]))
    assert "as frozen_parts, no plain value" in refused("test", file, capsys)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fpn.lit.cli.Path", "is no network"),
        ("fpn.lit.cli.DetectionCLI", "is no network"),
        ("fpn.lit.metrics_file.MetricsFile", "is no network"),
        ("fpn.checkpoints.torch.nn.Linear", "is no network"),
        ("fpn.__main__.main", "is not loaded unasked"),
        ("torch.Tensor", "is no network"),
        ("torch.nn.functional.relu", "is no class"),
        ("torch.float32", "is no class"),
        ("subprocess.Popen", "is no network"),
        ("yaml.YAMLObject", "is no network"),
        ("Popen", "is no class in a module"),
        (3, "is no class in a module"),
    ],
)
def test_classes_that_belong_to_no_detector(name: Any, reason: str) -> None:
    for config in ({"class_path": name}, {"init_args": {"a": [{"class_path": name}]}}):
        with pytest.raises(InputError, match=f"x.ckpt names .*, which {reason}"):
            check_remembered(config, Detector, "x.ckpt")
    # Its own name, which is the stranger's to choose, asks for nothing.
    with pytest.raises(InputError, match=reason):
        check_remembered({"class_path": name}, Detector, str(name), f"test --ckpt_path {name}")
    for text in (f"x.{name}", f"{name}2", f"{name}.ckpt", f"folder/{name}"):
        with pytest.raises(InputError, match=reason):
            check_remembered({"class_path": name}, Detector, "x.ckpt", text)


@pytest.mark.parametrize(
    "name",
    [
        "fpn.FasterRCNN",
        "fpn.models.detectors.FastRCNN",
        "fpn.data.datamodule.ShapesDataModule",
        "fpn.lit.schedule.Schedule",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.StepLR",
        f"{__name__}.Own",
    ],
)
def test_classes_of_detectors_and_their_training(name: str) -> None:
    check_remembered({"class_path": name}, object, "x.ckpt")


class Own(ProposalNetwork):
    pass


def test_texts_that_stay_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set.d").mkdir()
    Path("test.json").touch()
    data = {
        "root": "set.d",
        "train": {"annotations": "test.json"},
        "val": {"images": "/data/{a: 1}"},
        "images": {"rounding": "down"},
    }
    check_remembered(data, CocoDataModule, "x.ckpt")
    check_remembered({"class_path": "fpn.data.datamodule.ShapesDataModule", "init_args": data}, object, "x")
    model = {"start_from": "runs/code.ckpt", "frozen_parts": ["test.json"]}
    check_remembered(model, DetectionModule, "x.ckpt")
    with pytest.raises(InputError, match=r"x\.ckpt names test\.json"):
        check_remembered({"class_path": "test.json"}, object, "x.ckpt")
    check_remembered(linear("cuda:0"), object, "x.ckpt")
    for text in (
        "-",
        "~",
        "~/a",
        "a b",
        "/a",
        "file:///a",
        "zip::a",
        "{a: b}",
        "a: b",
        "- a",
        "a\n",
        "set.d",
    ):
        with pytest.raises(InputError, match=r"x\.ckpt (has|names)"):
            check_remembered(linear(text), object, "x.ckpt")
        check_remembered(linear(text), object, "x.ckpt", f"--device {text} --more")


def test_names_of_files_are_no_classes() -> None:
    check_classes({"root": "data.d/set", "start_from": ["code.ckpt"], "class_path": "fpn.FasterRCNN"})
    with pytest.raises(InputError, match=r"os\.system is no class"):
        check_classes({"a": [{"class_path": "os.system"}]})

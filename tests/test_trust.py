"""What a checkpoint may name: classes that are installed, imported or named by the user, and no code runs."""

import copy
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.elastic.multiprocessing.subprocess_handler
import torch.distributed.optim
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from fpn import InputError, ProposalNetwork, load
from fpn.checkpoints import build_detector, remembered, start_from
from fpn.data.shapes import generate_shapes
from fpn.lit.checkpointing import WholeCheckpoints
from fpn.lit.cli import main
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
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        "os.system",
        "subprocess.Popen",
        "{own}.run",
        "{own}.Mine",
        "fpn.lit.cli.main",
        "torch.hub.load",
        "torch.load",
    ],
)
def test_a_checkpoint_names_nothing_strange(path: list[str], value: str, own: str, tmp_path: Path) -> None:
    file = checkpoint(naming(path, value.format(own=own)), tmp_path / "strange.ckpt")
    with pytest.raises(InputError, match=r"strange\.ckpt"):
        load(file)
    assert {path.name for path in tmp_path.iterdir()} == {f"{own}.py", "strange.ckpt"}
    assert own not in sys.modules


def test_a_class_of_ones_own_is_loaded_once_imported(own: str, tmp_path: Path) -> None:
    file = checkpoint(naming(["class_path"], f"{own}.Mine"), tmp_path / "own.ckpt")
    with pytest.raises(InputError, match=rf"{own}\.Mine, which is not installed.*: add --import {own} "):
        load(file)
    __import__(own)
    # Built, and only then found to lack its weights.
    with pytest.raises(InputError, match=r"own\.ckpt does not fit this detector: it has no bottom_up"):
        load(file)


@pytest.mark.parametrize("word", ["option", "list", "environment", "configuration"])
def test_the_command_line_imports_what_its_user_names(
    word: str, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(naming(["class_path"], f"{own}.Mine"), tmp_path / "own.ckpt", root="absent")
    test = ["test", "--ckpt_path", str(file)]
    assert f"own.ckpt names {own}.Mine" in ended(test, capsys)
    assert not Path("imported").exists()
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"model": {"detector": {"class_path": f"{own}.Mine"}}}))
    words = {
        "option": ["--import", own],
        "list": [f"--import=json,{own}", "--import", "csv"],
        "environment": [],
        "configuration": ["--config", str(config)],
    }[word]
    if word == "environment":
        monkeypatch.setenv("FPN_IMPORT", own)
    assert "no such folder; data.root" in ended([*test, *words], capsys)
    assert Path("imported").exists()


def test_a_module_that_cannot_be_imported_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--import nowhere: No module named 'nowhere'" in ended(["test", "--import", "nowhere"], capsys)


def test_a_file_here_takes_no_packages_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration imports from the working directory, which comes last."""
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "yaml", "my_neck"):
        Path(f"{name}.py").write_text("import sys; print('ran', __name__)")
    for command in (
        [sys.executable, "-m", "fpn"],
        [sys.executable, "-c", "from fpn.lit.cli import main; main()"],
    ):
        run = subprocess.run(
            [*command, "configs", "--import", "my_neck"], capture_output=True, text=True, check=True
        )
        assert "table1/d_bottom_up_pyramid" in run.stdout
        assert re.findall("ran (.*)", run.stdout) == ["my_neck"]


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
RUNS_A_TEXT = {
    "class_path": "sympy.Lambda",  # which torch itself installs
    "init_args": {"signature": "x", "expr": "__import__('os').system('touch ran')"},
}
RETRIEVAL = {"class_path": "torchmetrics.retrieval.RetrievalMAP", "init_args": {"aggregation": RUNS_A_TEXT}}
NORM = {
    "class_path": "timm.layers.BatchNormAct2d",
    "init_args": {"num_features": 2, "act_layer": RUNS_A_TEXT},
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


def ended(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with, and status 2."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def refused(command: str, file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Why `fpn COMMAND`, or what Python calls in its place, refuses a checkpoint."""
    called = {
        "load": load,
        "start_from": began_from,
        "loggers": remembered,
    }
    if command in called:
        with pytest.raises(InputError) as caught:
            called[command](file)
        return str(caught.value)
    words = ["--split", "val"] if command == "predict" else []
    return ended([command, "--ckpt_path", str(file), *words], capsys)


@pytest.mark.parametrize("command", ["load", "test"])
@pytest.mark.parametrize(
    "head",
    [
        linear(POPEN),
        linear([{"more": POPEN}]),
        {**linear(None), "dict_kwargs": {"device": POPEN}},
        linear(yaml.safe_dump(POPEN)),
        linear(HANDLER),
        POPEN,
        HANDLER,
        RUNS_A_TEXT,
        RETRIEVAL,
        yaml.safe_dump(RETRIEVAL),
        NORM,
    ],
    ids=[
        "popen",
        "in a list",
        "in dict_kwargs",
        "as a text",
        "handler",
        "as the head",
        "handler as the head",
        "what runs a text",
        "that, where any callable may be",
        "the same as a text",
        "where timm takes any callable",
    ],
)
def test_a_checkpoint_makes_no_process(command: str, head: Any, rewritten: Rewritten) -> None:
    file = rewritten(lambda content: with_head(content, head))
    with pytest.raises((InputError, SystemExit, TypeError)):
        load(file) if command == "load" else main(["test", "--ckpt_path", str(file)])
    time.sleep(0.1)  # as long as a process of ill will takes to be seen
    assert not Path("ran").exists()


def with_transform(content: dict[str, Any], name: str, **arguments: Any) -> None:
    transform = {"class_path": f"torchvision.transforms.v2.{name}", "init_args": arguments}
    content["fpn"]["config"]["data"]["init_args"]["images"]["augment"] = [transform]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("Compose", {"transforms": [RUNS_A_TEXT]}, "sympy.Lambda"),
        ("Lambda", {"lambd": RUNS_A_TEXT}, "sympy.Lambda"),
        ("Compose", {"transforms": ["sympy.Tuple.fromiter"]}, "sympy.Tuple.fromiter is nothing"),
        ("Compose", {"transforms": ["torch.Tensor.tanh"]}, "torch.Tensor.tanh is nothing"),
        ("Compose", {"transforms": ["torch.ops.load_library"]}, "torch.ops.load_library is nothing"),
        ("Lambda", {"lambd": "torch._inductor.codecache.PyCodeCache.load"}, "load is nothing"),
    ],
)
def test_a_transform_of_a_checkpoint_runs_no_text(
    name: str, arguments: Any, told: str, rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rewritten(lambda content: with_transform(content, name, **arguments))
    for command in ("predict", "test"):
        assert told in refused(command, file, capsys)
    assert not Path("ran").exists()


def test_a_network_of_a_checkpoint_calls_no_method(rewritten: Rewritten) -> None:
    """A collection of metrics gives a mapping, whose keys are texts that sympy then reads."""
    text = "__import__('os').system('touch ran')+"
    metrics = {"k": {"class_path": "torchmetrics.SumMetric"}}
    made = {"class_path": "torchmetrics.MetricCollection", "init_args": {"metrics": metrics, "prefix": text}}
    chain = {
        "class_path": "torchvision.transforms.v2.Compose",
        "init_args": {"transforms": [made, "sympy.Tuple.fromiter"]},
    }
    bottom_up = {
        "class_path": "fpn.models.bottom_up.BottomUp",
        "init_args": {"stages": {2: chain}, "channels": dict.fromkeys(range(2, 6), 8)},
    }

    def change(content: dict[str, Any]) -> None:
        content["fpn"]["config"]["model"]["detector"]["init_args"]["bottom_up"] = bottom_up

    with pytest.raises(InputError, match=r"sympy\.Tuple\.fromiter is nothing that detectors are made of"):
        load(rewritten(change))


def test_a_text_is_no_name_when_things_are_made_either(own: str, rewritten: Rewritten) -> None:
    """Where a text will do as well as a function, it is parsed as a text, and once more when it is used."""
    file = rewritten(
        lambda content: with_transform(content, "SanitizeBoundingBoxes", labels_getter=f"{own}.run")
    )
    for command in (["test"], ["fit", "--model.schedule.steps", "2"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--ckpt_path", str(file)])
    assert own not in sys.modules
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["local://{}/mine", "{}/kept/../mine"])
def test_a_checkpoint_has_nothing_removed(name: str, rewritten: Rewritten, tmp_path: Path) -> None:
    """Lightning's callback removes the best checkpoint so far, which the state of an old one names."""
    mine, state = tmp_path / "mine", {"dirpath": "elsewhere", "best_model_path": name.format(tmp_path)}
    mine.mkdir()
    key = ModelCheckpoint().state_key
    file = rewritten(lambda content: content["callbacks"].update({key: state}))
    words = ["--model.schedule.steps", "2", "--trainer.default_root_dir", str(tmp_path / "run")]
    kept = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.dirpath", str(tmp_path / "kept")]
    main(["fit", "--ckpt_path", str(file), *words, *kept])
    assert mine.is_dir()
    assert len([*(tmp_path / "kept").iterdir()]) == 1


def test_what_a_callback_replaces_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are those of a logger's folder; what was written before a run went on may be remote."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for name in ("runs/old.ckpt", "memory://runs/old.ckpt", "memory://other/old.ckpt"):
        torch.save({}, name) if name.startswith("runs") else fsspec.open(name, "wb").open().close()
    keeper = WholeCheckpoints()
    keeper.save_checkpoint({}, "memory://runs/new.ckpt")
    memory = fsspec.filesystem("memory")
    for name in (
        "runs/old.ckpt",
        "memory://runs/old.ckpt",
        "memory://other/old.ckpt",
        "memory://runs/../other",
    ):
        keeper.remove_checkpoint(name)
    assert not Path("runs/old.ckpt").exists()
    assert not memory.exists("/runs/old.ckpt")
    assert memory.exists("/runs/new.ckpt")
    assert memory.exists("/other/old.ckpt")


def test_a_run_goes_on_with_a_class_that_imports_late(own: str, rewritten: Rewritten, tmp_path: Path) -> None:
    late = f"own_late_{tmp_path.name}"
    Path(f"{late}.py").write_text("")
    Path(f"{own}_callback.py").write_text(
        "from lightning.pytorch import Callback\n\nclass Late(Callback):\n"
        f"    def __init__(self):\n        import {late}\n"
    )
    file = rewritten(lambda content: None)
    words = ["--model.schedule.steps", "2", "--trainer.default_root_dir", str(tmp_path / "run")]
    main(["fit", "--ckpt_path", str(file), *words, "--trainer.callbacks", f"{own}_callback.Late"])
    assert late in sys.modules


@pytest.mark.parametrize("text", ["{}", "{{class_path: {}}}", '{{class_path: "{}"}}', "[{{class_path: {}}}]"])
@pytest.mark.parametrize(
    "name", ["unittest.__main__.main", "pip.__main__.main", "antigravity.x", "{own}.run"]
)
def test_a_text_of_a_checkpoint_imports_nothing_strange(
    text: str, name: str, own: str, tmp_path: Path
) -> None:
    value = text.format(name.format(own=own))
    file = checkpoint(naming(["init_args", "bottom_up"], value), tmp_path / "strange.ckpt")
    with pytest.raises(InputError, match=r"strange\.ckpt"):
        load(file)
    for module in ("unittest.__main__", "pip.__main__", "antigravity", own):
        assert module not in sys.modules


@pytest.mark.parametrize("command", ["load", "test"])
@pytest.mark.parametrize("text", ["class_path: {}", "{{class_path: {}}}", "[{{class_path: {}}}]", "{}"])
def test_a_text_where_no_hint_asks_for_a_class_imports_nothing(
    command: str, text: str, own: str, rewritten: Rewritten
) -> None:
    """A text may become a mapping when it is parsed; the file that it names lies beside the checkpoint."""
    value = text.format(f"{own}.Mine")
    file = rewritten(lambda content: with_head(content, linear(value)))
    with pytest.raises((InputError, SystemExit, TypeError, RuntimeError)):
        load(file) if command == "load" else main(["test", "--ckpt_path", str(file)])
    assert not Path("imported").exists()
    assert own not in sys.modules


def test_an_optimizer_of_a_checkpoint_makes_no_process(rewritten: Rewritten) -> None:
    optimizer = {
        "class_path": "torch.distributed.optim.ZeroRedundancyOptimizer",
        "init_args": {"optimizer_class": "torch.optim.SGD", "process_group": HANDLER},
    }
    file = rewritten(lambda content: content["fpn"]["config"]["model"].update(optimizer=optimizer))
    main(["test", "--ckpt_path", str(file)])  # which makes no optimiser
    time.sleep(0.1)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("test", "model"),
        ("test", "data"),
        ("test", "model.detector.init_args.neck"),
        ("load", "model"),
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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a file that it names, nothing is made but what it might name itself; and no address is opened."""
    read: list[str] = []
    monkeypatch.setattr(fsspec, "open", lambda address, *_: read.append(address))
    settings: dict[str, Any] = {"class_path": f"{own}.Mine"}
    Path("own.yaml").write_text(yaml.safe_dump({"detector": settings} if place == "model" else settings))

    def change(content: dict[str, Any]) -> None:
        *above, last = place.split(".")
        inner = content["fpn"]["config"]
        for key in above:
            inner = inner[key]
        inner[last] = text

    refused(command, rewritten(change), capsys)
    assert not Path("imported").exists()
    assert not read


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
    ("part", "value"),
    [
        ("categories", None),
        ("categories", {"ids": [1, 2]}),
        ("categories", {"ids": [1, 2], "names": ["one"]}),
        ("image", 7),
        ("image", {"long_side": 7}),
        ("loggers", [1]),
    ],
)
def test_a_checkpoint_that_lacks_what_it_must_tell(
    part: str, value: Any, rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    readers = {
        "categories": ["load", "start_from", "test"],
        "image": ["load", "predict"],
        "loggers": ["loggers"],
    }
    file = rewritten(lambda content: content["fpn"].update({part: value}))
    for command in readers[part]:
        assert "evil.ckpt does not tell how it was trained: " in refused(command, file, capsys)


@pytest.mark.parametrize("values", [torch.zeros(2), b"x"])
def test_a_checkpoint_has_plain_values(
    values: Any, rewritten: Rewritten, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rewritten(lambda content: content["fpn"]["config"]["model"].update(frozen_parts=[values]))
    assert refused("test", file, capsys)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.Neck", "is not installed, and not imported unasked: add --import nowhere "),
        ("fpn.models.necks.Nowhere", "is no class that"),
        ("torch.nn.functional.relu", "is no class that"),
        ("torch.float32", "is no class that"),
        ("torch.utils.collect_env.subprocess.Popen", "is no class that"),
        ("subprocess.Popen", "is no class that"),
        ("antigravity.x", "is no class that"),
        ("fpn.__main__.main", "is no class in a module"),
        ("pip.__main__.x", "is no class in a module"),
        ("Popen", "is no class in a module"),
        (".Popen", "is no class in a module"),
        (3, "is no class in a module"),
    ],
)
def test_names_that_belong_to_no_detector(name: Any, reason: str) -> None:
    for config in ({"class_path": name}, {"init_args": {"a": [{"class_path": name}]}}):
        with pytest.raises(InputError, match=f"x.ckpt names .*, which {reason}"):
            check_remembered(config, "x.ckpt")
    assert "antigravity" not in sys.modules


def test_names_of_what_is_installed_or_imported() -> None:
    for name in ("fpn.FasterRCNN", "torch.optim.AdamW", "torchvision.models.ResNet", f"{__name__}.Own"):
        check_remembered({"class_path": name}, "x.ckpt")


class Own(ProposalNetwork):
    pass


def test_texts_are_no_classes(own: str) -> None:
    """Whatever lies about here under that name."""
    data = {
        "train": {"annotations": f"{own}.json"},
        "root": "data.d",
        "start_from": [f"{own}.run"],
        "x": "os.system",
    }
    check_remembered(data, "x.ckpt")
    check_classes(data)
    assert own not in sys.modules
    for function in (print, {"class_path": "os.system"}):
        with pytest.raises(InputError, match="is no class: a configuration names classes only"):
            check_classes({"a": [function]})


def test_a_project_that_is_installed_as_it_lies_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for who works in its folder, which a .pth file among the installed packages names."""
    packages, project = tmp_path / "packages", tmp_path / "project"
    packages.mkdir()
    project.mkdir()
    (project / "lying.py").write_text("import fpn\n\n\nclass Neck(fpn.Neck):\n    pass\n")
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    config = {"neck": {"class_path": "lying.Neck"}}
    monkeypatch.setattr("site.getsitepackages", lambda: [str(packages)])
    with pytest.raises(InputError, match="add --import lying"):
        check_remembered(config, "a checkpoint")
    (packages / "project.pth").write_text(f"import something\n{project}\n")
    check_remembered(config, "a checkpoint")

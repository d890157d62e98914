"""No code runs from a checkpoint, and of a configuration only the classes it names."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fpn import InputError, load
from fpn.lit.cli import main
from fpn.trust import check_classes, check_names

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
    with pytest.raises(InputError, match=r"strange\.ckpt names .* not loaded unasked"):
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
        with pytest.raises(InputError, match=r"function\.ckpt"):
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


def test_names_of_files_are_no_classes() -> None:
    files = {"train_annotations": "test.json", "start_from": ["code.ckpt", "this.pth"], "root": "data.d/set"}
    check_names(files, "x.ckpt")
    check_classes(files | {"class_path": "fpn.FasterRCNN"})
    with pytest.raises(InputError, match=r"x\.ckpt names test\.json"):
        check_names({"class_path": "test.json"}, "x.ckpt")

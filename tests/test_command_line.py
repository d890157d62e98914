"""The command itself: how soon it answers, and the configurations that come with it."""

import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from fpn.lit.cli import COMMANDS, main
from fpn.shipped import CONFIGS, config_file, config_names


def answered(*words: str) -> tuple[str, float]:
    """What `python -m fpn` says, and its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "fpn", *words], capture_output=True, text=True, check=True, env=os.environ
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        (["--help"], "usage: fpn COMMAND"),
        (["--version"], "fpn 0."),
        *(([command, "--help"], f"usage: fpn {command}") for command in ("fit", "validate", "test")),
    ],
)
def test_help_and_version_come_at_once(words: list[str], begin: str) -> None:
    said, seconds = answered(*words)
    assert said.startswith(begin)
    assert seconds < 1


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_short_and_has_examples(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two screens at most, whose examples are commands of its own."""
    monkeypatch.setenv("COLUMNS", "100")
    with suppress(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: fpn {command}")
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert not any("Args:" in line for line in lines)
    examples = lines[lines.index("examples:") :]
    assert any(line.startswith(f"    fpn {command}") for line in examples)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fit --epoch 3", "there is no option --epoch, but there is --epochs"),
        ("fit --traner.devices=2", "there is no option --traner.devices, but there is --trainer.devices"),
        ("fit --lr 0.1", "there is no option --lr, but there is --model.optimizer.lr"),
        ("fit --zzz 0.1", "there is no option --zzz: `--help` lists those there are"),
        ("fit --ckpt last.ckpt", "there is no option --ckpt, but there is --ckpt_path"),
        ("fit base.yaml", "fit does not take 'base.yaml': a configuration is named by --config base.yaml"),
        ("predict --image street.jpg", "there is no option --image, but there is --images"),
        ("test --ckpt_path best", "there is no best.ckpt below runs: give --ckpt_path its file"),
    ],
)
def test_a_mistyped_option_is_told_the_one_it_is_near_to(
    words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_nothing_heavy_is_imported_for_the_names_of_the_package() -> None:
    script = "import fpn, sys; print(fpn.__version__, 'torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "False"]


def test_every_name_of_the_package_is_there() -> None:
    import fpn

    assert all(getattr(fpn, name) is not None for name in fpn.__all__)
    with pytest.raises(AttributeError, match="no attribute 'FasterRCN'"):
        _ = fpn.FasterRCN


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("base", "base.yaml"),
        ("configs/base.yaml", "base.yaml"),
        ("table1/c", "table1/c_fpn.yaml"),
        ("table1/c_unshared", "table1/c_unshared.yaml"),
        ("table3/star", "table3/star_he_et_al.yaml"),
        ("table5/resnet50", "table5/resnet50.yaml"),
        ("scale/pocket", "scale/pocket.yaml"),
    ],
)
def test_names_are_of_files_anywhere(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(name) == CONFIGS / file


def test_every_letter_of_the_papers_tables_is_a_name() -> None:
    letters = {f"table{table}/{letter}" for table in (1, 2) for letter in "abcdef"}
    for name in letters | {"table3/a", "table3/b", "table3/c", "table4/resnet101", "table5/resnet101"}:
        assert config_file(name).parent.name == name.partition("/")[0]


def test_configurations_are_listed_copied_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    main(["configs"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    assert said.count("to begin with:") == 1
    assert all(name in said for name in config_names())
    main(["configs", "--copy", "table1/d", "--out", "mine.yaml"])
    assert Path("mine.yaml").read_text() == (CONFIGS / "table1/d_bottom_up_pyramid.yaml").read_text()
    capsys.readouterr()
    for row in ("mine.yaml", "table1/d"):
        with pytest.raises(SystemExit):
            main(["fit", "--config", "base", f"--config={row}", "--print_config"])
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["detector"]["init_args"]["neck"]["init_args"]["top_down"] is False


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["configs", "--copy", "table9/z"], "table9/z: no such file, nor a configuration of this package"),
        (["fit", "--config", "bse"], "bse: no such file, nor a configuration of this package; `fpn configs`"),
        (
            ["fit", "--config", "base", "--model.detector.neck.topdown", "false"],
            "there is no option model.detector.neck.topdown: `--help model` lists those there are",
        ),
        (
            ["fit", "--config", "base", "--data.rot", "x"],
            "there is no option data.rot: `--help data` lists those there are",
        ),
        (
            ["fit", "--config", "base", "--data.images.shrt_side", "96"],
            "there is no option data.images.shrt_side: `--help data` lists those there are",
        ),
        (
            ["fit", "--config", "base", "--model.optimizer.rate", "1"],
            "there is no option model.optimizer.rate: `--help model` lists those there are",
        ),
        (
            ["fit", "--config", "base", "--data.batch_size", "null"],
            "data.batch_size cannot be null: give a value",
        ),
        (
            ["fit", "--config", "base", "--model.optimizer.lr="],
            "model.optimizer.lr: give a number",
        ),
        (
            ["fit", "--config", "base", "--model.schedule.warmup_steps", "null"],
            "model.schedule.warmup_steps cannot be null: give a value",
        ),
        (["fit", "--config", "base", "--data.crowds", "all"], "data.crowds: give one of regions, objects"),
        (
            ["fit", "--config", "base", "--trainer.precision", "half"],
            "trainer.precision: give one of transformer-engine, transformer-engine-float16, 16-true,",
        ),
        (
            ["fit", "--config", "base", "--model.detector.neck", "Foo"],
            "model.detector.neck: there is no class Foo: `--help model` lists those there are",
        ),
        (
            ["fit", "--config", "base", "--trainer.logger", "TensorBoardLogger"],
            "trainer.logger: lightning.pytorch.loggers.TensorBoardLogger needs save_dir: give --",
        ),
        (
            ["fit", "--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.save_last", "foo"],
            "trainer.callbacks.save_last: give one of link, true, false",
        ),
        (["fit", "--config", "base", "--data.images.mean", "[0, 0]"], "data.images.mean: give a list of 3"),
        (["fit", "--config", "base", "--trainer.max_epochs", "1.5"], "trainer.max_epochs cannot be 1.5"),
        (
            ["fit", "--config", "base", "--data", "fpn.Neck"],
            "data cannot be fpn.Neck: Import path does not correspond to a subclass of CocoDataModule",
        ),
        (["fitt"], "fpn has no command 'fitt'; it has fit, validate"),
        (["audit", "--import", "nowhere.at_all"], "--import nowhere.at_all: No module named 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fpn: {told}")


def test_null_is_none_in_groups_of_options_too(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"images.short_side": "null", "images.max_side": "96", "val.images": "null", "val_share": "null"}
    with pytest.raises(SystemExit):
        main(["fit", "--config", "base", *(f"--data.{k}={v}" for k, v in given.items()), "--print_config"])
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert (data["images"]["short_side"], data["images"]["max_side"]) == (None, 96)
    assert (data["val"]["images"], data["val_share"]) == (None, None)


def test_blank_in_a_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, name in (
        ("data:\n  num_workers:\n", "data.num_workers"),
        ("trainer:\n  max_steps:\n", "trainer.max_steps"),
    ):
        (tmp_path / "blank.yaml").write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--config", "base", "--config", str(tmp_path / "blank.yaml")])
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"fpn: {name} cannot be null: give a value, or leave the line out\n"


def test_a_copy_replaces_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("mine")
    with pytest.raises(SystemExit):
        main(["configs", "--copy", "scale/pocket", "--out", "base.yaml"])
    assert "base.yaml exists already: give another --out" in capsys.readouterr().err
    assert Path("base.yaml").read_text() == "mine"

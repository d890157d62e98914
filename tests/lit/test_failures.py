"""What goes wrong in days of training, and costs neither what was done nor time to find out."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lit_runs import TEN_STEPS, at_call, kept, rows
from processes import together
from torch import Tensor

from fpn.errors import InputError
from fpn.lit.callbacks import LastCheckpoint, Scores
from fpn.lit.checkpointing import WholeCheckpoints
from fpn.lit.cli import main
from fpn.lit.guards import first_non_finite
from fpn.lit.lightning_cli import DetectionCLI
from fpn.lit.metrics_file import MetricsFile
from fpn.lit.module import DetectionModule
from fpn.lit.optimizer import PaperSGD
from fpn.models.detectors import FasterRCNN

RUNS = Path("runs/tiny")
EVERY_3 = ["--trainer.callbacks+=fpn.lit.callbacks.LastCheckpoint", "--trainer.callbacks.every_n_steps=3"]


def fit(config: str, *given: str) -> None:
    steps = ["--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    main(["fit", "--config", config, *steps, *given])


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], None]) -> str:
    """The line in which a command ends."""
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    return the_line(capsys.readouterr().err)


def the_line(printed: str) -> str:
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("fpn: "))
    return line


@pytest.fixture
def disk() -> Iterator[Callable[[int], None]]:
    """Has every file larger than so many bytes fail as on a full disk, until the test's end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def infinite_gradient(parameter: Tensor) -> Tensor:
    """Zero, and yet."""
    return (parameter - parameter.detach()).sum().abs().sqrt()


@pytest.mark.parametrize(
    ("fault", "step", "more"),
    [
        pytest.param("loss", 0, [], marks=pytest.mark.long),
        ("loss", 5, []),  # the first of an epoch
        pytest.param("gradient", 7, [], marks=pytest.mark.long),
        ("memory", 4, []),
        # The second batch of step 1.
        ("loss", 3, ["--trainer.accumulate_grad_batches", "2", "--model.schedule.reference_images", "4"]),
    ],
)
def test_a_step_that_cannot_be_done_ends_the_run_before_it(
    fault: str,
    step: int,
    more: list[str],
    config: str,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if more:
        fit(config, *more, "--trainer.logger.init_args.name", "whole")
        unbroken = Path("runs/whole/version_0")
    seen: list[list[int]] = []

    def losses(self: FasterRCNN, batch: Any, generator: Any) -> dict[str, Tensor]:
        found = original(self, batch, generator)
        if not torch.is_grad_enabled():  # of a validation
            return found
        seen.append(batch.image_ids)
        if len(seen) == step + 1:
            if fault == "memory":
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less."
                )
            weight = self.neck.get_parameter("smooths.2.0.weight")
            found["rpn_box"] = found["rpn_box"] + (
                float("nan") if fault == "loss" else infinite_gradient(weight)
            )
        return found

    original = FasterRCNN.losses
    with monkeypatch.context() as patch:
        patch.setattr(FasterRCNN, "losses", losses)
        line = refused(capsys, lambda: fit(config, *more))
    step = step // 2 if more else step
    at = f" at step {step} on images {seen[-1]}; "
    told = {
        "loss": f"rpn_box = nan{at}",
        "gradient": f"the gradient of detector.neck.smooths.2.0.weight is not finite{at}",
        "memory": "CUDA out of memory. Tried to allocate 2.00 GiB. Take fewer images at once (batch_size",
    }
    last = RUNS / "version_0/checkpoints/last.ckpt"
    assert line.startswith(f"fpn: {told[fault]}")
    assert f"; {last} is from before this step" in line

    assert kept(RUNS / "version_0", "last")["global_step"] == step
    fit(config, *more, "--ckpt_path", str(last))
    whole, begun, rest = (rows(run) for run in (unbroken, RUNS / "version_0", RUNS / "version_1"))
    assert next(row["step"] for row in rest if row["train/rpn_box"]) == str(step)
    assert rest == whole[-len(rest) :]
    assert begun + rest == whole or begun[:-1] + rest == whole  # validated before, and again


def test_an_optimiser_that_fails_leaves_no_checkpoint_of_half_a_step(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: PaperSGD, closure: Callable[[], Any]) -> None:
        closure()
        with torch.no_grad():
            self.param_groups[0]["params"][0].add_(1)
        raise RuntimeError("half a step")

    with monkeypatch.context() as patch:
        patch.setattr(PaperSGD, "step", step)
        with pytest.raises(RuntimeError, match="half a step"):
            fit(config)
    assert not (RUNS / "version_0/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(("split", "steps"), [("val2017", 5), ("train2017", None), ("all of train2017", 3)])
def test_an_image_that_cannot_be_read_costs_nothing_that_was_trained(
    split: str,
    steps: int | None,
    config: str,
    shapes: Path,
    tmp_path: Path,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One to validate on, one of too few to do without any, or all that come after a step."""
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    folder = copy / split.split()[-1]
    victim = sorted(folder.iterdir())[3]
    given = ["--data.root", str(copy)]
    with monkeypatch.context() as patch:
        if split.startswith("all"):
            hook = "on_train_batch_end"
            lose = at_call(3, getattr(Scores, hook), lambda *_: folder.rename(copy / "elsewhere"))
            patch.setattr(Scores, hook, lose)
        else:
            victim.write_bytes(b"\xff\xd8 torn")
        line = refused(capsys, lambda: fit(config, *given))
    last = RUNS / "version_0/checkpoints/last.ckpt"
    assert f"; {last} is from before this {'validation' if split == 'val2017' else 'step'}" in line
    done = kept(RUNS / "version_0", "last")["global_step"]
    if split.startswith("all"):
        (copy / "elsewhere").rename(folder)
    else:
        assert line.startswith(f"fpn: {victim}: ")
        shutil.copyfile(shapes / split / victim.name, victim)
    assert done == steps or (steps is None and done < 5)
    fit(config, *given, "--ckpt_path", str(last))
    whole, begun, rest = (rows(run) for run in (unbroken, RUNS / "version_0", RUNS / "version_1"))
    assert begun + rest == whole
    # Running statistics too, which losses do not show.
    expected, found = (kept(run, "last")["state_dict"] for run in (unbroken, RUNS / "version_1"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("call", "tensor", "finite_loss"),
    [
        (4, "neck.smooths.2.0.weight", False),
        (1, "neck.smooths.2.0.weight", False),
        (4, "bn1.running_var", True),
    ],
)
def test_weights_that_are_not_finite_replace_no_checkpoint(
    call: int,
    tensor: str,
    finite_loss: bool,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = RUNS / "version_0/checkpoints/last.ckpt"
    before: list[bytes] = []
    names: list[str] = []

    def spoil(callback: Scores, trainer: Trainer, module: DetectionModule, *_: Any) -> None:
        before.extend([last.read_bytes()] if last.exists() else [])
        name, value = next((n, v) for n, v in module.state_dict().items() if n.endswith(tensor))
        names.append(name)
        value.view(-1)[0] = float("inf")

    monkeypatch.setattr(Scores, "on_train_batch_end", at_call(call, Scores.on_train_batch_end, spoil))
    line = refused(capsys, lambda: fit(config, *EVERY_3))
    if finite_loss:
        assert line.startswith(f"fpn: {names[0]} is not finite after 5 steps; ")
    else:
        assert re.match(rf"fpn: \w+ = (nan|inf).* at step {call} on images \[\d+, \d+\]; ", line)
        assert f"; and {names[0]} is not finite after {call} steps; " in line
    if call == 1:
        assert line.endswith("no checkpoint is from before")
        assert not list(Path().rglob("*.ckpt"))
    else:
        assert line.endswith(f"{last} is the newest checkpoint from before")
        assert [last.read_bytes()] == before


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_found_and_named(device: str, dtype: torch.dtype) -> None:
    named = {
        "counts": torch.tensor([1, 2], device=device),
        "none": torch.zeros(0, device=device),
        # Finite, though no sum of its squares is.
        "great": torch.full((3, 50), torch.finfo(dtype).max, dtype=dtype, device=device),
        "single": torch.ones(1000, device=device),
    }
    assert first_non_finite(named.items()) is None
    assert first_non_finite([]) is None
    for name in ("great", "single"):
        for value in (float("nan"), float("inf"), -float("inf")):
            for place in (0, -1):
                wrong = {key: tensor.clone() for key, tensor in named.items()}
                wrong[name].view(-1)[place] = value
                assert first_non_finite(wrong.items()) == name


def test_one_process_sees_a_fault_and_all_end(config: str, shapes: Path, tmp_path: Path) -> None:
    """And what one of them cannot read is told once."""
    shutil.copytree(shapes, tmp_path / "copy")
    victim = sorted((tmp_path / "copy" / "train2017").iterdir())[2]
    victim.unlink()
    words = ["fit", "--config", config, "--model.schedule", TEN_STEPS, "--data.batch_size", "1"]
    words += ["--data.root", str(tmp_path / "copy"), "--data.max_unreadable", "0.1"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    # The step with the fault is in the second epoch, by when all images were seen.
    script = Path(__file__).with_name("poisoned.py")
    said = "".join(together(words, 2, {"POISONED_STEP": "7"}, script))
    line = the_line(said)
    last = RUNS / "version_0/checkpoints/last.ckpt"
    assert re.match(r"fpn: rpn_box = nan at step 7 on images \[\d+\]; .*; " + re.escape(str(last)), line)
    assert kept(RUNS / "version_0", "last")["global_step"] == 7
    warnings = [line for line in said.splitlines() if victim.name in line]
    assert len(warnings) == 1
    assert "no such image file; another image takes its place (1 of at most 1)" in warnings[0]


def test_one_process_fails_and_all_end(config: str, shapes: Path, tmp_path: Path) -> None:
    """At what the other cannot know: an image of its own share that cannot be scored."""
    shutil.copytree(shapes, tmp_path / "copy")
    victim = sorted((tmp_path / "copy" / "val2017").iterdir())[3]
    victim.write_bytes(b"\xff\xd8 torn")
    command = [sys.executable, "-m", "fpn", "fit", "--config", config, "--data.root", str(tmp_path / "copy")]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert run.returncode == 2, run.stderr
    assert victim.name in the_line(run.stderr)


def test_no_run_writes_where_another_has(
    config: str, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()}
    given = ["--trainer.logger.init_args.save_dir", str(unbroken.parents[1])]
    line = refused(capsys, lambda: fit(config, *given, "--trainer.logger.init_args.version", "0"))
    assert line.startswith(f"fpn: {unbroken} has the config.yaml of another run: ")
    assert {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()} == before
    (tmp_path / "named").mkdir()
    metrics = tmp_path / "named" / "metrics.csv"
    metrics.write_text("step\n")
    with pytest.raises(InputError, match=r"named has the metrics\.csv"):
        MetricsFile(str(tmp_path), "", "named")
    # Two that begin at once find the same next version.
    late = MetricsFile(str(tmp_path), "")
    taken = metrics.parent.rename(tmp_path / f"version_{late.version}")
    late.log_metrics({"loss": 1.0}, step=3)
    assert Path(late.log_dir) != taken
    assert Path(late.log_dir, "metrics.csv").read_text() == "loss,step\n1.0,3\n"
    assert (taken / "metrics.csv").read_text() == "step\n"


def test_one_process_where_two_are_asked_for_is_no_run(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a SLURM job of one task: Lightning takes it for one of two that srun has started."""
    for name, value in {"NTASKS": "1", "JOB_ID": "5", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    try:
        line = refused(capsys, lambda: fit(config, "--trainer.devices", "2"))
    finally:
        torch.distributed.destroy_process_group()
    assert line.startswith("fpn: 1 of 2 processes were started, as in a SLURM job of one task: start the")


@pytest.mark.long
def test_without_a_logger_nothing_is_written_over(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    none = ["--trainer.logger", "false"]
    test = ["test", "--ckpt_path", "checkpoints/last.ckpt", *none]
    at_first = files()
    fit(config, *none)
    trained = files()
    assert trained.keys() - at_first.keys() == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    main(test)
    tested = files()
    report = {"report.html", "curves.png"}
    assert tested.keys() - trained.keys() == {"scores.json", "curves.json", "detections.json"} | report
    line = refused(capsys, lambda: fit(config, *none))
    assert "has the checkpoints/best.ckpt of another run: give another --trainer.default_root_dir, " in line
    assert "has the scores.json of another run: " in refused(capsys, lambda: main(test))
    for _ in range(2):
        main(["validate", *test[1:]])
        fit(config, *none, "--trainer.enable_checkpointing", "false")
    assert files() == tested
    # As the line says.
    main([*test, "--trainer.default_root_dir", "elsewhere"])
    assert Path("elsewhere/scores.json").is_file()
    assert tested.items() <= files().items()


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_run_is_not_written_over_whatever_the_logger(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"save_dir": "runs", "name": "plain", "version": "named"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}
    given = ["--trainer.logger", json.dumps(logger)]
    fit(config, *given)
    names = ("config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    before = [Path("runs/plain/named", name).read_bytes() for name in names]
    line = refused(capsys, lambda: fit(config, *given, "--seed_everything", "1"))
    assert line.startswith("fpn: runs/plain/named has the config.yaml of another run: leave out the ")
    assert [Path("runs/plain/named", name).read_bytes() for name in names] == before


def test_gradients_are_clipped(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = PaperSGD.step

    def step(self: PaperSGD, closure: Callable[[], Any]) -> Any:
        def measured() -> Any:
            result = closure()
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)
            return result

        return original(self, measured)

    monkeypatch.setattr(PaperSGD, "step", step)
    main(["fit", "--config", config])
    main(["fit", "--config", config, "--trainer.gradient_clip_val", "0.1"])
    free, clipped = norms[:4], norms[4:]
    assert len(clipped) == 4
    assert all(norm > 0.2 for norm in free)
    assert clipped == pytest.approx([0.1] * 4, rel=1e-3)


def test_a_callback_of_the_users_takes_the_place_of_ours(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Trainer] = []
    original = DetectionCLI.instantiate_trainer

    def keep(self: DetectionCLI, **given: Any) -> Trainer:
        trainers.append(original(self, **given))
        return trainers[0]

    monkeypatch.setattr(DetectionCLI, "instantiate_trainer", keep)
    content = {
        "trainer": {
            "callbacks": [
                {"class_path": "fpn.lit.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 7}},
                {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"},
                {"class_path": "fpn.lit.stopping.EndOnSignal", "init_args": {"every_n_steps": 3}},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
            ]
        }
    }
    Path("own.json").write_text(json.dumps(content))
    main(["fit", "--config", config, "--config", "own.json", "--trainer.limit_train_batches", "1"])
    names = [type(callback).__name__ for callback in trainers[0].callbacks]
    assert len(set(names)) == len(names)
    assert {"TQDMProgressBar", "ModelCheckpoint", "BestCheckpoint", "Throughput", "Scores"} <= set(names)
    assert "PlainProgress" not in names
    last = trainers[0].callbacks[-1]
    assert isinstance(last, LastCheckpoint)
    assert last.every_n_steps == 7
    assert [c.every_n_steps for c in trainers[0].callbacks if type(c).__name__ == "EndOnSignal"] == [3]


def test_a_process_killed_as_it_writes_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"weights": torch.arange(5000)}, path)
    before = path.read_bytes()

    def killed() -> None:
        def half(content: Any, file: Any) -> None:
            file.write(before[: len(before) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        WholeCheckpoints().save_checkpoint({"weights": torch.zeros(5000)}, path)

    process = get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before
    # Written in the same folder, hence file system: there a file takes another's name at once or not at all.
    (part,) = (other for other in tmp_path.iterdir() if other != path)
    assert part.read_bytes() == before[: len(before) // 2]
    WholeCheckpoints().save_checkpoint({"weights": torch.zeros(5000)}, path)
    assert not torch.load(path, weights_only=True)["weights"].any()


def test_a_full_disk_costs_no_checkpoint(
    config: str,
    disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = RUNS / "version_0/checkpoints"
    before: dict[Path, bytes] = {}

    def fill(*_: Any) -> None:
        before.update({path: path.read_bytes() for path in folder.iterdir()})
        disk(100_000)

    monkeypatch.setattr(Scores, "on_train_batch_end", at_call(8, Scores.on_train_batch_end, fill))
    line = refused(capsys, lambda: fit(config, *EVERY_3))
    assert line == f"fpn: {folder}/last.ckpt: File too large"
    assert {path.name for path in before} == {"best.ckpt", "last.ckpt"}
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_is_told_by_the_file_of_losses(
    config: str,
    disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = RUNS / "version_0/metrics.csv"
    hook = "on_train_batch_start"
    monkeypatch.setattr(Scores, hook, at_call(4, getattr(Scores, hook), lambda *_: disk(800)))
    line = refused(capsys, lambda: fit(config, "--trainer.enable_checkpointing", "false"))
    assert line == f"fpn: {metrics}: File too large"
    assert [row["step"] for row in rows(RUNS / "version_0")][:3] == ["0", "1", "2"]


def test_a_full_disk_leaves_no_half_of_a_result(
    config: str,
    unbroken: Path,
    disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = Scores.on_test_end

    def full(self: Scores, *arguments: Any) -> None:
        disk(500)
        original(self, *arguments)

    monkeypatch.setattr(Scores, "on_test_end", full)
    words = ["test", "--ckpt_path", str(unbroken / "checkpoints/last.ckpt")]
    words += ["--trainer.logger.init_args.name", "full"]
    line = refused(capsys, lambda: main(words))
    assert line == "fpn: runs/full/version_0/detections.json: File too large"
    assert not {path.suffix for path in Path("runs/full").rglob("*")} & {".json", ".part"}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_training_images_that_cannot_be_read_are_replaced_and_counted(
    workers: str,
    config: str,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    missing, torn, cut = (sorted((copy / "train2017").iterdir())[i] for i in (1, 2, 6))
    missing.unlink()
    torn.write_bytes(b"\xff\xd8 torn")
    cut.write_bytes(cut.read_bytes()[:200])
    given = ["--data.root", str(copy), "--data.num_workers", workers, "--data.max_unreadable"]
    # Two epochs, and three of ten files.
    fit(config, *given, "0.3")
    told = [str(w.message) for w in recwarn if "another image takes its place" in str(w.message)]
    assert sorted(line.partition(":")[0] for line in told) == sorted(map(str, (missing, torn, cut)))
    assert {line.rpartition("(")[2] for line in told} == {f"{i} of at most 3)" for i in (1, 2, 3)}
    line = refused(capsys, lambda: fit(config, *given, "0.29"))
    assert "3 of the 10 images" in line
    assert "data.max_unreadable allows for 2: " in line
    assert all(path.name in line for path in (missing, torn, cut))
    last = RUNS / "version_1/checkpoints/last.ckpt"
    assert f"; {last} is from before this step" in line
    line = refused(capsys, lambda: fit(config, *given, "0"))
    assert sum(path.name in line for path in (missing, torn, cut)) == 1

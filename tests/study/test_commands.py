"""A row of the user's own from its file to the report, by the real commands, stopped once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fpn.study.commands import ablate, report

GIVEN = {
    "data.train_count": 6,
    "data.val_count": 2,
    "data.long_side": 96,
    "data.batch_size": 2,
    "data.eval_batch_size": 2,
    "model.schedule.steps": 60,
    "model.schedule.milestones": "[]",
    "model.schedule.length": 1,
    "model.schedule.reference_images": 2,
    "model.detector.bottom_up.width": 4,
    "trainer.num_sanity_val_steps": 0,
    "trainer.accelerator": "cpu",
}


@pytest.mark.long
def test_a_row_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c_narrow.yaml").write_text("# FPN of 8 channels\nmodel: {detector: {neck: {channels: 8}}}\n")
    given = [word for key, value in GIVEN.items() for word in (f"--{key}", str(value))]
    words = ["table1", "--rows", "./c_narrow.yaml", "--data", "shapes", "--out", "study", "--", *given]
    folder = Path("study/table1/c_narrow/seed_0")
    code = f"import sys; from fpn.study.commands import ablate; sys.exit(ablate({words}))"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(folder.glob("version_0/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    printed, _ = first.communicate(timeout=120)
    assert first.returncode == 143, printed
    assert "the same command goes on where this one was" in printed
    last = folder / "version_0/checkpoints/last.ckpt"
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 0 < reached < 60

    assert ablate(words) == 0
    assert "table1/c_narrow/seed_0: finished in " in capsys.readouterr().out
    assert f"--ckpt_path {last}" in (folder / "log.txt").read_text()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 60
    average = json.loads((folder / "scores.json").read_text())["proposal_AR@1000"]
    assert report(["study"]) == 0
    assert "FPN of 8 channels" in Path("report/report.md").read_text()
    capsys.readouterr()
    assert ablate(words) == 0
    assert f"finished earlier (AR@1000 {100 * average:.1f})" in capsys.readouterr().out

"""What stands on the screen at the end of a run, at a terminal."""

import json
import re
from pathlib import Path

import pytest
from terminals import screen

STEPS = json.dumps({"steps": 20, "milestones": [15], "warmup_steps": 2, "reference_images": 2})


@pytest.mark.parametrize("columns", [80, 120])
def test_every_validations_scores_stay(columns: int, config: str) -> None:
    """And below them the bar as it was in the end, and what the run leaves."""
    lines = screen(["fit", "--config", config, "--model.schedule", STEPS], columns)
    assert [line.partition(":")[0] for line in lines if re.match(r"step [\d,]+: AP ", line)] == [
        f"step {step}" for step in (5, 10, 15, 20)
    ]
    (bar,) = (line for line in lines if re.match(r"step [\d,]+/", line))
    assert re.fullmatch(r"step 20/20 ━+ 0:00:00 left  loss [\d.e-]+  [\d.e+]+ img/s  best AP \d+\.\d", bar), (
        bar
    )
    assert columns - 2 <= len(bar) <= columns
    best = "runs/tiny/version_0/checkpoints/best.ckpt"
    end = lines[lines.index(bar) + 1 :]
    told = "".join(end)  # a path may go on in the next line
    assert re.search(rf"best AP \d+\.\d at step (5|10|15|20): {best}", told)
    assert "the run's folder: runs/tiny/version_0" in told
    assert f"next: fpn test --ckpt_path {best}" in told
    assert "--import" not in told


def test_lines_of_other_programs_have_no_bar(config: str, capfd: pytest.CaptureFixture[str]) -> None:
    from fpn.lit.cli import main

    main(["fit", "--config", config])
    said = capfd.readouterr().out
    assert "\x1b" not in said
    assert "━" not in said
    assert len(re.findall(r"^step \d+: AP ", said, re.MULTILINE)) == 1
    assert Path("runs/tiny/version_0/checkpoints/best.ckpt").is_file()

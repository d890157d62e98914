"""Where a run writes, and a run that writes nothing."""

from pathlib import Path

import pytest
import yaml

from fpn.lit.cli import main

NAMES = {"config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}


def test_runs_lie_below_the_root_that_is_given(config: str, tmp_path: Path) -> None:
    few = ["--trainer.max_steps", "1", "--trainer.num_sanity_val_steps", "0"]
    main(["fit", "--config", config, *few, "--trainer.default_root_dir", "elsewhere"])
    run = Path("elsewhere/runs/tiny/version_0")
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == NAMES
    # What it has kept means the same again; an absolute folder stays where it is.
    main(["fit", "--config", str(run / "config.yaml"), *few])
    place = ["--trainer.logger.init_args.save_dir", str(tmp_path / "there")]
    main(["fit", "--config", config, *few, *place, "--trainer.default_root_dir", "elsewhere"])
    found = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("metrics.csv")}
    assert found == {"elsewhere/runs/tiny/version_0", "elsewhere/runs/tiny/version_1", "there/tiny/version_0"}
    main(["test", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.default_root_dir", "tests"])
    assert (tmp_path / "tests/runs/fpn/version_0/scores.json").is_file()
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("ignore:You are trying to .self.log")
def test_barebones(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(Path(config).read_text())
    content["trainer"] = {"accelerator": "cpu", "barebones": True}
    Path("bare.yaml").write_text(yaml.safe_dump(content))
    before = {path for path in Path().rglob("*") if path.is_file()}
    main(["fit", "--config", "bare.yaml"])
    assert {path for path in Path().rglob("*") if path.is_file()} == before
    printed = capsys.readouterr()
    assert "validation: " not in printed.out
    assert "step 4: AP" in printed.out
    with pytest.raises(SystemExit):
        main(["fit", "--config", "bare.yaml", "--trainer.enable_checkpointing", "true"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("fpn: `Trainer(barebones=True, enable_checkpointing=True)` was passed.")

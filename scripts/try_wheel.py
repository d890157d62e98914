"""`make wheel`: build the wheel, install it elsewhere, and there train for two steps and predict.

The packages that it needs are those of the environment that runs this script; the project's own code is the
wheel's alone, and so are the configurations.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--data.train_count 8 --data.val_count 4 --data.num_workers 0 --data.batch_size 2 --trainer.max_steps 2 "
    "--trainer.num_sanity_val_steps 0 --model.detector.bottom_up.name resnet10"
)


def main() -> None:
    """Do it in a temporary folder; a command that fails ends it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python, fpn = folder / "venv" / "bin" / "python", folder / "venv" / "bin" / "fpn"
        run(folder, str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
        installed = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
        # Paths that such a file names are searched last, and editable packages in them are not followed.
        (installed / "needed.pth").write_text(sysconfig.get_path("purelib"))
        where = "import fpn, sys; assert fpn.__file__.startswith(sys.prefix), fpn.__file__"
        run(folder, str(python), "-c", where)
        run(folder, str(fpn), "--version")
        run(folder, str(fpn), "configs")
        run(folder, str(fpn), "fit", "--config", "quickstart", *SMALL.split())
        checkpoint = "runs/quickstart/version_0/checkpoints/last.ckpt"
        run(folder, str(fpn), "predict", "--ckpt_path", checkpoint, "--images", "datasets/shapes/val2017")
        print(f"{wheel.name}: installed, trained for two steps, predicted")


def run(folder: Path, *words: str, cwd: Path | None = None) -> None:
    """Run a command in a folder, without this clone's code on its path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    print(f"$ {' '.join(words)}", flush=True)
    if status := subprocess.run(words, cwd=cwd or folder, env=environment, check=False).returncode:
        sys.exit(status)


if __name__ == "__main__":
    main()

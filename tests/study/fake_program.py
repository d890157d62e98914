"""Stands in for `fpn` where the runner is tested: the same habits, and no training.

    fit STEPS SECONDS --folder RUNS [--ckpt_path CKPT]  count steps; on SIGTERM write last.ckpt and exit 143
    test SCORE --folder RUNS                            write scores.json
    fail LINE ...                                       print lines, exit with status 2
    die                                                 end by SIGKILL
    stay                                                ignore SIGTERM, as does a process it starts
    environment --folder RUNS                           write environment.json

Every start, step and end is a line of events.txt beside RUNS.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

command, *words = sys.argv[1:]
options = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
runs = Path(options.get("--folder", "runs"))


def event(text: str) -> None:
    with (runs.parent / "events.txt").open("a") as file:
        file.write(f"{time.time()} {text}\n")


def version() -> Path:
    folder = runs / f"version_{len(list(runs.glob('version_*')))}"
    folder.mkdir(parents=True)
    return folder


def fit() -> None:
    steps, seconds, done = int(words[0]), float(words[1]), 0
    if "--ckpt_path" in options:
        done = int(Path(options["--ckpt_path"]).with_name("step.txt").read_text())
    checkpoints = version() / "checkpoints"
    checkpoints.mkdir()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while done < steps and not stop:
        time.sleep(seconds)
        print(f"epoch 1, step {done + 1} of {steps} (0:00:00 left): loss 1.2", flush=True)  # noqa: T201
        event(f"step {done}")
        done += 1
    (checkpoints / "step.txt").write_text(str(done))
    shutil.copy(os.environ["TEMPLATE"], checkpoints / "last.ckpt")
    if stop:
        sys.exit(143)


event("start")
if command == "fit":
    fit()
elif command == "test":
    (version() / "scores.json").write_text(json.dumps({"AP": float(words[0]), "proposal_AR@1000": 0.5}))
elif command == "fail":
    print("\n".join(words))  # noqa: T201
    sys.exit(2)
elif command == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif command == "stay":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    event(f"child {child.pid}")
    time.sleep(60)
elif command == "environment":
    (version() / "environment.json").write_text(json.dumps(dict(os.environ)))
event("end")

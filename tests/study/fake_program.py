"""Stands in for `fpn` where tasks are run: the same habits, and no training.

    fit STEPS SECONDS --folder FOLDER [--ckpt_path CKPT]  count steps; on SIGTERM write last.ckpt and exit 143
    test SCORE --folder FOLDER                            write scores.json
    fail LINE ...                                         print lines, exit with status 2
    stay --folder FOLDER                                  ignore SIGTERM, as does a process it starts
    environment --folder FOLDER                           write environment.json

FOLDER is the task's: every start, step and end is a line of events.txt there, results lie in a version_N.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

command, *words = sys.argv[1:]
options = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
folder = Path(options.get("--folder", "study"))


def event(text: str) -> None:
    with (folder / "events.txt").open("a") as file:
        file.write(f"{time.time()} {text}\n")


def version() -> Path:
    own = folder / f"version_{len(list(folder.glob('version_*')))}"
    (own / "checkpoints").mkdir(parents=True)
    return own


def fit() -> None:
    steps, seconds, done = int(words[0]), float(words[1]), 0
    if "--ckpt_path" in options:
        done = int(Path(options["--ckpt_path"]).read_text())
    last = version() / "checkpoints" / "last.ckpt"
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while done < steps and not stop:
        time.sleep(seconds)
        event(f"step {done}")
        done += 1
    last.write_text(str(done))
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
elif command == "stay":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    event(f"child {process.pid}")
    time.sleep(300)
elif command == "environment":
    (version() / "environment.json").write_text(json.dumps(dict(os.environ)))
event("end")

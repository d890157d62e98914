"""Stands in for `fpn` where the runner is tested: the same habits, and no training.

    fit STEPS SECONDS --folder RUNS [--ckpt_path CKPT]  count steps; on SIGTERM write last.ckpt and exit 143
    test SCORE --folder RUNS                            write scores.json
    fail LINE ...                                       print lines, exit with status 2
    die                                                 end by SIGKILL
    stay                                                ignore SIGTERM, as does a process it starts
    leave CODE SECONDS --folder RUNS                    write scores.json, and exit then or on SIGTERM, but
                                                        not the process it starts
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


def child() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    event(f"child {process.pid}")


def leave() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(words[0])))
    (version() / "scores.json").write_text(json.dumps({"AP": 0.25}))
    child()
    time.sleep(float(words[1]))
    sys.exit(int(words[0]))


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
    child()
    time.sleep(300)
elif command == "leave":
    leave()
elif command == "environment":
    (version() / "environment.json").write_text(json.dumps(dict(os.environ)))
event("end")

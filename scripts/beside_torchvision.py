"""Train torchvision's Faster R-CNN in a plain loop and ours by `fpn fit`, with all their chance: the same
data, budget and recipe, the same scores?

    python scripts/beside_torchvision.py --seeds '[0, 1, 2]' --out runs/beside

Both learn plain shapes from scratch, a seed from the same first weights. Each draws its own order, flips and
samples; `scripts/lockstep.py` takes these from both. Prints AP of each seed and the time of a step, as
Markdown, with the standard error of the difference. The two sides take turns. The same command passes over
what is done.
"""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from jsonargparse import ArgumentParser

from benchmarks.comparison import markdown_table
from fpn.console import mistakes
from fpn.errors import InputError
from fpn.files import replacing
from parity.sampled import Budget, Outcome, drawn, ours, theirs


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the arguments say, and print what was found."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mistakes("beside_torchvision.py"):
        parser = ArgumentParser(prog="beside_torchvision.py", description=__doc__)
        parser.add_argument(
            "--seeds", type=list[int], default=[0, 1, 2], help="of each side (default: 0, 1, 2)"
        )
        parser.add_argument("--out", type=str, default="runs/beside", help="folder of the results")
        parser.add_class_arguments(Budget)
        options = vars(parser.parse_args(given))
        seeds, out = list(dict.fromkeys(options.pop("seeds"))), options.pop("out")
        if len(seeds) < 2:
            raise InputError("seeds: give two at least, or there is no spread")
        found = measured(Budget(**options), seeds, Path(out))
    print(report(found, shlex.join(["python", "scripts/beside_torchvision.py", *given])))


def measured(budget: Budget, seeds: Sequence[int], out: Path) -> dict[str, list[Outcome]]:
    """What came out of each side, by seed.

    Raises:
        InputError: the folder has results of another budget.
    """
    out.mkdir(parents=True, exist_ok=True)
    about = out / "budget.txt"
    if about.is_file() and about.read_text() != str(budget):
        raise InputError(f"{out} has results of another budget: name another folder")
    about.write_text(str(budget))
    root = drawn(budget, out / "shapes")
    found: dict[str, list[Outcome]] = {"torchvision": [], "ours": []}
    for seed in seeds:
        for side in found:
            file, folder = out / f"{side}_{seed}.json", out / f"{side}_{seed}"
            if not file.is_file():
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
                outcome = ours(budget, root, seed, folder) if side == "ours" else theirs(budget, root, seed)
                with replacing(file) as new:
                    new.write_text(json.dumps(outcome))
            found[side].append(Outcome(*json.loads(file.read_text())))
    return found


def report(found: dict[str, list[Outcome]], command: str) -> str:
    """Markdown."""
    aps = {side: [one.ap for one in outcomes] for side, outcomes in found.items()}
    rows = []
    for side, values in aps.items():
        seconds = mean(one.seconds for one in found[side])
        each = ", ".join(f"{ap:.1f}" for ap in values)
        rows.append([side, each, f"{mean(values):.1f} ± {stdev(values):.1f}", f"{seconds:.3f}"])
    columns = ["", "AP of each seed", "mean ± standard deviation", "s a step"]
    theirs, ours = aps["torchvision"], aps["ours"]
    error = math.hypot(*(stdev(values) / math.sqrt(len(values)) for values in (theirs, ours)))
    apart = f"Ours less torchvision's: {mean(ours) - mean(theirs):+.1f} ± {error:.1f} (standard error)"
    return "\n\n".join((f"`{command}`", markdown_table(columns, rows, numbers=(2, 3)), apart))


if __name__ == "__main__":
    main()

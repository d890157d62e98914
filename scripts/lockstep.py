"""Training in lockstep: `fpn fit` and a plain loop around another's Faster R-CNN, from the same weights.

    python scripts/lockstep.py                                            # 200 steps on drawn pictures
    python scripts/lockstep.py --root /data/coco --images 40 --steps 200  # on a folder in COCO's layout
    python scripts/lockstep.py --peer detectron2 --network resnet18       # beside Detectron2's own code

Ours is the real command: its data, transforms, detector, optimiser, schedule and checkpoint. Theirs shares
only the beginning and the order of the images. Beside torchvision's model pycocotools reads the annotations
and Pillow the files, torchvision resizes, and the learning rate is written out by hand. Beside Detectron2's,
where it can be imported, all this is its own but for two roundings (`scripts/parity/detectron2.py`).
Nothing is left to chance: no image is mirrored, and every anchor and every RoI is learned from.

In float32, as training is, rounding can turn a ReLU, or decide which of two proposals is kept, and the two
sides come apart a little from there on. In float64 (--double true) that is far less likely: pixels are bytes
or float32 on both sides, and what follows is not. Prints Markdown. Exit status 1: the two are further apart
than is allowed; 2: bad arguments.
"""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from benchmarks.comparison import DisagreementError, markdown_table
from fpn.console import mistakes
from parity.plan import Plan
from parity.training import PIXELS, SCORE, Compared, lockstep


def report(found: Compared, command: str) -> str:
    """Markdown."""
    steps = len(found.losses)
    first = [n for n in (20, 100, 200) if n < steps] + [steps]
    columns = ["greatest relative difference in the first", *(f"{n} steps" for n in first)]
    rows = [[name, *(f"{found.first(n)[name]:.1e}" for n in first)] for name in found.losses[0]]
    lines = [
        f"`{command}`",
        "",
        markdown_table(columns, rows, numbers=range(1, len(columns))),
        "",
        f"- weights after {steps} steps, difference over change: {found.weights:.1e} of all together, "
        f"{found.worst:.1e} of the tensor where it is greatest",
        f"- {found.matched} of {found.detections} detections matched, to {PIXELS} pixels and {SCORE:g} of "
        "score",
        f"- the losses' sum went from {found.fell[0]:.3g} to {found.fell[1]:.3g}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the arguments say, and print what was found."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mistakes("lockstep.py"), tempfile.TemporaryDirectory() as folder:
        parser = ArgumentParser(prog="lockstep.py", description=__doc__)
        parser.add_class_arguments(Plan)
        plan = Plan(**vars(parser.parse_args(given)))
        try:
            found = lockstep(plan, Path(folder))
        except DisagreementError as error:
            sys.exit(f"lockstep.py: {error}")
    print(report(found, shlex.join(["python", "scripts/lockstep.py", *given])))
    if not found.agree:
        sys.exit(1)


if __name__ == "__main__":
    main()

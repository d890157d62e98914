"""Operators, and those whose result the host must wait for: counted on a CPU, as they would be on a GPU."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.comparison import described, markdown_table
from benchmarks.inputs import CLASSES, OBJECTS, TRAINED, load_ours, peer, random_targets
from fpn.models.optimized import optimized
from fpn.types import Batch

SIZE = (160, 224)
"""Of the images: what is counted does not depend on it."""
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "nms"}
"""Operators whose result, or its size, the host must read. `repeat_interleave` only without its size."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Those that have to count a mask."""


class Counted(TorchDispatchMode):
    """A context that counts operators, and waits by name; what one operator does inside is its own.

    `fpn::suppress` is none that waits: on a GPU it is a kernel that leaves a mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.waits = 0, Counter[str]()
        self._in_operator = False

    def __enter__(self) -> "Counted":
        plain = Tensor.tolist

        def tolist(values: Tensor) -> Any:  # which reads all at once, without an operator
            self.waits["tolist"] += not self._in_operator
            return plain(values)

        self._patch = patch.object(Tensor, "tolist", tolist)
        self._patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        self.operators += 1
        masked = name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        unknown = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or masked or unknown:
            self.waits[name] += 1
        self._in_operator = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._in_operator = False


@dataclass
class WaitsReport:
    """What was counted."""

    rows: list[list[str]] = field(default_factory=list)

    def report(self, command: str) -> str:
        """All of it as Markdown."""
        columns = ["what", "images", "side", "operators", "waits"]
        machine = ", ".join(f"{key} {value}" for key, value in described("cpu", None).items())
        return (
            f"`{command}`\n\n{markdown_table(columns, self.rows, numbers=(1, 3, 4))}\n\n- Machine: {machine}"
        )


def waits(images: Sequence[PositiveInt] = (1, 2, 8)) -> WaitsReport:
    """Operators and waits of a training step and of an inference, torchvision's and ours.

    Args:
        images: numbers of images in a batch.
    """
    run = WaitsReport()
    model = peer(trained=TRAINED, min_size=SIZE[0], max_size=max(SIZE))
    detector = load_ours(model.state_dict())
    for number in images:
        sides = {"torchvision": theirs(model, number), "ours": ours(detector, number)}
        for i, what in enumerate(("forward and losses", "backward", "inference, until it is handed over")):
            for side, counts in sides.items():
                found = counts[i]
                listed = ", ".join(f"{name} {times}" for name, times in found.waits.most_common())
                cells = [f"{found.operators:,}", f"{found.waits.total():,}" + f" ({listed})" * bool(listed)]
                run.rows.append([what, str(number), side, *cells])
    return run


def theirs(model: nn.Module, number: int) -> list[Counted]:
    """Of torchvision's detector, its transform included."""
    images = [torch.rand(3, *SIZE) for _ in range(number)]
    drawn = [random_targets(SIZE, OBJECTS, CLASSES - 1, i) for i in range(number)]
    targets = [{"boxes": target.boxes, "labels": target.labels} for target in drawn]
    return counted(model, lambda: model(images, targets), model, lambda: model(images))


def ours(detector: Any, number: int) -> list[Counted]:
    """Of one of our detectors, on a batch as it comes out of collation."""
    drawn = [random_targets(SIZE, OBJECTS, CLASSES - 1, i) for i in range(number)]
    sizes = [SIZE] * number
    batch = Batch(torch.randn(number, 3, *SIZE), sizes, sizes, list(range(number)), drawn)
    quick = optimized(detector)
    return counted(detector, lambda: detector.losses(batch), quick, lambda: quick(batch))


def counted(
    model: nn.Module, losses: Callable[[], dict[str, Tensor]], tested: nn.Module, find: Callable[[], Any]
) -> list[Counted]:
    """Of a step's forward and losses, of its backward and of an inference, the second time they are done."""
    model.train()
    losses()
    with Counted() as forward:
        total = torch.stack(list(losses().values())).sum()
    with Counted() as backward:
        total.backward()
    model.zero_grad()
    tested.eval()
    with torch.inference_mode():
        find()
        with Counted() as inference:
            find()
    return [forward, backward, inference]

"""What passes between the parts of the project.

Symbols used in every docstring: N images in a batch, H × W pixels of the padded batch, G ground-truth
boxes, A anchors, R regions of interest (RoIs), D detections, K object classes (background not counted),
d channels of the pyramid. Boxes are float32 (x1, y1, x2, y2) in pixels. A size is (height, width).

Levels are the paper's numbers (Sec. 3): `c[4]` is C4, `p[2]` is P2, and level k has a stride of 2**k pixels.
"""

from collections.abc import Sequence, Set
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from fpn.errors import InputError

Features = dict[int, Tensor]
"""Feature maps by level: level k is (N, channels, ⌈H / 2**k⌉, ⌈W / 2**k⌉)."""

Size = tuple[int, int]
"""(height, width) in pixels."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Lightning's names of the precisions in which boxes are reckoned with in float32."""
PRECISIONS: tuple[str, ...] = get_args(Precision)
_SHORT_NAMES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}


def precision_named(name: object) -> str:
    """The full name of the precision that Lightning's option `trainer.precision` names, as 16 or bf16.

    Raises:
        InputError: boxes cannot be reckoned with in it.
    """
    full = _SHORT_NAMES.get(str(name), str(name))
    if full not in PRECISIONS:
        raise InputError(
            f"trainer.precision is {name}: boxes need float32, so choose one of {', '.join(PRECISIONS)}"
        )
    return full


NO_CATEGORY = "(no category)"
"""Name of a class that no object has."""


class Categories(NamedTuple):
    """The classes of a data set: label i of the network (1…K) is `ids[i - 1]` in its annotation file.

    Category ids may have gaps (COCO's run from 1 to 90 for 80 classes), labels have none. Where labels are
    made to equal the ids, the gaps are classes named NO_CATEGORY.
    """

    ids: tuple[int | str, ...]
    names: tuple[str, ...]

    def with_gaps(self) -> "Categories":
        """Classes whose labels are their category ids, positive integers, from 1 to the greatest."""
        names = dict(zip(map(int, self.ids), self.names, strict=True))
        ids = tuple(range(1, max(names) + 1))
        return Categories(ids, tuple(names.get(id_, NO_CATEGORY) for id_ in ids))

    def difference(self, other: "Categories") -> str:
        """The first three ids that another has not, or by another name: "id 3 is 'cat' / absent"."""
        mine, theirs = (dict(zip(ids, names, strict=True)) for ids, names in (self, other))
        differing = [id_ for id_ in {**mine, **theirs} if mine.get(id_) != theirs.get(id_)]
        shown = [
            f"id {id_!r} is "
            + " / ".join(repr(one[id_]) if id_ in one else "absent" for one in (mine, theirs))
            for id_ in differing[:3]
        ]
        return ", ".join(shown) + (", …" if len(differing) > 3 else "")

    def clash(self, other: "Categories") -> str:
        """The `difference` if an id that both have is of two names, or they share none; empty otherwise."""
        mine, theirs = (dict(zip(ids, names, strict=True)) for ids, names in (self, other))
        shared = mine.keys() & theirs.keys()
        agree = shared and all(mine[id_] == theirs[id_] for id_ in shared)
        if agree:
            return ""
        both = shared or mine.keys() | theirs.keys()
        return self.among(both).difference(other.among(both))

    def among(self, ids: Set[int | str]) -> "Categories":
        """Those of these ids."""
        kept = [pair for pair in zip(self.ids, self.names, strict=True) if pair[0] in ids]
        return Categories(tuple(id_ for id_, _ in kept), tuple(name for _, name in kept))

    def listed(self) -> "Categories":
        """Those that the annotation file lists."""
        return self.among({id_ for id_, name in zip(*self, strict=True) if name != NO_CATEGORY})


OBJECTS = Categories((1,), ("object",))
"""What proposals find."""


class Detections(NamedTuple):
    """Boxes found in one image, best first."""

    boxes: Tensor
    """(D, 4)."""
    scores: Tensor
    """(D,) in [0, 1]."""
    labels: Tensor
    """(D,) int64 in 1…K. Proposals, which have no class, are labelled 1: 'object'."""

    def among(self, categories: Categories) -> "Detections":
        """Those of classes that a category has."""
        if NO_CATEGORY not in categories.names:
            return self
        real = torch.tensor([name != NO_CATEGORY for name in categories.names], device=self.labels.device)
        keep = real[self.labels - 1]
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


class Found(NamedTuple):
    """Boxes found in the images of a batch, D places in each, best first; the last ones may not be taken."""

    boxes: Tensor
    """(N, D, 4), zeros in places that are not taken."""
    scores: Tensor
    """(N, D) in [0, 1], zeros in places that are not taken."""
    labels: Tensor
    """(N, D) int64 in 1…K."""
    there: Tensor
    """(N, D) which places are taken."""

    def split(self, numbers: Sequence[int] | None = None) -> list[Detections]:
        """N sets, each of the places that are taken; without their `numbers` the host waits for them."""
        numbers = self.there.sum(dim=1).tolist() if numbers is None else numbers
        return [Detections(*(part[n, :number] for part in self[:3])) for n, number in enumerate(numbers)]


class Targets(NamedTuple):
    """The ground truth of one image, in pixels of the network's input."""

    boxes: Tensor
    """(G, 4) boxes of single objects."""
    labels: Tensor
    """(G,) int64 in 1…K; 0 is the background."""
    crowds: Tensor
    """(·, 4) regions that hold many objects: neither object nor background."""


class Batch(NamedTuple):
    """Images of different sizes, padded at the right and bottom to one."""

    images: Tensor
    """(N, 3, H, W) images, padded with zeros: normalised float32, or uint8 as long as they are not yet."""
    sizes: list[Size]
    """N sizes of the resized images, before padding."""
    original_sizes: list[Size]
    """N sizes of the images as they lie on disk."""
    image_ids: list[int]
    """N ids, those of the annotation file."""
    targets: list[Targets] | None = None
    """N ground truths, or None where there are none to learn from."""
    proposals: list[Tensor] | None = None
    """N sets (·, 4) of a proposal file, best first, in pixels of the network's input; None without one."""
    unreadable: tuple[str, ...] = ()
    """What was wrong with the files whose places these images took, a line for each."""


class RPNOutput(NamedTuple):
    """What the RPN says of each anchor, by level."""

    anchors: dict[int, Tensor]
    """Level k: (A_k, 4), the same for every image of the batch."""
    objectness: dict[int, Tensor]
    """Level k: (N, A_k) logits."""
    deltas: dict[int, Tensor]
    """Level k: (N, A_k, 4) box deltas."""


class RoIs(NamedTuple):
    """Regions of interest of a whole batch, image after image."""

    boxes: Tensor
    """(R, 4) in pixels of the network's input."""
    image: Tensor
    """(R,) int64, the index in the batch."""
    level: Tensor | None = None
    """(R,) int64, which level of the head that pools them; None where that is still to be found out …"""
    by_level: Sequence[int] | None = None
    """… and how many there are of each level, without which the head has to wait for the device."""


class Inference(NamedTuple):
    """All that a detector says of a batch, in pixels of the original images."""

    proposals: list[Detections]
    """N sets of class-agnostic proposals."""
    detections: list[Detections] | None
    """N sets of detections; None from a detector that only proposes."""

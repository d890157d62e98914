"""Ours against Detectron2's own code, for whoever can import it; its compiled part is not used.

    python scripts/parity_detectron2.py                                     # on drawn pictures
    python scripts/parity_detectron2.py --root /data/coco                   # on a folder in COCO's layout
    PYTHONPATH=/src/detectron2 python scripts/parity_detectron2.py          # a checkout that is not installed

First Faster R-CNN and the RPN alone, both on R50-FPN, built from the files of Detectron2's model zoo with
random weights that find much: what `fpn.load_detectron2` makes of these finds the same in the same images,
and has the same losses and gradients. Then `fpn fit` beside a loop around Detectron2's model, optimiser and
schedule, as of `scripts/lockstep.py --peer detectron2`, which has more options.

Prints Markdown. Exit status 1: they are further apart than is allowed, as rounding alone may bring about in
many steps of training in float32 (--double true); 2: bad arguments, or Detectron2 cannot be imported.
"""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from benchmarks.comparison import DisagreementError, markdown_table
from benchmarks.inputs import enliven
from benchmarks.train import EVERYTHING
from fpn import DETECTRON2_IMAGES, CocoDataModule, Predictor, load_detectron2
from fpn.console import mistakes
from fpn.data.options import ImageOptions
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from lockstep import report
from parity.peer import Peer
from parity.plan import Plan, selected, val_files
from parity.training import PIXELS, SCORE, lockstep, peer_of, same_detections

CONFIGS = {"faster_rcnn_R_50_FPN_1x": 1000, "rpn_R_50_FPN_1x": 2000}
"""Of its model zoo, and how many proposals are kept in testing."""
GAINS = {"objectness_logits": 30.0, "anchor_deltas": 3.0, "cls_score": 60.0, "bbox_pred": 30.0}
"""By which random weights are greater than it begins with."""
SMALL: dict[str, Any] = {
    "network": "resnet18",
    "short_side": 160,
    "proposals": 64,
    "channels": 64,
    "hidden": 256,
}
"""The detector that is trained."""
LOSS, GRADIENT, FOUND = 1e-4, 1e-3, 0.99
"""What is allowed: relative differences, and the share of boxes that both find."""


class Once(NamedTuple):
    """How far the two are apart on the same weights."""

    boxes: tuple[int, int]
    """Those of Detectron2's that ours finds too, and all of its."""
    losses: dict[str, float]
    """Relative differences."""
    gradients: dict[str, float]
    """Of each trained tensor, the norm of the difference over the norm of Detectron2's."""

    @property
    def agree(self) -> bool:
        """Whether the differences, none of them NaN, are within what is allowed."""
        matched, found = self.boxes
        near = all(one <= LOSS for one in self.losses.values())
        near &= all(one <= GRADIENT for one in self.gradients.values())
        return near and matched >= FOUND * found > 0


def once(peer: Any, plan: Plan, root: Path, kept: int) -> Once:
    """Compare detections, losses and gradients.

    Args:
        peer: Detectron2's, whose weights are changed.
        plan: of it, the size and number of images.
        root: folder in COCO's layout.
        kept: proposals in testing.
    """
    enliven(peer.model.eval(), GAINS)
    ours = load_detectron2(peer.model.state_dict(), score_threshold=0.0)
    ours.testing_proposals = replace(ours.testing_proposals, post_nms_top_n=kept)
    predictor = Predictor(ours, plan.short_side, plan.max_side, settings=DETECTRON2_IMAGES)
    boxes = same_detections(peer, predictor, val_files(root)[: plan.images])
    return Once(boxes, *learned(peer, ours, plan, root))


def learned(
    peer: Peer, ours: ProposalNetwork, plan: Plan, root: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses of one batch, in which all is sampled, and gradients of their sum."""
    images = ImageOptions(
        short_side=plan.short_side,
        max_side=plan.max_side,
        flip_probability=0,
        antialias=True,
        rounding="nearest",
    )
    data = CocoDataModule(str(root), batch_size=plan.batch, images=images, num_workers=0)
    data.setup("fit")
    batch: Any = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    per_image = peer.detector["anchor_sampling"]["per_image"]
    ours.anchor_sampling = replace(ours.anchor_sampling, per_image=per_image)
    ours.rpn_loss_per_image = per_image
    ours.training_proposals = replace(ours.training_proposals, post_nms_top_n=plan.proposals)
    if isinstance(ours, FasterRCNN):
        ours.roi_sampling = replace(ours.roi_sampling, per_image=EVERYTHING)
    # As theirs is: its weights are scaled for pixels of 0 to 255, so its gradient would differ.
    ours.get_parameter("bottom_up.conv1.weight").requires_grad_(False)
    theirs = peer.model.train()
    expected, found = peer.losses(batch.image_ids), ours.train().losses(batch)
    torch.stack(list(expected.values())).sum().backward()
    torch.stack(list(found.values())).sum().backward()
    own = {name: one.grad for name, one in ours.named_parameters() if one.grad is not None}
    gradients = peer.as_ours({n: one.grad for n, one in theirs.named_parameters() if one.grad is not None})
    if other := sorted(own.keys() ^ gradients.keys()):
        raise DisagreementError(f"{other[0]} has a gradient on one side alone")
    return (
        {
            name: float(abs(found[name] - loss).detach() / abs(loss.detach()))
            for name, loss in expected.items()
        },
        {name: float((own[name] - one).norm() / one.norm()) for name, one in gradients.items()},
    )


def table(apart: dict[str, Once], grey: tuple[int, float], command: str) -> str:
    """Markdown."""
    heads = {
        f"boxes that both find, to {PIXELS} pixels and {SCORE:g} of score": "{0.boxes[0]} of {0.boxes[1]}",
        f"greatest relative difference of a loss ({LOSS:g} is allowed)": "{1:.1e}",
        f"greatest relative difference of a gradient ({GRADIENT:g} is allowed)": "{2:.1e} of {3}",
    }
    numbers = [
        (one, np.max([*one.losses.values()]), np.max([*one.gradients.values()]), len(one.gradients))
        for one in apart.values()
    ]
    rows = [[head, *(cell.format(*of_one) for of_one in numbers)] for head, cell in heads.items()]
    found = markdown_table(["", *apart], rows, numbers=range(1, 1 + len(apart)))
    resized = f"images that Pillow resizes differ by {grey[0]} grey levels at most, {grey[1]:.2g} in the mean"
    return f"`{command}`\n\n{found}\n\n- {resized}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare as the arguments say, and print what was found."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mistakes("parity_detectron2.py"), tempfile.TemporaryDirectory() as folder:
        parser = ArgumentParser(prog="parity_detectron2.py", description=__doc__)
        parser.add_argument("--root", type=str | None, help="folder in COCO's layout; null draws pictures")
        parser.add_argument("--images", type=PositiveInt, default=2, help="on which R50-FPN is compared")
        parser.add_argument("--short_side", type=PositiveInt, default=800, help="of these, in pixels")
        parser.add_argument("--steps", type=PositiveInt, default=20, help="of training, of a ResNet-18")
        parser.add_argument("--double", type=bool, default=False, help="of training: reckon in float64")
        args = parser.parse_args(given)
        options = {
            "peer": "detectron2",
            "steps": args.steps,
            "root": args.root,
            "double": args.double,
        } | SMALL
        training = Plan(**options)
        plan = replace(
            training,
            images=args.images,
            batch=min(args.images, 2),
            network="resnet50",
            short_side=args.short_side,
            proposals=1000,
            channels=256,
            hidden=1024,
        )
        try:
            root, apart = selected(plan, Path(folder, "once")), {}
            for config, kept in CONFIGS.items():
                peer: Any = peer_of(plan, root, config=config, frozen=1)
                apart[config] = once(peer, plan, root, kept)
            grey = peer.grey_levels()
            Path(folder, "lockstep").mkdir()
            trained = lockstep(training, Path(folder, "lockstep"))
        except DisagreementError as error:
            sys.exit(f"parity_detectron2.py: {error}")
    command = shlex.join(["python", "scripts/parity_detectron2.py", *given])
    same = [f"--{name}={value}" for name, value in options.items() if value]
    print(table(apart, grey, command))
    print(report(trained, shlex.join(["python", "scripts/lockstep.py", *same])))
    if not (trained.agree and all(one.agree for one in apart.values())):
        sys.exit(1)


if __name__ == "__main__":
    main()

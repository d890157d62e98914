import pytest
import torch
from torch import Tensor

from fpn.models import targets as criteria
from fpn.models.postprocess import ranked
from fpn.models.targets import AnchorSampling, AnchorTargets, GroundTruth, RoISampling, RoITargets
from fpn.ops.boxes import decode_boxes
from fpn.ops.counting import counts
from fpn.types import Targets

ONES = (1.0, 1.0, 1.0, 1.0)
EVERYTHING = 10**6


def sample_anchors(
    anchors: Tensor,
    truth: Targets,
    size: tuple[int, int],
    sampling: AnchorSampling,
    weights: tuple[float, ...],
) -> AnchorTargets:
    """Of one image."""
    whole = GroundTruth.of([truth])
    sample = criteria.sample_anchors(anchors, whole, torch.tensor([size]), sampling)
    numbers = counts(*sample.masks)
    return criteria.anchor_targets(sample, anchors, whole, weights, *numbers)


def sample_rois(
    proposals: list[Tensor], truth: list[Targets], sampling: RoISampling, weights: tuple[float, ...]
) -> RoITargets:
    whole = GroundTruth.of(truth)
    sample, candidates = criteria.sample_rois(ranked(proposals), whole, sampling)
    foreground, background = counts(*sample.masks)
    return criteria.roi_targets(sample, candidates, whole, weights, foreground, foreground + background)


def targets(boxes: list[list[float]], labels: list[int], crowds: list[list[float]] | None = None) -> Targets:
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(crowds or [], dtype=torch.float32).reshape(-1, 4),
    )


ANCHORS = torch.tensor(
    [
        [0.0, 0, 10, 10],  # the object
        [0, 0, 10, 20],  # half of it: neither
        [50, 50, 60, 60],  # background
        [90, 90, 110, 110],  # background that crosses the border
        [200, 0, 210, 10],  # within the crowd
    ]
)
TRUTH = targets([[0, 0, 10, 10]], [3], [[190, 0, 300, 100]])


@pytest.mark.parametrize(("border", "background"), [(True, [2, 3]), (False, [2])])
def test_anchor_labels_by_hand(border: bool, background: list[int]) -> None:
    sampling = AnchorSampling(per_image=EVERYTHING, include_border_anchors=border)
    found = sample_anchors(ANCHORS, TRUTH, (400, 100), sampling, ONES)
    assert found.foreground.tolist() == [0]
    # With a width of 100 the crowd's anchor crosses the border too; it is background in neither case.
    assert found.background.tolist() == background


def test_a_crowd_hides_no_object() -> None:
    truth = targets([[200, 0, 210, 10]], [1], [[190, 0, 300, 100]])
    found = sample_anchors(ANCHORS, truth, (400, 400), AnchorSampling(), ONES)
    assert found.foreground.tolist() == [4]


def test_best_anchor_is_rescued_among_eligible_ones() -> None:
    truth = targets([[88, 88, 112, 112]], [1])
    inside = sample_anchors(ANCHORS, truth, (100, 100), AnchorSampling(include_border_anchors=False), ONES)
    everywhere = sample_anchors(ANCHORS, truth, (100, 100), AnchorSampling(), ONES)
    assert inside.foreground.tolist() == []
    assert everywhere.foreground.tolist() == [3]


def test_roi_labels_by_hand() -> None:
    proposals = torch.tensor([[0.0, 0, 10, 20], [0, 0, 10, 21], [50, 50, 60, 60], [200, 0, 210, 10]])
    found = sample_rois([proposals], [TRUTH], RoISampling(per_image=EVERYTHING), (10, 10, 5, 5))
    # An overlap of exactly one half is foreground; the crowd's RoI is left out; the truth itself comes last.
    kept = [[0, 0, 10, 20], [0, 0, 10, 21], [50, 50, 60, 60], [0, 0, 10, 10]]
    assert found.rois.boxes.tolist() == kept
    assert found.labels.tolist() == [3, 0, 0, 3]
    assert found.foreground.tolist() == [0, 3]
    restored = decode_boxes(found.deltas, found.rois.boxes[found.foreground], (10, 10, 5, 5))
    torch.testing.assert_close(restored, TRUTH.boxes.expand(2, 4))
    without = RoISampling(per_image=EVERYTHING, include_ground_truth=False)
    assert len(sample_rois([proposals], [TRUTH], without, ONES).labels) == 3


def test_rois_of_several_images_stay_apart() -> None:
    far = targets([[500, 500, 600, 600]], [2])
    empty = targets([], [])
    proposals: list[Tensor] = [torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4), torch.ones(2, 4)]
    found = sample_rois(proposals, [TRUTH, far, empty], RoISampling(), ONES)
    assert found.rois.image.tolist() == [0, 0, 1, 2, 2]
    assert found.labels.tolist() == [3, 3, 2, 0, 0]


def test_numbers_and_shares() -> None:
    proposals = torch.rand(300, 2) * 500
    proposals = torch.cat((proposals, proposals + 20), dim=1)
    truth = targets([[x, 0, x + 20.0, 20] for x in range(0, 400, 40)], list(range(1, 11)))
    many = torch.cat((proposals, truth.boxes.repeat(20, 1)))
    found = sample_rois([many], [truth], RoISampling(per_image=64), ONES)
    assert (len(found.labels), len(found.foreground)) == (64, 16)


def test_nothing_at_all() -> None:
    empty = targets([], [])
    found = sample_rois([torch.zeros(0, 4)], [empty], RoISampling(), ONES)
    assert len(found.labels) == 0
    anchors = sample_anchors(ANCHORS, empty, (400, 400), AnchorSampling(), ONES)
    assert anchors.foreground.tolist() == []
    assert anchors.background.tolist() == [0, 1, 2, 3, 4]

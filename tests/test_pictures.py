import torch

from fpn.pictures import beside, draw, truth
from fpn.types import Categories, Detections

NAMES = Categories((1, 7), ("disc", "star"))


def test_boxes_are_drawn_where_they_are() -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    found = Detections(torch.tensor([[20.0, 20, 50, 45]]), torch.tensor([0.9]), torch.tensor([2]))
    drawn = draw(image, found, NAMES)
    assert drawn.shape == image.shape
    assert drawn[:, 45, 30:50].any(dim=0).all()  # the lower edge
    assert not drawn[:, 50:, :].any()
    assert not image.any()
    assert torch.equal(draw(image, found, NAMES, score_threshold=0.95), image)


def test_truth_is_always_drawn_and_degenerate_boxes_do_no_harm() -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    boxes = torch.tensor([[30.0, 30, 30, 30], [0, 0, 80, 60]])
    assert draw(image, truth(boxes, torch.tensor([1, 2])), NAMES, score_threshold=0.5).any()
    nothing = truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(draw(image, nothing, NAMES), image)


def test_pairs_lie_side_by_side() -> None:
    sizes = [(10, 20), (30, 8), (5, 5)]
    left = [torch.full((3, *size), 1, dtype=torch.uint8) for size in sizes]
    right = [torch.full((3, *size), 2, dtype=torch.uint8) for size in sizes]
    sheet = beside(left, right, gap=2, columns=2)
    areas = sum(h * w for h, w in sizes)
    assert (sheet[0] == 1).sum() == areas
    assert (sheet[0] == 2).sum() == areas
    assert sheet[0, 0, :20].unique().item() == 1
    assert sheet[0, 0, 22:42].unique().item() == 2

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from fpn.ops.anchors import cell_anchors, grid_anchors

RATIOS = (0.5, 1.0, 2.0)


def test_cell_anchors_by_hand() -> None:
    assert cell_anchors([32], RATIOS).tolist() == [
        [-23.0, -11.0, 23.0, 11.0],
        [-16.0, -16.0, 16.0, 16.0],
        [-11.0, -23.0, 11.0, 23.0],
    ]


@pytest.mark.parametrize("size", [8.0, 32.0, 512.0])
@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_anchors_have_their_area_and_ratio(size: float, ratio: float) -> None:
    x1, y1, x2, y2 = cell_anchors([size], [ratio], rounded=False)[0].double().tolist()
    assert (x2 - x1) * (y2 - y1) == pytest.approx(size**2, rel=1e-5)
    assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-5)
    assert (x1 + x2, y1 + y2) == (0, 0)


@pytest.mark.parametrize("sizes", [[32.0], [32.0, 64.0, 128.0, 256.0, 512.0]])
@pytest.mark.parametrize("map_size", [(1, 1), (13, 17), (25, 34)])
def test_grid_is_torchvisions(sizes: list[float], map_size: tuple[int, int]) -> None:
    image = torch.zeros(1, 3, 416, 544)
    peer = AnchorGenerator((tuple(sizes),), (RATIOS,))
    expected = peer(ImageList(image, [(416, 544)]), [torch.zeros(1, 1, *map_size)])[0]
    stride = (416 // map_size[0], 544 // map_size[1])
    assert torch.equal(grid_anchors(cell_anchors(sizes, RATIOS), map_size, stride), expected)


def test_order_is_row_column_anchor() -> None:
    cell = torch.tensor([[-1.0, -1, 1, 1], [-2.0, -2, 2, 2]])
    centres = grid_anchors(cell, (2, 2), (16, 8))
    expected = [[0, 0], [0, 0], [8, 0], [8, 0], [0, 16], [0, 16], [8, 16], [8, 16]]
    assert ((centres[:, :2] + centres[:, 2:]) / 2).tolist() == expected

"""From the bottom-up's maps {C2…C5} to the maps that the heads read (Sec. 3, Fig. 3; the rows of Table 1).

Every neck is built from the channels of the C levels and maps Features to Features. `FeaturePyramid` and
`SingleLevel` are the paper's; the others came after it, a file each.
"""

from fpn.models.necks.balanced import BalancedFeaturePyramid
from fpn.models.necks.base import Neck
from fpn.models.necks.bifpn import BiFPN
from fpn.models.necks.carafe import CarafePyramid
from fpn.models.necks.fapn import FaPN
from fpn.models.necks.feature_pyramid import FeaturePyramid, nearest
from fpn.models.necks.nas_fpn import NASFPN
from fpn.models.necks.pafpn import PAFPN
from fpn.models.necks.simple import SimpleFPN
from fpn.models.necks.single_level import SingleLevel

__all__ = [
    "NASFPN",
    "PAFPN",
    "BalancedFeaturePyramid",
    "BiFPN",
    "CarafePyramid",
    "FaPN",
    "FeaturePyramid",
    "Neck",
    "SimpleFPN",
    "SingleLevel",
    "nearest",
]

"""From the bottom-up's maps {C2…C5} to the maps that the heads read (Sec. 3, Fig. 3; the rows of Table 1).

Every neck is built from the channels of the C levels and maps Features to Features.
"""

from fpn.models.necks.base import Neck
from fpn.models.necks.feature_pyramid import FeaturePyramid, nearest
from fpn.models.necks.single_level import SingleLevel

__all__ = ["FeaturePyramid", "Neck", "SingleLevel", "nearest"]

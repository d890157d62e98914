"""Feature Pyramid Networks for Object Detection, reproduced."""

from fpn.checkpoints import load, load_torchvision
from fpn.errors import InputError
from fpn.models.detectors import FasterRCNN, FastRCNN, ProposalNetwork
from fpn.predictor import Predictor
from fpn.types import Batch, Categories, Detections, Features, Targets

__all__ = [
    "Batch",
    "Categories",
    "Detections",
    "FastRCNN",
    "FasterRCNN",
    "Features",
    "InputError",
    "Predictor",
    "ProposalNetwork",
    "Targets",
    "load",
    "load_torchvision",
]

"""Feature Pyramid Networks for Object Detection, reproduced."""

from fpn.checkpoints import load
from fpn.errors import InputError
from fpn.interop.detectron2 import DETECTRON2_IMAGES, load_detectron2
from fpn.interop.torchvision import load_torchvision, to_torchvision
from fpn.models.detectors import FasterRCNN, FastRCNN, ProposalNetwork
from fpn.predictor import Predictor
from fpn.types import Batch, Categories, Detections, Features, Targets

__all__ = [
    "DETECTRON2_IMAGES",
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
    "load_detectron2",
    "load_torchvision",
    "to_torchvision",
]

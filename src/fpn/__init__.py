"""Feature Pyramid Networks for Object Detection, reproduced."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpn.checkpoints import load as load
    from fpn.data.augment import Albumentations as Albumentations
    from fpn.data.datamodule import CocoDataModule as CocoDataModule
    from fpn.data.datamodule import ShapesDataModule as ShapesDataModule
    from fpn.errors import InputError as InputError
    from fpn.evaluation.metric import Metric as Metric
    from fpn.interop.detectron2 import DETECTRON2_IMAGES as DETECTRON2_IMAGES
    from fpn.interop.detectron2 import load_detectron2 as load_detectron2
    from fpn.interop.torchvision import load_torchvision as load_torchvision
    from fpn.interop.torchvision import to_torchvision as to_torchvision
    from fpn.lit.module import DetectionModule as DetectionModule
    from fpn.lit.schedule import Schedule as Schedule
    from fpn.models.bottom_up import BottomUp as BottomUp
    from fpn.models.cascade import CascadeRCNN as CascadeRCNN
    from fpn.models.detectors import FasterRCNN as FasterRCNN
    from fpn.models.detectors import FastRCNN as FastRCNN
    from fpn.models.detectors import ProposalNetwork as ProposalNetwork
    from fpn.models.losses import BoxLoss as BoxLoss
    from fpn.models.mobilenet import MobileNetV3 as MobileNetV3
    from fpn.models.necks import Neck as Neck
    from fpn.models.resnet import ResNet as ResNet
    from fpn.models.roi_head import HeadInput as HeadInput
    from fpn.models.timm_bottom_up import TimmBottomUp as TimmBottomUp
    from fpn.prediction import Prediction as Prediction
    from fpn.predictor import Predictor as Predictor
    from fpn.types import Batch as Batch
    from fpn.types import Categories as Categories
    from fpn.types import Detections as Detections
    from fpn.types import Features as Features
    from fpn.types import Targets as Targets

    __version__: str

_NAMES = {
    "checkpoints": "load",
    "data.augment": "Albumentations",
    "data.datamodule": "CocoDataModule ShapesDataModule",
    "errors": "InputError",
    "evaluation.metric": "Metric",
    "interop.detectron2": "DETECTRON2_IMAGES load_detectron2",
    "interop.torchvision": "load_torchvision to_torchvision",
    "lit.module": "DetectionModule",
    "lit.schedule": "Schedule",
    "models.bottom_up": "BottomUp",
    "models.cascade": "CascadeRCNN",
    "models.detectors": "FasterRCNN FastRCNN ProposalNetwork",
    "models.losses": "BoxLoss",
    "models.mobilenet": "MobileNetV3",
    "models.necks": "Neck",
    "models.resnet": "ResNet",
    "models.roi_head": "HeadInput",
    "models.timm_bottom_up": "TimmBottomUp",
    "prediction": "Prediction",
    "predictor": "Predictor",
    "types": "Batch Categories Detections Features Targets",
}
_HOMES = {name: f"fpn.{module}" for module, names in _NAMES.items() for name in names.split()}
"""The module of each name, which is imported when the name is first used: PyTorch alone takes seconds."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    from importlib import import_module
    from importlib.metadata import version

    if name == "__version__":
        return version("fpn")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value

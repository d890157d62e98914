"""Detectors without PyTorch: `OnnxPredictor` runs what `fpn export` has written."""

from fpn.deploy.onnx_predictor import OnnxPredictor

__all__ = ["OnnxPredictor"]

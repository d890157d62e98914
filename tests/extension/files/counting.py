"""How far the number of certain detections is from that of the objects, in the mean over images."""

import torch

from fpn import Metric


class CountError(Metric):
    of_detections = True  # so that it is left out where there are proposals alone

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold
        self.add_state("wrong", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, batch, found):
        for target, detections in zip(batch.targets, found.detections, strict=True):
            self.wrong += abs(len(target.boxes) - int((detections.scores > self.threshold).sum()))
            self.images += 1

    def compute(self):
        return {"count_error": float(self.wrong / self.images)}

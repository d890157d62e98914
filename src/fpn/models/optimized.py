"""A detector made for inference alone: the same boxes, sooner."""

import copy
from typing import TypeVar

import torch
from torch import nn

from fpn.models.bottom_up import BottomUp, Stages

Network = TypeVar("Network", bound=nn.Module)


def optimized(detector: Network) -> Network:
    """An equal detector in evaluation mode, of the weights as they are now.

    It is a copy with weights of its own, which takes as much memory once more: what happens to the detector
    afterwards does not change what it finds. The BatchNorms of a ResNet are folded into its convolutions, and
    so are those of any bottom-up that says how (`BottomUp.fold_norms`). On a CPU the weights of convolutions
    lie with their channels last, and so do the maps they make; in training, the gradients would cost more
    than that saves. Forward hooks, as of a profiler or of who watches features, are called by both, though
    not where a norm has gone into a convolution.
    """
    hooks = [
        hook
        for module in detector.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    memo: dict[int, object] = {id(hook): hook for hook in hooks} | {id(g): None for g in gradients}
    network = copy.deepcopy(detector, memo)
    for module in list(network.modules()):
        if isinstance(module, BottomUp | Stages):
            module.fold_norms()
    if all(p.device.type == "cpu" for p in network.parameters()):
        network.to(memory_format=torch.channels_last)
    return network.eval()

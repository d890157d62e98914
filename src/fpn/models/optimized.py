"""A detector made for inference alone: the same boxes, sooner."""

import copy
from typing import TypeVar

import torch
from torch import nn

from fpn.models.norms import fold_norms

Network = TypeVar("Network", bound=nn.Module)


def optimized(detector: Network) -> Network:
    """An equal detector in evaluation mode, of the weights as they are now.

    The BatchNorms of its ResNet are folded into its convolutions. On a CPU these lie with their channels
    last, and so do the maps they make; in training, the gradients would cost more than that saves. The
    detector itself stays as it is, and shares all other weights. Forward hooks, as of a profiler or of who
    watches features, are called by both, though not where a norm has gone into a convolution.
    """
    hooks = (
        hook
        for module in detector.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )
    shared = {id(thing): thing for thing in (*detector.parameters(), *detector.buffers(), *hooks)}
    network = copy.deepcopy(detector, shared)
    fold_norms(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.device.type == "cpu":
            last = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(last, requires_grad=False)
    return network.eval()

"""A detector made for inference alone: the same boxes, sooner."""

import copy
from collections.abc import Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""PyTorch's own: reduce-overhead and max-autotune record CUDA graphs on a GPU."""
_KNOWN = ("fpn", "torch", "torchvision", "timm")


def optimized(detector: Network) -> Network:
    """An equal detector in evaluation mode, of the weights as they are now.

    It is a copy with weights of its own, which takes as much memory once more: what happens to the detector
    afterwards does not change what it finds. The BatchNorms of a ResNet are folded into its convolutions, and
    so are those of any part that says how by a method `fold_norms`. On a CPU the weights of convolutions lie
    with their channels last, and so do the maps they make, unless a part is of other packages than this one,
    PyTorch and timm, which may look at how a map lies; in training, the gradients would cost more than that
    saves. Forward hooks, as of a profiler or of who watches features, are called by both, though not where a
    norm has gone into a convolution.
    """
    hooks = [
        hook
        for module in detector.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    memo: dict[int, object] = {id(hook): hook for hook in hooks} | {id(g): None for g in gradients}
    # What a module has computed and keeps, as a map or a normalised weight, comes without its history.
    kept = (tensor for module in detector.modules() for tensor in _tensors(vars(module)))
    memo |= {id(tensor): tensor.detach() for tensor in kept if not tensor.is_leaf}
    network = copy.deepcopy(detector, memo)
    for module in list(network.modules()):
        if callable(fold := getattr(module, "fold_norms", None)):
            fold()
    known = all(type(module).__module__.partition(".")[0] in _KNOWN for module in network.modules())
    if known and all(p.device.type == "cpu" for p in network.parameters()):
        network.to(memory_format=torch.channels_last)
    return network.eval()


def accelerate(detector: nn.Module, mode: CompileMode | None, channels_last: bool) -> None:
    """Make a detector quicker in place, for a GPU; what it computes stays the same but for rounding.

    Args:
        detector: any; its bottom-up, neck and RPN are what is compiled: all that works on whole maps, whose
            shapes are those of the images alone.
        mode: of `torch.compile`; None compiles nothing.
        channels_last: weights lie with their channels last, and so do the maps they make.
    """
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    if mode is not None:
        for name in ("bottom_up", "neck", "rpn"):
            if isinstance(part := getattr(detector, name, None), nn.Module):
                part.compile(mode=mode)


def _tensors(value: object) -> Iterator[Tensor]:
    """Those in dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)

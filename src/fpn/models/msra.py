"""Weights of the ResNets of Detectron and Detectron2; on ImageNet, MSRA's, the paper's own.

These networks differ from torchvision's in what no weight tells: strides on the 1×1 convolutions
(`stride_in_1x1`), and images of blue, green and red values in 0…255 less a mean, undivided. Such an image is
ours, channels reversed, times 255 times the standard deviations: the first convolution absorbs that.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

STD = (0.229, 0.224, 0.225)
"""Of `data.transforms.ImageSettings`. Its mean, times 255, is the mean that Detectron2 subtracts."""

# Ends of Caffe2's names (underscores read as dots), and PyTorch's.
_ENDS = {
    "w": "weight",
    "b": "bias",
    "s": "weight",
    "gamma": "weight",
    "beta": "bias",
    "rm": "running_mean",
    "riv": "running_var",
    "running.mean": "running_mean",
    "running.var": "running_var",
}
_NAMES = (
    (r"\.bn\.", ".norm."),
    (r"^(res\.)?conv1\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    # From here on Detectron2's names.
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res2\.", "layer1."),
    (r"^res3\.", "layer2."),
    (r"^res4\.", "layer3."),
    (r"^res5\.", "layer4."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)
# The classifier, the optimiser's momenta, and the first convolution's bias, which Detectron2 drops too.
_SURPLUS = re.compile(r"^(fc|fc1000|pred|linear|stem\.fc)\.|\.momentum$|num\.batches\.tracked$|^conv1\.bias$")


def is_msra(names: Mapping[str, Tensor]) -> bool:
    """Whether weights are named as Caffe2 or Detectron2 name a ResNet's."""
    return any(re.match(r"(stem\.conv1\.|conv1_w$|res\d[_.]\d)", name) for name in names)


def from_msra(
    state: Mapping[str, Tensor], norm_eps: float = 1e-5, caffe_images: bool = True
) -> dict[str, Tensor]:
    """A ResNet's weights of Detectron's or Detectron2's, under torchvision's names and for our images.

    Args:
        state: by name, as `res2_0_branch2a_w` or `res2.0.conv1.weight`. A BatchNorm may have been made a
            scale and a shift: its statistics are set so that it stays one.
        norm_eps: epsilon of the BatchNorm they are for.
        caffe_images: false where the weights are for our images already, and torchvision's by origin.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name.replace("_", ".")
        for theirs, end in sorted(_ENDS.items(), key=lambda item: -len(item[0])):
            if new.endswith(f".{theirs}"):
                new = new.removesuffix(theirs) + end
                break
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        if not _SURPLUS.search(new.replace("_", ".")):
            ours[new] = value
    scales = [name for name in ours if re.search(r"(bn\d|downsample\.1)\.weight$", name)]
    for name in [] if any(name.endswith("running_var") for name in ours) else scales:
        norm = name.removesuffix("weight")
        ours.setdefault(f"{norm}running_mean", torch.zeros_like(ours[name]))
        ours.setdefault(f"{norm}running_var", torch.full_like(ours[name], 1 - norm_eps))
    stem = ours.get("conv1.weight")
    if caffe_images and stem is not None and stem.dim() == 4 and stem.shape[1] == 3:
        ours["conv1.weight"] = stem.flip(1) * (255 * stem.new_tensor(STD))[:, None, None]
    return ours

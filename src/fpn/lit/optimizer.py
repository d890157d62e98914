"""The paper's optimiser, and any other with learning rates of their own for parts of the detector."""

from collections.abc import Mapping

from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import ParamsT

from fpn.errors import InputError


class PaperSGD(SGD):
    """SGD as the paper has it (Sec. 5.1).

    Args:
        params: what is trained.
        lr: learning rate.
        momentum: share of the last step that is kept.
        weight_decay: on every parameter.
        fused: one launch for all parameters; by default PyTorch chooses, on a GPU a few launches.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)


def by_part(factory: OptimizerCallable, network: nn.Module, parts: Mapping[str, float]) -> Optimizer:
    """An optimiser of a network's trained parameters, with a group for each part that is named.

    Args:
        factory: makes it of groups of parameters.
        network: its direct children are its parts, or its detector's are.
        parts: names of parts, each of which becomes a group of that name; all others are the first group.

    Raises:
        InputError: nothing is trained, or the optimiser refuses its settings.
    """
    groups: dict[str, list[nn.Parameter]] = {"": [], **{part: [] for part in parts}}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            part = name.removeprefix("detector.").partition(".")[0]
            groups[part if part in groups else ""].append(parameter)
    trained = [
        {"params": group} | ({"name": part} if part else {}) for part, group in groups.items() if group
    ]
    if not trained:
        raise InputError("frozen_parts leave nothing to train")
    try:
        return factory(trained)
    except ValueError as error:  # PyTorch's, of a setting
        raise InputError(f"model.optimizer: {error}") from None


def scale(optimizer: Optimizer, factors: Mapping[str, float]) -> None:
    """Multiply the learning rates of the groups that are named."""
    for group in optimizer.param_groups:
        group["lr"] *= factors.get(group.get("name", ""), 1.0)

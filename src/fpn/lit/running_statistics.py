"""What forward passes change before a step is done: the running statistics of live BatchNorms."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Those of a network that is about to be trained, kept so that a step can be taken back.

    Args:
        network: its BatchNorms that are in training mode are live.
    """

    def __init__(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
        by_kind: dict[torch.dtype, list[Tensor]] = {}
        for buffer in (buffer for norm in norms for buffer in norm.buffers()):
            by_kind.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(live, [buffer.clone() for buffer in live]) for live in by_kind.values()]

    def keep(self) -> None:
        """Keep them as they are now."""
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)

    def take_back(self) -> None:
        """Have them as they were kept."""
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)

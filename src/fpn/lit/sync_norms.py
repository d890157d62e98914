"""SyncBatchNorm: what --trainer.sync_batchnorm puts in, with nothing lost."""

from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fpn.errors import InputError


class SyncNorms(TorchSyncBatchNorm):
    """Lightning's, for the BatchNorms that learn: those that are frozen stay, and those of timm keep the
    non-linearity that is a part of them."""

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Put them in.

        Raises:
            InputError: a BatchNorm does something that SyncBatchNorm does not.
        """
        norms = [
            (parent, name, norm)
            for parent in model.modules()
            for name, norm in parent.named_children()
            if isinstance(norm, _BatchNorm) and (not norm.affine or norm.weight.requires_grad)
        ]
        for parent, name, norm in norms:
            setattr(parent, name, _synchronised(norm))
        self._replaced += norms
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the BatchNorms back, with what they have learned."""
        for parent, name, norm in self._replaced:
            learned = parent.get_submodule(name)
            norm._parameters, norm._buffers = learned._parameters, learned._buffers
            setattr(parent, name, norm.train(learned.training))
        self._replaced = []
        return model


def _synchronised(norm: nn.Module) -> nn.Module:
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if type(norm).forward is not _BatchNorm.forward:
        if not type(norm).__module__.startswith("timm."):
            raise InputError(
                f"--trainer.sync_batchnorm: SyncBatchNorm does not do what {type(norm).__name__} does"
            )
        from timm.layers import convert_sync_batchnorm as convert
    converted: nn.Module = convert(norm)
    return converted

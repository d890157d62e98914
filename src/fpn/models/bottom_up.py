"""The bottom-up pathway: any network that is a chain of stages, each half as fine as the one before (Sec. 3).

class Plain(fpn.BottomUp):
    def __init__(self, width: int = 16, frozen_stages: int = 0) -> None:
        channels = {level: width * 2**level for level in range(1, 6)}
        stages = {
            k: nn.Sequential(nn.Conv2d(channels.get(k - 1, 3), c, 3, stride=2, padding=1), nn.ReLU())
            for k, c in channels.items()
        }
        super().__init__(stages, channels, frozen_stages)
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fpn.errors import InputError
from fpn.models.norms import FrozenBatchNorm, fold_norms
from fpn.types import Features
from fpn.weights import check_weights, read_any, state_dict


class Stages(nn.Sequential):
    """Stages taken out of a bottom-up's end, for a head that goes on there; none where nothing was taken.

    Args:
        *stages: one module each, finest first.
        channels: of the last one's output.
        names: what each part of these stages was called in the bottom-up, by its name here.
        frozen: modules among them that are not trained.
    """

    def __init__(
        self,
        *stages: nn.Module,
        channels: int,
        names: Mapping[str, str] | None = None,
        frozen: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(*stages)
        self.channels, self.names = channels, dict(names or {})
        # A tuple, so that the modules are not registered a second time.
        self._frozen = tuple(frozen)

    def train(self, mode: bool = True) -> "Stages":
        """As `nn.Module.train`, but what is frozen keeps its running statistics too."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    fold_norms = fold_norms


class BottomUp(nn.Module):
    """A network from pixels to maps, stage by stage; the base class of all bottom-ups.

    Args:
        stages: for each level the module that makes its map from the finer level's, from the first one's,
            which gets the images. A stage of several modules may be given as these by name: the names are
            those of the parameters.
        channels: of the maps, for the levels whose maps are given; other levels are only passed through.
        frozen_stages: how many stages are not trained, counted from the first.
        frozen_norms: keep the statistics, scales and shifts of all BatchNorms as they are.
        weights: what a training starts from: a file with a state dict. `load_weights` loads it.

    Attributes:
        name: what messages call it.
        channels: of the maps, by level.
        weights: as given.
        loaded: whether its weights are no longer random.
        taken: stages that were taken out and are used elsewhere, which `load_weights` fills too.
        strides: of levels whose maps' cells are not of 2**k pixels, in pixels. Anchors of "spread" alone can
            stand on these, and RoIs cannot be pooled from them.

    Raises:
        InputError: more frozen stages than there are.
    """

    def __init__(
        self,
        stages: Mapping[int, nn.Module | Mapping[str, nn.Module]],
        channels: Mapping[int, int],
        frozen_stages: int = 0,
        frozen_norms: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= frozen_stages <= len(stages):
            raise InputError(
                f"bottom_up.frozen_stages is {frozen_stages}: this bottom-up has {len(stages)} stages"
            )
        self.name = type(self).__name__
        # What is left of null when a command line nests it this deep.
        self.weights = None if weights in ("None", "null") else weights
        self.channels = dict(sorted(channels.items()))
        self.strides: Mapping[int, int] = {}
        self.frozen_stages, self.frozen_norms = frozen_stages, frozen_norms
        self.taken: tuple[Stages, ...] = ()
        self.loaded = False
        self._ended: set[str] = set()
        self._stages: dict[int, list[str]] = {}
        for level, stage in sorted(stages.items()):
            parts = stage if isinstance(stage, Mapping) else {f"stage{level}": stage}
            for name, module in parts.items():
                self.add_module(name, module)
            self._stages[level] = list(parts)
        for module in self.frozen:
            module.requires_grad_(False).eval()

    @property
    def frozen(self) -> list[nn.Module]:
        """The modules that are not trained."""
        names = [name for stage in list(self._stages.values())[: self.frozen_stages] for name in stage]
        norms = [module for module in self.modules() if isinstance(module, _BatchNorm)]
        return [self.get_submodule(name) for name in names] + (norms if self.frozen_norms else [])

    @property
    def fixed(self) -> bool:
        """Whether a part of it is not trained, and so wants weights to start from."""
        return bool(self.frozen) or any(isinstance(module, FrozenBatchNorm) for module in self.modules())

    def forward(self, images: Tensor) -> Features:
        """From images (N, 3, H, W) to {k: C_k}, C_k of (N, channels[k], ⌈H / 2**k⌉, ⌈W / 2**k⌉).

        Raises:
            InputError: a map has not the size of its level.
        """
        features: Features = {}
        x = images
        for level, names in self._stages.items():
            for name in names:
                x = getattr(self, name)(x)
            if level in self.channels:
                features[level] = checked(x, level, images, self.strides.get(level))
        return features

    def end_at(self, level: int) -> Stages:
        """Take out the stages above C_level: where nothing reads them, nothing should train them.

        Returns:
            What was taken out, for a head that goes on where this bottom-up ends now.

        Raises:
            InputError: one stage makes maps of several levels.
        """
        above = [k for k in self._stages if k > level]
        if above and any(k <= level and k not in self._stages for k in self.channels):
            raise InputError(
                f"the neck reads no level above {level}, and {self.name} cannot end there: "
                f"have it give fewer levels, as bottom_up.levels {[k for k in self.channels if k <= level]}"
            )
        frozen, modules = self.frozen, []
        names: dict[str, str] = {}
        for i, k in enumerate(above):
            parts = self._stages.pop(k)
            stage = [self.get_submodule(name) for name in parts]
            modules.append(stage[0] if len(stage) == 1 else nn.Sequential(*stage))
            names |= {str(i) if len(stage) == 1 else f"{i}.{j}": name for j, name in enumerate(parts)}
            for name in parts:
                delattr(self, name)
        self._ended |= set(names.values())
        inside = {id(module) for stage in modules for module in stage.modules()}
        top = self.channels[max(self.channels)]
        self.channels = {k: channels for k, channels in self.channels.items() if k <= level}
        return Stages(
            *modules, channels=top, names=names, frozen=(module for module in frozen if id(module) in inside)
        )

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the images of `weights`; None where they are not known."""
        return None

    def load_weights(self) -> None:
        """Copy `weights`, where there are any, into this bottom-up and the stages taken out of it.

        Raises:
            InputError: no such weights, or they are another network's.
        """
        if self.weights is None:
            return
        state = self.read_weights(self.weights)
        homes = [
            (f"{name}.", stages.get_submodule(part))
            for stages in self.taken
            for part, name in stages.names.items()
        ]
        unused = tuple({f"{name}." for name in self._ended} - {name for name, _ in homes})
        state = {key: value for key, value in state.items() if not key.startswith(unused)}
        wanted = self.state_dict()
        for name, module in homes:
            wanted |= {f"{name}{key}": value for key, value in module.state_dict().items()}
        check_weights(wanted, state, f"weights {self.weights}", self.name)
        # Not strictly: a frozen BatchNorm has no place for counters of batches, older files have none.
        self.load_state_dict(state, strict=False)
        for name, module in homes:
            part = {k.removeprefix(name): value for k, value in state.items() if k.startswith(name)}
            module.load_state_dict(part, strict=False)

    def read_weights(self, weights: str) -> dict[str, Tensor]:
        """What is called `weights`, by the names of this bottom-up's parameters before it was ended.

        Raises:
            InputError: there is no such file, or it is no state dict.
        """
        return state_dict(read_any(weights), weights)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.loaded |= not state_dict.keys().isdisjoint(prefix + key for key in self.state_dict())

    def train(self, mode: bool = True) -> "BottomUp":
        """As `nn.Module.train`, but what is frozen keeps its running statistics too."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def fold_norms(self) -> None:
        """For inference: make norms part of convolutions, in a bottom-up that says how; others stay."""


def checked(
    x: Tensor, level: int, images: Tensor, stride: int | None = None, part: str = "bottom-up"
) -> Tensor:
    """A map that has the size of its level: anchors and RoIs are placed by strides of 2**level pixels.

    Raises:
        InputError: it has another.
    """
    if torch.compiler.is_exporting():  # where sizes are symbols
        return x
    # Without padding, a map may lack a cell at its end.
    sizes = tuple(x.shape[-2:]), tuple(images.shape[-2:])
    if any(abs(cells - pixels / (stride or 2**level)) > 1.5 for cells, pixels in zip(*sizes, strict=True)):
        raise InputError(
            f"the {part}'s map of level {level} is {sizes[0]} for an image of {sizes[1]}: "
            "a level k has a stride of 2**k pixels, so it is of another level"
        )
    return x

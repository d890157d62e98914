"""timm's networks (PyTorch Image Models) as bottom-up pathways; `pip install 'fpn[timm]'` brings timm."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from torch import Tensor, nn

from fpn.errors import InputError
from fpn.models.bottom_up import BottomUp, checked
from fpn.settings import NonNegativeInt
from fpn.types import Features
from fpn.weights import read_any, state_dict


class TimmBottomUp(BottomUp):
    """Any of timm's feature extractors, from pixels to {C2, …}.

    Its strides decide the levels: a map of stride 4 is C2, one of stride 32 is C5. Where a network is a chain
    of stages, as a ResNet, MobileNet, EfficientNet or ConvNeXt is, it can be frozen from the first stage on,
    and stages that no neck reads are taken out. Any other (some transformers, HRNet) is one stage: it is
    frozen as a whole or not at all, and `levels` says which maps it makes. What makes only maps that nothing
    reads, as in an HRNet without C2, gets no gradient: several processes then need `trainer.strategy`
    ddp_find_unused_parameters_true.

    Not every network ends its stages with a non-linearity. The maps of an EfficientNet and a ConvNeXt have
    values of both signs, and their spread may differ much from level to level; the neck's first convolutions
    learn to even that out.

    Args:
        name: timm's, as mobilenetv3_large_100 or convnext_tiny; `timm.list_models()` lists them.
        weights: what to start from: `default` for those that timm prefers; the tag of others, as a1_in1k
            (`timm.list_pretrained()` lists them behind the name); or a file of timm's weights for the whole
            network, a state dict or .safetensors. Null starts from random ones. `load_weights` loads them.
        levels: whose maps are made; null for all from 2 on.
        frozen_stages: how many stages are not trained, counted from the first. What comes before the first
            map is one stage, and so is what lies between one map and the next.
        norm: frozen (BatchNorms keep their statistics, scales and shifts, for pretrained weights) or live.
            Other norms are trained in any case.
        options: further arguments of `timm.create_model`, as {drop_path_rate: 0.1}.

    Raises:
        InputError: timm is not there or has no such network, or the network has not these levels.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        levels: Sequence[int] | None = None,
        frozen_stages: NonNegativeInt = 0,
        norm: Literal["frozen", "live"] = "frozen",
        options: dict[str, Any] | None = None,
    ) -> None:
        self._made_of = name, tuple(sorted(levels or ())), dict(options or {})
        stages, channels = _parts(*self._made_of)
        super().__init__(stages, channels, frozen_stages, norm == "frozen", weights)
        self.name = name

    def forward(self, images: Tensor) -> Features:
        """From images (N, 3, H, W) to {k: C_k}, as of `BottomUp`."""
        body = getattr(self, "body", None)
        if body is None:
            return super().forward(images)
        maps = (x.permute(0, 3, 1, 2) if _channels_last(body) else x for x in body(images))
        return {k: checked(x, k, images) for k, x in zip(self.channels, maps, strict=True)}

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """As of `BottomUp`."""
        if self.weights is None or Path(self.weights).suffix or Path(self.weights).exists():
            return None
        tagged = self.name if self.weights == "default" else f"{self.name.partition('.')[0]}.{self.weights}"
        trained = _timm().models.get_pretrained_cfg(tagged)
        return tuple(trained.mean), tuple(trained.std)

    def read_weights(self, weights: str) -> dict[str, Tensor]:
        """What timm or a file calls so, as of `BottomUp`.

        Raises:
            InputError: there are no such weights, they cannot be downloaded, or they are another network's.
        """
        timm = _timm()
        name, levels, options = self._made_of
        given: dict[str, Any] = {"pretrained": True}
        path = Path(weights)
        if path.suffix or path.exists():
            state = _read(path)
            fresh = timm.create_model(name, **options)
            # The classifier may be of other classes, or none; it has no place here.
            classifier = fresh.pretrained_cfg.get("classifier") or ()
            layers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
            heads = tuple(f"{layer}." for layer in layers)
            state = {key: value for key, value in state.items() if not key.startswith(heads)}
            state |= {k: v for k, v in fresh.state_dict().items() if k.startswith(heads)}
            given["pretrained_cfg_overlay"] = {"state_dict": state}
        else:
            bare = name.partition(".")[0]
            tags = [full.removeprefix(f"{bare}.") for full in timm.list_pretrained(f"{bare}.*")]
            if not tags or (weights != "default" and weights not in tags):
                there = f"there are default, {', '.join(tags)}; or" if tags else "timm has none:"
                raise InputError(f"{name} has no weights {weights!r}: {there} give a file, or null")
            name = name if weights == "default" else f"{bare}.{weights}"
        try:
            # All of it first: in a part alone, timm passes over what it does not find.
            timm.create_model(name, **given, **options)
            stages, _ = _parts(name, levels, options, **given)
        except Exception as error:  # of a network, a damaged file or another network's
            raise InputError(
                f"weights {weights} of {name} cannot be loaded ({_in_short(error)}): "
                "give others as model.detector.bottom_up.weights, or null"
            ) from error
        return {
            f"{part}.{key}": value
            for stage in stages.values()
            for part, module in stage.items()
            for key, value in module.state_dict().items()
        }


def _parts(
    name: str, levels: Sequence[int], options: dict[str, Any], **given: Any
) -> tuple[dict[int, dict[str, nn.Module]], dict[int, int]]:
    """The stages of a network, each as modules by name, and the channels of its maps, both by level."""
    timm = _timm()
    if not timm.is_model(name):
        raise InputError(f"timm {timm.__version__} has no network {name!r}; timm.list_models() lists them")
    if refused := [
        key for key in options if key.startswith(("pretrained", "checkpoint", "cache", "feature"))
    ]:
        raise InputError(
            f"bottom_up.options cannot have {refused[0]}: weights are given as bottom_up.weights, levels as "
            "bottom_up.levels"
        )
    try:
        network = _extractor(name, options | given)
        info = network.feature_info
        strides = info.reduction()
        # The deepest map of each stride, by timm's number: a transformer lists its last three blocks alone.
        index = {math.log2(stride): i for i, stride in zip(info.out_indices, strides, strict=True)}
        levels = levels or [int(k) for k in index if k >= 2]
        if not levels or not set(levels) <= index.keys():
            raise InputError(
                f"bottom_up.levels {list(levels)}: the maps of {name} have strides of {strides} pixels, "
                "and level k is one of 2**k"
            )
        widths = dict(zip(info.out_indices, info.channels(), strict=True))
        channels = {k: widths[index[k]] for k in levels}
        if not isinstance(network, timm.models.FeatureListNet) or _channels_last(network):
            network = _extractor(name, options | given | {"out_indices": [index[k] for k in levels]})
            return {max(channels): {"body": network}}, channels
    except (
        RuntimeError,
        TypeError,
        AssertionError,
        AttributeError,
    ) as error:  # timm's, of an option or a kind
        raise InputError(f"timm cannot make maps of {name} ({_in_short(error)})") from error
    ends = {
        module: int(math.log2(stride)) for module, stride in zip(network.return_layers, strides, strict=True)
    }
    stages: dict[int, dict[str, nn.Module]] = {}
    part: dict[str, nn.Module] = {}
    for module_name, module in network.items():
        part[module_name] = module
        if (level := ends.get(module_name)) is not None and level <= max(channels):
            stages[level] = stages.get(level, {}) | part
            part = {}
    return stages, channels


def _extractor(name: str, options: dict[str, Any]) -> Any:
    from timm.models.efficientnet import EfficientNetFeatures
    from timm.models.mobilenetv3 import MobileNetV3Features

    timm = _timm()
    network = timm.create_model(name, features_only=True, **options)
    if isinstance(network, EfficientNetFeatures | MobileNetV3Features):
        # Chains too, which timm has older classes for.
        chain = {"feature_cls": "list", "flatten_sequential": True}
        return timm.create_model(name, features_only=True, feature_cfg=chain, **options)
    return network


def _channels_last(network: Any) -> bool:
    return getattr(network, "output_fmt", "NCHW") == "NHWC"


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict, of whichever format; timm's own checkpoints hold it as `state_dict`."""
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise InputError(f"weights file {path} cannot be read ({_in_short(error)})") from error
        return tensors
    content = read_any(path)
    return state_dict(content.get("state_dict_ema") or content.get("state_dict") or content, str(path))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError("TimmBottomUp needs timm: pip install 'fpn[timm]'") from error
    return timm


def _in_short(error: BaseException) -> str:
    return shorten(str(error), 160, placeholder=" …") or type(error).__name__

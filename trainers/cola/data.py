"""The Corpus of Linguistic Acceptability, and anything in its format."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaw.adapters.errors import DataError

BUILTIN = Path(__file__).parent / "builtin"
LABELS = {"0": 0, "1": 1}

# The training file and the development files of a folder: CoLA's public release, then GLUE's and the built-in corpus.
LAYOUTS = [
    ("in_domain_train.tsv", ("in_domain_dev.tsv", "out_of_domain_dev.tsv")),
    ("train.tsv", ("dev.tsv",)),
]


@dataclass(frozen=True)
class Corpus:
    """Sentences with 1 for acceptable and 0 for not, in a training and a development part."""

    name: str
    train: tuple[list[str], list[int]]
    dev: tuple[list[str], list[int]]


def load_corpus(source: str | Path) -> Corpus:
    """Read a corpus.

    Arguments:
        source: "builtin" for the one that the package ships; "hub" for ``glue/cola`` by the datasets library; or a
            folder with CoLA's public files (``in_domain_train.tsv``, ``in_domain_dev.tsv``, ``out_of_domain_dev.tsv``,
            also under ``raw/``; the two development files together are GLUE's) or with GLUE's (``train.tsv``,
            ``dev.tsv``).

    Raises:
        DataError: The folder has no such files, or a line is not source, label 0 or 1, mark, sentence.

    Example:
        >>> corpus = load_corpus("builtin")
        >>> len(corpus.train[0]) == len(corpus.train[1]), set(corpus.dev[1])
        (True, {0, 1})
    """
    if source == "hub":
        return _hub()
    folder = BUILTIN if source == "builtin" else Path(source)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give one with CoLA's TSV files, or 'builtin', or 'hub'")
    for place in (folder, folder / "raw"):
        for train, dev in LAYOUTS:
            if (place / train).is_file() and all((place / name).is_file() for name in dev):
                name = "builtin" if source == "builtin" else folder.resolve().name
                return Corpus(name, read_tsv([place / train]), read_tsv([place / name for name in dev]))
    wanted = " or ".join(", ".join([train, *dev]) for train, dev in LAYOUTS)
    raise DataError(f"{folder}: has not the files of a corpus; wanted are {wanted}")


def read_tsv(paths: Iterable[Path]) -> tuple[list[str], list[int]]:
    """Read CoLA files: source, label, the author's mark, sentence, with tabs between and no header.

    Raises:
        DataError: A file is empty or not text, or a line is of another form; names the file and the line.
    """
    sentences: list[str] = []
    labels: list[int] = []
    for path in paths:
        try:
            # Not splitlines(): a sentence may hold one of the other characters that it splits at.
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as text ({error})") from None
        if lines == [""]:
            raise DataError(f"{path}: is empty")
        for number, line in enumerate(lines, start=1):
            fields = line.removesuffix("\r").split("\t")
            if len(fields) != 4:
                raise DataError(
                    f"{path}: line {number} has {len(fields)} columns; wanted are 4: source, label, mark, sentence"
                )
            _, label, _, sentence = fields
            if label not in LABELS:
                raise DataError(f"{path}: line {number} has label {label!r}; it must be 0 or 1")
            if not sentence.strip():
                raise DataError(f"{path}: line {number} has no sentence")
            sentences.append(sentence.strip())
            labels.append(LABELS[label])
    return sentences, labels


def _hub() -> Corpus:
    try:
        from datasets import load_dataset

        splits = {name: load_dataset("glue", "cola", split=name) for name in ("train", "validation")}
    except ImportError:
        raise DataError("--data hub needs the datasets library: pip install 'deltaw[train]'") from None
    except Exception as error:  # the library raises many kinds where there is no network
        raise DataError(
            f"glue/cola cannot be loaded from the hub ({type(error).__name__}: {error}); give a folder instead"
        ) from None
    parts = {
        name: (list(split["sentence"]), [int(label) for label in split["label"]]) for name, split in splits.items()
    }
    return Corpus("glue-cola", parts["train"], parts["validation"])

"""Shared by the scripts that make the built-in models: the tokenizer's wrapping, and writing a folder anew."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from deltaw.adapters.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def wrapped(tokenizer: Any, longest: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the tokenizers library as transformers' kind, with RoBERTa's and BART's special tokens.

    Arguments:
        tokenizer: It has the tokens <s>, <pad>, </s>, <unk>, <mask>.
        longest: Tokens of the longest text.
    """
    from transformers import PreTrainedTokenizerFast

    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    return cast(
        PreTrainedTokenizerFast,
        wrap(
            tokenizer_object=tokenizer,
            model_max_length=longest,
            bos_token="<s>",
            eos_token="</s>",
            cls_token="<s>",
            sep_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            mask_token="<mask>",
        ),
    )


@contextmanager
def written_anew(out: Path, written: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder to write into; at the end it takes the place of ``out``, which is as it was until then.

    Arguments:
        out: The folder, there or not.
        written: The names that an earlier call can have left in it.

    Raises:
        DataError: ``out`` holds something else, which would be lost.
    """
    strangers = sorted(path.name for path in out.iterdir() if path.name not in written) if out.exists() else []
    if strangers:
        raise DataError(f"{out} holds {strangers[0]}, which would be lost; choose a new or empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        for path in new.rglob("*.*"):
            path.chmod(0o644)  # safetensors makes its files private; a package's are for all
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
        shutil.rmtree(old, ignore_errors=True)

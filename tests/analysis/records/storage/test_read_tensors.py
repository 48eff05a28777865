"""Tensors of one file: those that lie side by side are read at once, and are what each is alone."""

import pytest
import torch
from safetensors.torch import save_file

from deltaw.analysis.records.storage import safetensors_file
from deltaw.analysis.records.storage.files import LocalStorage

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([7, 8]),
    "c": torch.tensor([1.5], dtype=torch.bfloat16),
    "d": torch.empty(0, 4),
    "e": torch.arange(4.0),
    "f": torch.tensor(9.0),
}


@pytest.mark.parametrize("at_most", [0, 20, 1000])
@pytest.mark.parametrize("names", ["abcdef", "fa", "ce", "d", ""])
def test_several_are_those_alone(names, at_most, tmp_path, monkeypatch) -> None:
    save_file(TENSORS, tmp_path / "file")
    storage, read = LocalStorage(tmp_path), []
    monkeypatch.setattr(safetensors_file, "READ_AT_MOST", at_most)
    for way in (storage.read, storage.mapped):
        monkeypatch.setattr(storage, way.__name__, lambda *given, way=way: read.append(given) or way(*given))
    entries = {name: safetensors_file.read_header(storage, "file")[name] for name in names}
    read.clear()
    found = safetensors_file.read_tensors(storage, "file", entries)
    assert list(found) == list(names)
    for name, value in found.items():
        assert value.dtype == TENSORS[name].dtype
        assert torch.equal(value, TENSORS[name])
    if names == "abcdef":
        assert (len(read) == 1) == (at_most == 1000)

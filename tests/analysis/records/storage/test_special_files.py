"""What is no regular file, is too large or nested too deep is one error, wherever a file is read."""

import json
import os
import shutil
import socket

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DeltawError, LoRA, inject, load_adapters, load_peft, save_adapters
from deltaw.adapters.small_files import DEPTH, bounded_json, small_file
from deltaw.analysis import Trajectory
from deltaw.analysis.records.run_folder.format import read_index, read_manifest, read_scalars
from deltaw.analysis.records.run_folder.results import read_result, write_result
from deltaw.analysis.records.storage.files import LOG_LIMIT, LocalStorage
from deltaw.trainers import Recorder


def plain():
    torch.manual_seed(0)
    return nn.ModuleDict({"query": nn.Linear(3, 2)})


def recorded(folder):
    model = inject(plain(), LoRA(rank=1), targets=["query"])
    with Recorder(model, folder) as recorder:
        recorder.step(0, loss=1.0)
    write_result(folder, {"method": "lora"}, {"best_mcc": 0.5})
    save_adapters(model, folder / "adapters.safetensors")


def adapter(folder):
    folder.mkdir()
    tensors = {"lora_A.weight": torch.ones(1, 3), "lora_B.weight": torch.ones(2, 1)}
    save_file({f"base_model.model.query.{k}": v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["query"]}))


def model(folder):
    folder.mkdir()
    save_file({"query.weight": torch.ones(2, 3)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')


def pickled(folder):
    folder.mkdir()
    torch.save({"query.weight": torch.ones(2, 3)}, folder / "pytorch_model.bin")


BASE = {"query.weight": torch.ones(2, 3)}


def open_everything(folder):
    run = Trajectory.open(
        folder, base=None if (folder / "manifest.json").exists() else {"query.weight": torch.ones(2, 3)}
    )
    run.scalars()
    return [run.update(name, step) for name in run.modules for step in run.steps]


READERS = {
    recorded: {
        "manifest.json": (open_everything, read_manifest),
        "base.safetensors": (open_everything,),
        "checkpoints.jsonl": (open_everything, read_index),
        "scalars.jsonl": (open_everything, read_scalars),
        "checkpoints/0000000000.safetensors": (open_everything,),
        "result.json": (read_result,),
        "adapters.safetensors": (lambda folder: load_adapters(plain(), folder / "adapters.safetensors"),),
    },
    adapter: {
        "adapter_config.json": (open_everything, lambda folder: load_peft(plain(), folder)),
        "adapter_model.safetensors": (open_everything, lambda folder: load_peft(plain(), folder)),
    },
    model: dict.fromkeys(("config.json", "trainer_state.json", "model.safetensors"), (open_everything,)),
    pickled: {"pytorch_model.bin": (open_everything,)},
}
CASES = [(make, file, read) for make, files in READERS.items() for file, reads in files.items() for read in reads]


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as door:
        before = os.getcwd()
        os.chdir(path.parent)  # a socket's address may have a hundred characters
        try:
            door.bind(path.name)
        finally:
            os.chdir(before)


def endless(path):
    path.symlink_to("/dev/zero")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**42)


KINDS = {"fifo": fifo, "socket": unix_socket, "device": endless, "folder": os.mkdir, "sparse": sparse}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("make", "file", "read"), CASES)
def test_a_special_file_is_no_standstill(kind, make, file, read, tmp_path, within):
    folder = tmp_path / "run"
    make(folder)
    read(folder)
    (folder / file).unlink()
    KINDS[kind](folder / file)
    said = ""
    with within(10):
        try:
            read(folder)
        except DeltawError as error:
            said = str(error)
        else:  # passed over as what is not there is, where nothing depends on it
            assert file in ("result.json", "config.json", "trainer_state.json", "scalars.jsonl")
            assert kind != "sparse"
    assert "\n" not in said


def test_a_log_has_a_limit(tmp_path):
    sparse(tmp_path / "scalars.jsonl")
    with pytest.raises(DeltawError, match=f"at most {LOG_LIMIT}"):
        LocalStorage(tmp_path).whole("scalars.jsonl")
    with pytest.raises(ValueError, match="at most 10 are read"):
        small_file(tmp_path / "scalars.jsonl", 10)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[" * 100_000, "nested"),
        (b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), "nested"),
        (b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), "nested"),
        (b"[" + b"[]," * 4_000_000 + b"1]", "mappings and lists"),
        (b"9" * 10_000, "digits"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b"\xff", "decode|utf"),
        (b"", "Expecting"),
    ],
)
def test_json_has_bounds(text, why):
    with pytest.raises(ValueError, match=why):
        bounded_json(text, unique=True)
    assert bounded_json(b"[" * DEPTH + b"]" * DEPTH)


def test_a_manifest_is_read_whole_or_refused(tmp_path):
    recorded(tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    text = path.read_text()
    for damaged in (
        text.replace("[", "[" * 100_000, 1),
        text.replace("{", '{"format": "x",', 1),
        "[" * 900 + "]" * 900,
    ):
        path.write_text(damaged)
        with pytest.raises(DeltawError, match="is damaged, it is not JSON"):
            Trajectory.open(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")

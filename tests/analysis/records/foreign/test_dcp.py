"""Folders of torch.distributed.checkpoint, and pickles in them that would run code."""

import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory
from deltaw.analysis.records.foreign.dcp import _Unpickler

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns that there is one process


def net(seed):
    torch.manual_seed(seed)
    return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"query": nn.Linear(6, 4)}) for _ in range(2)])})


def save(model, folder, nested=True):
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}
    dcp.save(state if nested else model.state_dict(), checkpoint_id=folder)


@pytest.mark.parametrize("nested", [True, False])
def test_checkpoints(nested, tmp_path):
    wanted = {}
    for step in (1, 2):
        model = net(step)
        save(model, tmp_path / f"step-{step}", nested)
        wanted[step] = {k: v.clone() for k, v in model.state_dict().items()}
    run = Trajectory.open(tmp_path, base=wanted[1])
    assert run.steps == [1, 2]
    assert run.modules == ["layers.0.query", "layers.1.query"]
    for step, state in wanted.items():
        for module in run.modules:
            assert torch.equal(run.weight(module, step), state[f"{module}.weight"])
    single = Trajectory.open(tmp_path / "step-2")
    assert torch.equal(single.weight("layers.1.query", 2), wanted[2]["layers.1.query.weight"])


def test_where_accelerate_puts_it(tmp_path):
    model = net(0)
    save(model, tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0")
    run = Trajectory.open(tmp_path)
    assert run.steps == [5]
    assert torch.equal(run.weight("layers.0.query", 5), model.layers[0].query.weight)


def in_two_blocks(folder, whole, second_at):
    """Rows 0 to 3 of a matrix (6, 4) in one block, its last two in another, which is said to begin at a row."""
    first, second = io.BytesIO(), io.BytesIO()
    torch.save(whole[:4].clone(), first)
    torch.save(whole[4:].clone(), second)
    m = dcp.metadata
    properties = m.TensorProperties(dtype=torch.float32)
    size = torch.Size
    at = size([second_at, 0])
    chunks = [m.ChunkStorageMetadata(size([0, 0]), size([4, 4])), m.ChunkStorageMetadata(at, size([2, 4]))]
    info = dcp.filesystem._StorageInfo
    metadata = Metadata(
        {"a.weight": m.TensorStorageMetadata(properties, size([6, 4]), chunks)},
        storage_data={
            m.MetadataIndex("a.weight", size([0, 0]), 0): info("__0_0.distcp", 0, len(first.getvalue())),
            m.MetadataIndex("a.weight", at, 1): info("__1_0.distcp", 0, len(second.getvalue())),
        },
    )
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "__0_0.distcp").write_bytes(first.getvalue())
    (folder / "__1_0.distcp").write_bytes(second.getvalue())


def test_blocks_that_overlap_leave_a_gap(tmp_path):
    """As many entries as the matrix has, but rows 4 and 5 are in no block: they would be whatever the memory held."""
    in_two_blocks(tmp_path, torch.arange(24.0).view(6, 4), second_at=2)
    with pytest.raises(RecordError, match=r"blocks of a\.weight overlap"):
        Trajectory.open(tmp_path).weight("a", 0)


def test_blocks_are_put_together(tmp_path):
    """Two blocks of one tensor, as two processes write them."""
    whole = torch.arange(24.0).view(6, 4)
    in_two_blocks(tmp_path, whole, second_at=4)
    assert torch.equal(Trajectory.open(tmp_path).weight("a", 0), whole)
    (tmp_path / "__1_0.distcp").unlink()
    with pytest.raises(RecordError, match="__1_0"):
        Trajectory.open(tmp_path).weight("a", 0)


class Runs:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_metadata_with_code_is_refused_and_does_not_run(tmp_path):
    proof = tmp_path / "ran"
    save(net(0), tmp_path / "run")
    path = tmp_path / "run" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.storage_meta = Runs(proof)
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(RecordError, match=r"io\.open"):
        Trajectory.open(tmp_path / "run")
    assert not proof.exists()
    pickle.loads(path.read_bytes()).storage_meta.close()  # the proof can fail: it does run where it is let
    assert proof.exists()


def test_a_block_with_code_is_refused_and_does_not_run(tmp_path):
    proof = tmp_path / "ran"
    save(net(0), tmp_path / "run", nested=False)
    data = io.BytesIO()
    torch.save(Runs(proof), data)
    path = tmp_path / "run" / "__0_0.distcp"
    path.write_bytes(data.getvalue() + bytes(max(0, path.stat().st_size - len(data.getvalue()))))
    run = Trajectory.open(tmp_path / "run")
    refused = 0
    for module in run.modules:
        try:
            run.weight(module, 0)
        except RecordError:
            refused += 1
    assert refused
    assert not proof.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04})" + b"2\x86" * 60 + b"K\x01s.",  # a key whose hash takes 2^60 steps
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",  # a bytearray of a terabyte
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04ctorch\nload\n.",
        b"\x80\x04ctorch\nSize.__class__\n.",
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata.__init__.__globals__\n.",
        b"\x80\x04]" + b"2a" * 5 + b".",
        b"\x80\x04r\xff\xff\xff\x7f.",
        b"P1\n.",
        b"",
    ],
)
def test_tricks_of_pickles(data, tmp_path):
    (tmp_path / ".metadata").write_bytes(data)
    with pytest.raises(RecordError):
        Trajectory.open(tmp_path)


def test_only_records_are_made():
    found = _Unpickler(pickle.dumps(Metadata({}, storage_meta=dcp.metadata.StorageMeta()))).load()
    assert type(found).__module__ == "deltaw.analysis.records.foreign.dcp"

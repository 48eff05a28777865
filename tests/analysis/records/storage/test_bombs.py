"""Small pickles that stop a machine which trusts them, and tensors that are larger than their storage."""

import io
import pickle
import struct
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp

from deltaw.adapters.errors import RecordError
from deltaw.analysis import Trajectory
from deltaw.analysis.records.storage import torch_file
from deltaw.analysis.records.storage.plain_pickle import PlainUnpickler, whole_sizes
from deltaw.analysis.records.storage.torch_file import SHARED

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns that there is one process


def doubled(times, kind):
    """Nested lists or tuples that stand for 2^times ones, in so many bytes."""
    found = kind((1, 1))
    for _ in range(times):
        found = kind((found, found))
    return found


class Key:
    """Lets a value that no machine could hash stand in a pickle as a key."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return (tuple, (self.value,))


def folder_with(tmp_path, change):
    dcp.save({"model": {"a.weight": torch.ones(2, 3), "b.weight": torch.ones(2, 3)}}, checkpoint_id=tmp_path)
    path = tmp_path / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata, next(key for key in metadata.planner_data if "a.weight" in key))
    path.write_bytes(pickle.dumps(metadata))
    assert path.stat().st_size < 10_000


def set_field(record, name, value):
    object.__setattr__(record, name, value)


BOMBS = {
    "path": lambda m, key: m.planner_data.update({key: ("model", doubled(60, list))}),
    "path of tuples": lambda m, key: m.planner_data.update({key: doubled(60, tuple)}),
    "sizes": lambda m, key: set_field(m.state_dict_metadata[key], "size", doubled(60, list)),
    "a huge size": lambda m, key: set_field(m.state_dict_metadata[key], "size", (2**8000, 3)),
    "offsets": lambda m, key: set_field(m.state_dict_metadata[key].chunks[0], "offsets", doubled(60, tuple)),
    "file": lambda m, key: set_field(next(iter(m.storage_data.values())), "relative_path", doubled(60, list)),
    "start": lambda m, key: set_field(next(iter(m.storage_data.values())), "offset", doubled(60, tuple)),
    "dtype": lambda m, key: set_field(m.state_dict_metadata[key], "properties", doubled(60, tuple)),
    "a long name": lambda m, key: m.planner_data.update({key: ("x" * 5000,)}),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_metadata_is_checked_before_it_is_hashed_or_written_out(bomb, tmp_path, within):
    folder_with(tmp_path, BOMBS[bomb])
    with within(5), pytest.raises(RecordError) as told:
        Trajectory.open(tmp_path)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize("name", ["fqn", "index"])
def test_an_index_is_not_hashed_by_what_it_holds(name, tmp_path, within, monkeypatch):
    dcp.save({"model": {"a.weight": torch.ones(2, 3)}}, checkpoint_id=tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    (index, info), *_ = metadata.storage_data.items()
    set_field(index, name, doubled(60, tuple))
    monkeypatch.setattr(type(index), "__hash__", lambda self: 1)
    metadata.storage_data = {index: info}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with within(5):
        if name == "fqn":
            with pytest.raises(RecordError, match="no text"):
                Trajectory.open(tmp_path)
        else:  # which nobody reads
            assert torch.equal(Trajectory.open(tmp_path).weight("a", 0), torch.ones(2, 3))


def test_blocks_that_share_bytes_are_refused(tmp_path):
    """A block of a kilobyte in a million places would be a tensor of a gigabyte."""

    def share(metadata, key):
        one, other = metadata.storage_data.values()
        set_field(one, "offset", other.offset)

    folder_with(tmp_path, share)
    with pytest.raises(RecordError, match="overlap"):
        Trajectory.open(tmp_path)


def test_a_list_of_blocks_that_tensors_share_is_refused(tmp_path):
    def share(metadata, key):
        chunks = metadata.state_dict_metadata[key].chunks * 3
        for stored in metadata.state_dict_metadata.values():
            set_field(stored, "chunks", chunks)

    folder_with(tmp_path, share)
    with pytest.raises(RecordError, match="more blocks than the files"):
        Trajectory.open(tmp_path)


# ---- files of torch.save ----


def archive(path, pickled, storages=(bytes(16),), **more):
    """Write an archive with a pickle of our own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickled)
        file.writestr("x/version", "3")
        file.writestr("x/byteorder", more.get("order", "little"))
        for number, data in enumerate(storages):
            file.writestr(f"x/data/{number}", data)


class Of(pickle.Pickler):
    """Writes ("storage", …) where a ``Storage`` stands."""

    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


class Storage:
    def __init__(self, numbers=4, key="0", kind=torch.FloatStorage):
        self.pid = ("storage", kind, key, "cpu", numbers)


class View:
    """A tensor as torch pickles one."""

    def __init__(self, size, strides, offset=0, storage=None):
        self.made_of = (storage or Storage(), offset, size, strides, False, {})

    def __reduce__(self):
        return (torch._utils._rebuild_tensor_v2, self.made_of)


def pickled(value):
    data = io.BytesIO()
    Of(data, protocol=2).dump(value)
    return data.getvalue()


def test_a_file_of_our_own_is_read(tmp_path):
    value = {"a.weight": View((2, 2), (2, 1)), "b.weight": View((2, 2), (1, 2)), "c": View((1, 3), (0, 1), 1)}
    archive(tmp_path / "pytorch_model.bin", pickled(value), [struct.pack("<4f", 1, 2, 3, 4)])
    run = Trajectory.open(tmp_path)
    there = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    for name in run.modules:
        assert torch.equal(run.weight(name, 0), there[f"{name}.weight"])
    assert run.weight("b", 0).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    "value",
    [
        View((10**6, 10**6), (0, 0)),  # a number that is seen as 10^12
        View((4, 4), (0, 1)),
        View((2, 2), (2, 1), 1),
        View((2, 3), (3, 1)),
        View((2, 2), (2**61, 1)),
        View((2, 2), (-2, 1), 3),
        View((-2, 2), (2, 1)),
        View((2, 2), (2, 1), -1),
        View((2**61, 0), (1, 1)),
        View((2**80, 2), (1, 1)),
        View((2.0, 2), (2, 1)),
        View((2, 2), (2,)),
        View((1,) * 9, (1,) * 9),
        View(doubled(60, tuple), (2, 1)),
        View((2, 2), doubled(60, tuple)),
        View((2, 2), (2, 1), doubled(60, tuple)),
        View((2, 2), (2, 1), storage=Storage(2**40)),
        View((2, 2), (2, 1), storage=Storage(-4)),
        View((2, 2), (2, 1), storage=Storage(4.0)),
        View((2, 2), (2, 1), storage=Storage(4, "1")),
        View((2, 2), (2, 1), storage=Storage(4, "../x")),
        View((2, 2), (2, 1), storage=Storage(4, ("x",))),
        View((2, 2), (2, 1), storage=Storage(4, "0", torch.DoubleStorage)),
    ],
)
def test_a_tensor_larger_than_its_storage_is_refused(value, tmp_path, within):
    archive(tmp_path / "pytorch_model.bin", pickled({"a.weight": value}))
    with within(5), pytest.raises(RecordError) as told:
        Trajectory.open(tmp_path)
    assert len(str(told.value)) < 600


def test_tensors_use_a_storage_so_many_times(tmp_path, within):
    """A megabyte that ten thousand names stand for would be ten gigabytes to look at."""
    storage = Storage(2**18)
    tied = {f"layer.{k}.weight": View((512, 512), (512, 1), storage=storage) for k in range(SHARED // 2)}
    archive(tmp_path / "pytorch_model.bin", pickled(tied), [bytes(2**20)])
    assert len(Trajectory.open(tmp_path).modules) == SHARED // 2
    many = {f"layer.{k}.weight": View((512, 512), (512, 1), storage=storage) for k in range(10_000)}
    archive(tmp_path / "pytorch_model.bin", pickled(many), [bytes(2**20)])
    with within(20), pytest.raises(RecordError, match=f"more than {SHARED} times"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02})" + b"2\x86" * 100 + b"K\x01s.",  # a key whose hash takes 2^100 steps
        b"\x80\x02}q\x00" + b"K\x01h\x00s" * 1 + b"h\x00h\x00s.",  # a mapping as a key
        b"\x80\x02\x8b" + struct.pack("<i", 10**9) + b".",
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02" + b")" + b"\x85" * 100_000 + b".",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02ctorch.hub\nload\n.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.",
        b"",
    ],
)
def test_tricks_of_pickles_in_archives(data, tmp_path, within):
    archive(tmp_path / "pytorch_model.bin", data)
    with within(5), pytest.raises(RecordError) as told:
        Trajectory.open(tmp_path)
    assert len(str(told.value)) < 600


def test_mappings_that_stand_in_many_places_are_looked_into_once(tmp_path, within):
    nested = {"a.weight": 1}
    for _ in range(4):
        nested = {f"k{k}": nested for k in range(3000)}
    archive(tmp_path / "pytorch_model.bin", pickled(nested))
    with within(10), pytest.raises(RecordError, match="no tensors by name"):
        Trajectory.open(tmp_path)


def test_archives_that_lie(tmp_path):
    path, good = tmp_path / "pytorch_model.bin", pickled({"a.weight": View((2, 2), (2, 1))})
    archive(path, good, order="big")
    with pytest.raises(RecordError, match="largest part first"):
        Trajectory.open(tmp_path)
    archive(path, good)
    whole = path.read_bytes()
    for old, new in ((b"PK\x03\x04", b"PK\x03\x05"), (b"x/data/0", b"x/data/1"), (b"x/data.pkl", b"x/data.pk_")):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(RecordError):
            Trajectory.open(tmp_path)
    end = whole.rindex(b"PK\5\6")
    path.write_bytes(whole[: end + 12] + struct.pack("<I", 2**31) + whole[end + 16 :])
    with pytest.raises(RecordError):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "float8_e4m3fn", "bool"])
def test_the_same_tensors_as_torch_reads(dtype, tmp_path):
    dtype = getattr(torch, dtype)
    whole = torch.arange(24).view(4, 6).to(dtype)
    state = {
        "a.weight": whole,
        "b.weight": whole.t(),
        "c.weight": whole[1:3, ::2],
        "d.weight": torch.nn.Parameter(whole.clone(), requires_grad=False),
        "e.weight": whole[:0],
        "f": whole[0],
        "g.weight": whole.float().to_sparse() if dtype == torch.float64 else whole,
        "step": torch.tensor(3),
    }
    torch.save(state, tmp_path / "x.pt")
    found = torch_file.model_in_file(torch_file.LocalStorage(tmp_path), "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    there = torch.load(tmp_path / "x.pt", weights_only=True)
    assert set(found) == {name for name in state if not state[name].is_sparse}
    for name, saved in found.items():
        read = saved.of(bytearray(data[saved.start : saved.start + saved.length]))
        assert read.dtype == there[name].dtype
        assert read.shape == there[name].shape
        assert torch.equal(read.double(), there[name].double())


def test_what_nests_is_read_and_not_looked_at():
    assert PlainUnpickler(pickle.dumps(doubled(60, tuple))).load()
    with pytest.raises(ValueError, match="whole number"):
        whole_sizes(doubled(2, tuple))

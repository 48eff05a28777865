"""Headers, manifests and index lines that say what cannot be: one error of ours each."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DeltawError, LoRA, OptionError, RecordError, create, inject
from deltaw.adapters.methods.registry import METHODS, options_of
from deltaw.analysis import Trajectory
from deltaw.analysis.records.run_folder.format import (
    LINE_LIMIT,
    numbered_lines,
    parse_index,
    parse_manifest,
    parse_scalars,
)
from deltaw.analysis.records.storage.safetensors_file import NAME_LIMIT
from deltaw.trainers import Recorder

WEIRD = [
    None,
    True,
    -1,
    0,
    10**9,
    2**70,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    0.5,
    "",
    "x",
    [],
    {},
    [1],
    {"a": 1},
]


def header(path, entries, data=bytes(24)):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(first, last, shape=(2, 3), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"a.weight": entry(0, 24), "b.weight": entry(0, 24)}, "share bytes"),
        ({"a.weight": entry(0, 16, (2, 2)), "b.weight": entry(8, 24, (2, 2))}, "share bytes"),
        ({"a.weight": entry(0, 8, (1, 2)), "b.weight": entry(16, 24, (1, 2))}, "no tensor's"),
        ({"a.weight": entry(0, 16, (2, 2))}, "speaks of"),
        ({"a.weight": entry(0, 48, (4, 3))}, "truncated"),
        ({"a.weight": entry(24, 0)}, "truncated"),
        ({"a.weight": entry(-24, 0)}, "no sizes"),
        ({"a.weight": entry(0, 24, (2, 2))}, "needs 16 bytes"),
        ({"a.weight": entry(0, 24, (2.0, 3))}, "no sizes"),
        ({"a.weight": entry(0, 24, (2**70, 3))}, "no sizes"),
        ({"a.weight": entry(0, 24, (-2, -3))}, "no sizes"),
        ({"a.weight": entry(0, 24, (True, 6))}, "no sizes"),
        ({"a.weight": entry(0, 0, (2**40, 2**40, 0))}, "none of a weight"),
        ({"a.weight": entry(0, 24, (1,) * 8 + (6,))}, "none of a weight"),
        ({"a.weight": entry(0, 24, dtype="F33")}, "dtype"),
        ({"a.weight": entry(0, 24, dtype=["F32"])}, "dtype|damaged"),
        ({"": entry(0, 24)}, "0 characters"),
        ({"x" * (NAME_LIMIT + 1): entry(0, 24)}, "characters"),
        (b'{"a.weight": {}, "a.weight": {}}', "twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a.weight": 9' + b"9" * 10_000 + b"}", "digits"),
        (b"[]", "no mapping"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_a_header_that_lies(entries, why, tmp_path):
    header(tmp_path / "model.safetensors", entries)
    with pytest.raises(RecordError, match=why) as told:
        Trajectory.open(tmp_path)
    assert len(str(told.value)) < 800


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_the_length_of_a_header_that_lies(length, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(RecordError):
        Trajectory.open(tmp_path)


def test_options_of_wrong_kinds_are_option_errors():
    refused = 0
    for name in METHODS:
        for option in options_of(name):
            for weird in WEIRD:
                try:
                    create(name, **{option: weird})
                except OptionError as error:
                    refused += 1
                    assert len(str(error)) < 800  # noqa: PT017
    assert refused > 300
    for name in ("__class__", "", "x" * 10_000, "ft\x00"):
        with pytest.raises(OptionError):
            create(name)


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(3, 2)}), LoRA(rank=1), targets=["query"])
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(2):
            recorder.step(step, loss=1.0)
    return tmp_path / "run"


def looked_at(run):
    found = Trajectory.open(run)
    found.scalars()
    for module in found.modules:
        for step in found.steps:
            assert found.weight(module, step).shape == found.shape(module)
            found.update(module, step)


def hostile_manifests(raw):
    module = raw["modules"]["query"]
    for weird in WEIRD:
        for change in (
            {"method": weird},
            {"options": weird},
            {"shape": weird},
            {"shape": [weird, 3]},
            {"shape": [2, 3, weird]},
            {"dtype": weird},
            *({"options": module["options"] | {option: weird}} for option in ("rank", "alpha", "dropout", "__init__")),
        ):
            yield raw | {"modules": {"query": module | change}}
        for key in ("version", "method", "modules", "base", "constants", "info", "run_id"):
            yield raw | {key: weird}
        yield raw | {"base": raw["base"] | {"bytes": weird}}
        yield raw | {"modules": {str(weird): module}}
    for method in ("__class__", "ft", "galore", "vera", "randlora", "corda", "x" * 100_000, "\x1b[2J"):
        yield raw | {"modules": {"query": module | {"method": method}}}
        yield raw | {"modules": {"query": module | {"method": method, "options": {"rank": 10**9}}}}


def test_hostile_manifests(run):
    raw = json.loads((run / "manifest.json").read_text())
    looked_at(run)
    refused = 0
    for hostile in hostile_manifests(raw):
        (run / "manifest.json").write_text(json.dumps(hostile))
        try:
            looked_at(run)
        except DeltawError as error:
            refused += 1
            assert len(str(error)) < 1500  # noqa: PT017
    assert refused > 200
    with pytest.raises(RecordError, match="version"):
        parse_manifest(raw | {"version": 10**30}, "m")


@pytest.mark.parametrize("weird", [v for v in WEIRD if v != 0 and v != 10**9] + [2**53])
@pytest.mark.parametrize("key", ["step", "bytes", "sha256"])
def test_hostile_lines(weird, key):
    line = {"step": 1, "bytes": 2, "sha256": "x"} | {key: weird}
    if isinstance(weird, str) and key == "sha256":
        return
    with pytest.raises(RecordError, match="line 1 is damaged") as told:
        parse_index(json.dumps(line).encode() + b"\n", "index")
    assert len(str(told.value)) < 300


def test_lines_have_a_limit(within):
    for parse in (parse_index, parse_scalars):
        with pytest.raises(RecordError, match="at most"):
            parse(b'{"step": 1' + b" " * LINE_LIMIT + b"}\n", "log")
        with pytest.raises(RecordError, match="line 1 is damaged"):
            parse(b"[" * 100_000 + b"\n", "log")
        with within(5), pytest.raises(RecordError, match="line 1 is damaged"):
            parse(b"\n" * 50_000_000, "log")
    assert list(numbered_lines(b"a\nb\nc", "log")) == [(1, "a"), (2, "b")]


def test_names_with_control_characters_are_read(tmp_path):
    save_file({"a\x1b[2J\n.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    assert Trajectory.open(tmp_path).modules == ["a\x1b[2J\n"]

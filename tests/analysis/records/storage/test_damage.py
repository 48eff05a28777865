"""Damaged files, twenty thousand where CI is set: each ends in a clear error or in a matrix of the announced shape.

Nothing else may happen: no other exception, no hang, no gigabyte taken, no code run. Bytes are flipped, cut, put in and
zeroed; headers, manifests, indexes and configurations are made to lie.
"""

import contextlib
import gzip
import http.server
import io
import json
import os
import random
import resource
import threading
import time
import warnings
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DeltawError, LoRA, inject, load_adapters, load_peft, save_adapters
from deltaw.analysis import Trajectory
from deltaw.analysis.records.run_folder.results import read_result, write_result
from deltaw.analysis.records.storage import web
from deltaw.trainers import Recorder

TIMES = 2000 if os.environ.get("CI") else 400  # damaged files a format, of which there are ten
SECONDS = 10  # for one of them

WEIRD = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 2**70, -(2**70), 1e308, float("inf"), float("nan"), 0.5),
    *("", "x", "../x", "/etc/passwd", "..", "a/b", "a\\b", "\0", "(a+)+$", "x" * 1000),
    *("F32", "BF16", "F64", "U8", "I64", "F4", "NONSENSE"),
    *([], {}, [1], [2, 2], [[[[]]]], {"a": {}}, [2**62, 2**62], [0, 2**62], [-1, -1], [1] * 70),
    *("pissa", "olora", "corda", "LORA", "HIRA", "VERA", "OFT", "LOKR", "BOFT", "ADAMSS"),
]


def recorded(folder):
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(3, 2)}), LoRA(rank=1), targets=["query"])
    with Recorder(model, folder) as recorder:
        for step in range(2):
            recorder.step(step, loss=1.0)


def checkpoints(folder):
    for step in (1, 2):
        (folder / f"checkpoint-{step}").mkdir()
        save_file(
            {"h.0.c_attn.weight": torch.ones(2, 6), "h.0.b.weight": torch.ones(2)},
            folder / f"checkpoint-{step}" / "model.safetensors",
        )
        (folder / f"checkpoint-{step}" / "config.json").write_text(
            json.dumps({"model_type": "gpt2", "n_embd": 2, "n_head": 1})
        )
        log = {"global_step": step, "log_history": [{"step": step, "loss": 1.0}]}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(log))


def sharded(folder):
    names = {"a.weight": "model-00001-of-00002.safetensors", "b.experts.w2": "model-00002-of-00002.safetensors"}
    save_file({"a.weight": torch.ones(2, 3)}, folder / names["a.weight"])
    save_file({"b.experts.w2": torch.ones(2, 2, 3)}, folder / names["b.experts.w2"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text(json.dumps({"hidden_size": 3, "text_config": {"model_type": "x"}}))


def adapter(folder):
    tensors = {
        "lora_A.weight": torch.ones(1, 3),
        "lora_B.weight": torch.ones(2, 1),
        "lora_magnitude_vector": torch.ones(2),
    }
    save_file({f"base_model.model.h.0.q.{k}": v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "rank_pattern": {}, "alpha_pattern": {"h.0.q": 3}}
    settings |= {"use_rslora": False, "use_dora": True, "init_lora_weights": True, "base_model_name_or_path": "a/b"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def distributed(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"a.weight": torch.ones(2, 3)}, "step": 1}, checkpoint_id=folder)


def pickled(folder):
    torch.save({"a.weight": torch.ones(2, 3)}, folder / "pytorch_model.bin")


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(3, 2), "v": nn.Linear(3, 2)})])})


def loadable(folder):
    """An adapter that ``load_peft`` takes, which has no counterpart of settings beyond."""
    adapter(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {}, "target_modules": ["q"]}))


def saved(folder):
    save_adapters(inject(model(), LoRA(rank=1), targets=["h.*"]), folder / "adapters.safetensors")


def result(folder):
    options = {"method": "lora", "options": {"rank": 1, "alpha": None}, "seed": 0}
    values = {"method": "lora", "best_mcc": 0.5, "scores": {"a": 0.5}, "n_dev": {"a": 4}, "epochs": 2}
    write_result(folder, options, values, {"labels": "0110", "predictions": "0100"})


def views(folder):
    """A pickle with strides, a storage that two names share, and one value in many places."""
    whole, shared = torch.arange(24.0).view(4, 6), ("x",)
    for _ in range(4):
        shared = (shared, shared)
    state = {"a.weight": whole[::2, ::2], "b.weight": whole.t(), "c.weight": whole[1:3], "d": shared}
    torch.save({"state_dict": state, "args": {"e": shared}}, folder / "pytorch_model.bin")


def unchanged(load, folder):
    """Load into a model; where it is refused, the model is as it was."""
    into = model()
    before = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in into.named_parameters()}
    try:
        load(into, folder)
    except DeltawError:
        after = dict(into.named_parameters())
        assert after.keys() == before.keys()
        for name, (key, trains, value) in before.items():
            assert (id(after[name]), after[name].requires_grad) == (key, trains)
            assert torch.equal(after[name], value)


def look_at_result(folder):
    with contextlib.suppress(DeltawError):
        read_result(folder)


LOOKS = {
    loadable: lambda folder: unchanged(load_peft, folder),
    saved: lambda folder: unchanged(load_adapters, folder / "adapters.safetensors"),
    result: look_at_result,
}


def look(folder):
    """Open a folder and read everything; only our own errors may come."""
    with contextlib.suppress(DeltawError):
        run = Trajectory.open(folder, base=BASE if not (folder / "checkpoints.jsonl").exists() else None)
        run.scalars()
        for module in run.modules[:4]:
            rows, columns = run.shape(module)
            for step in run.steps[:3]:
                with contextlib.suppress(DeltawError):
                    assert run.weight(module, step).shape == (rows, columns)
                with contextlib.suppress(DeltawError):
                    assert run.update(module, step).shape == (rows, columns)
                with contextlib.suppress(DeltawError):
                    factors = run.factors(module, step)
                    assert factors is None or factors[0].shape[0] == rows
        with contextlib.suppress(DeltawError):
            run.changes("consecutive", modules=run.modules[:1], allow_nonfinite=True)


BASE = {"a.weight": torch.zeros(2, 3), "h.0.q.weight": torch.eye(2, 3), "h.0.c_attn.weight": torch.zeros(2, 6)}


def pickle_damaged(data, rng):
    """Change the pickle of an archive alone, so that the archive stays one: a bit, an instruction, a piece twice."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(found, "w") as new:
        for member in old.infolist():
            text = bytearray(old.read(member))
            if member.filename.endswith("data.pkl"):
                at = rng.randrange(2, len(text))
                if rng.random() < 0.5:
                    text[at] = rng.choice(INSTRUCTIONS) if rng.random() < 0.5 else rng.randrange(256)
                else:
                    text[at:at] = rng.choice(BOMBS) if rng.random() < 0.3 else text[at : at + rng.choice([1, 3, 20])]
            new.writestr(member.filename, bytes(text))
    return found.getvalue()


INSTRUCTIONS = (
    b"()]}.0123NRabcdehijlopqrstuKMJLGIFSTUVXBC\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x8f\x90\x91\x93\x94\x95"
)
BOMBS = [
    b"2\x86" * 80,
    b")" + b"2\x86" * 80 + b"0",
    b"(" * 5000,
    b"\x8b\xff\xff\xff\x7f",
    b"]" + b"\x85" * 5000,
    b"\x8a\xff",
]


def bytes_damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3])):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.choice([1, 8, 100]))
        elif kind == 2:
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        elif kind == 3:
            data[: min(8, len(data))] = rng.choice([0, 1, 7, 2**20, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little")[
                : len(data)
            ]
        else:
            for _ in range(rng.choice([1, 2, 8])):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def json_damaged(tree, rng):
    """Put something else in one place of a tree, or move it to another name."""
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    tree = json.loads(json.dumps(tree))
    if not isinstance(tree, (dict, list)):
        return rng.choice(WEIRD)
    walk(tree)
    if not places or rng.random() < 0.02:
        return rng.choice(WEIRD)
    node, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.1:
        del node[key]
    elif kind < 0.25 and isinstance(node, dict):
        node[str(rng.choice(WEIRD))] = node[key]
    elif kind < 0.35 and type(node[key]) is int:
        node[key] += rng.choice([-1, 1, 8])
    else:
        node[key] = rng.choice(WEIRD)
    return tree


def damaged(path, data, rng):
    """Return other bytes for a file."""
    if path.suffix == ".bin" and rng.random() < 0.7:
        return pickle_damaged(data, rng)
    if rng.random() < 0.4 or path.suffix not in (".json", ".jsonl", ".safetensors"):
        return bytes_damaged(data, rng)
    if path.suffix == ".json":
        return b"[" * 100_000 if rng.random() < 0.01 else json.dumps(json_damaged(json.loads(data), rng)).encode()
    if path.suffix == ".jsonl":
        lines = data.split(b"\n")[:-1]
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(json_damaged(json.loads(lines[at]), rng)).encode()
        return b"\n".join(lines) + b"\n"
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json_damaged(json.loads(data[8 : 8 + length]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@pytest.mark.parametrize("make", [recorded, checkpoints, sharded, adapter, distributed, pickled, views, *LOOKS])
def test_damage_ends_in_an_error_or_a_right_answer(make, tmp_path, within):
    folder = tmp_path / "run"
    folder.mkdir()
    make(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}
    see = LOOKS.get(make, look)
    see(folder)
    if see is look:
        assert Trajectory.open(folder).modules
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(make.__name__ + os.environ.get("DELTAW_FUZZ_SEED", ""))
    for turn in range(TIMES):
        path = rng.choice(list(files))
        data = damaged(path, files[path], rng)
        path.write_bytes(data)
        try:
            with within(SECONDS):
                see(folder)
        except BaseException as error:
            (tmp_path / "guilty").write_bytes(data)
            pytest.fail(f"{make.__name__}, turn {turn}, {path.name}: {type(error).__name__}: {error}; {data[:600]!r}")
        path.write_bytes(files[path])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 300e6, f"{grown / 1e6:.0f} MB were taken"


class Liar(http.server.BaseHTTPRequestHandler):
    """A web server whose answers are changed as the files of the others are, head and body."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.server.root / self.path.strip("/")
        data = path.read_bytes() if path.is_file() else b""
        lines = [f"HTTP/1.1 {200 if path.is_file() else 404} OK", "Accept-Ranges: bytes"]
        asked = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        if path.is_file() and len(asked) == 2:
            first, last = int(asked[0]), int(asked[1])
            lines = ["HTTP/1.1 206 OK", f"Content-Range: bytes {first}-{min(last, len(data) - 1)}/{len(data)}"]
            data = data[first : last + 1]
        lines += [f"Content-Length: {len(data)}", "Connection: close"]
        data = data if self.command == "GET" else b""
        rng = self.server.rng
        if rng.random() < 0.15:
            data = rng.choice([bytes_damaged(data, rng), data[:-1], data * 3, gzip.compress(bytes(10**6)), b""])
        if rng.random() < 0.15:
            at = rng.randrange(len(lines))
            more = [
                "Content-Encoding: gzip",
                "Transfer-Encoding: chunked",
                f"Content-Length: {10**15}",
                "X: " + "x" * 9000,
            ]
            lines[at] = rng.choice(
                [*more, "Content-Range: bytes 5-7/9", "HTTP/1.1 302 F", "Location: /", "\0", "HTTP/9"]
            )
        with contextlib.suppress(OSError):
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + data)
        self.close_connection = True


def test_a_lying_server_ends_in_an_error_or_a_right_answer(tmp_path, monkeypatch, within):
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(web, "BEGINS", 0.5)
    (tmp_path / "run").mkdir()
    recorded(tmp_path / "run")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    server.daemon_threads, server.root, server.rng = True, tmp_path, random.Random("lies")
    server.handle_error = lambda *args: None  # whom it lies to leaves
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for _ in range(TIMES // 10):
            with within(60), contextlib.suppress(DeltawError):
                run = Trajectory.open(f"http://127.0.0.1:{server.server_address[1]}/run")
                run.scalars()
                for module in run.modules:
                    for step in run.steps:
                        assert run.weight(module, step).shape == run.shape(module)
    finally:
        server.shutdown()
        server.server_close()


def test_the_fuzzer_sees_what_it_looks_for(tmp_path, within):
    """A reader that trusts would be caught: the plain json module fails otherwise than by an error of ours."""
    with pytest.raises(RecursionError):
        json.loads("[" * 100_000)
    with pytest.raises(TimeoutError), within(0.05):
        time.sleep(5)
    assert io.BytesIO(bytes_damaged(b"abcdefgh" * 4, random.Random(1))).read() != b"abcdefgh" * 4

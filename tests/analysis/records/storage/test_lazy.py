"""Only what is asked for is read: memory, bytes over the wire."""

import functools
import http.server
import json
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import RecordError
from deltaw.analysis import Trajectory
from deltaw.analysis.records.storage import remote

fsspec = pytest.importorskip("fsspec")


def write_run(folder, steps, layers, side=64):
    for step in range(steps):
        path = folder / f"checkpoint-{step + 1}"
        path.mkdir(parents=True)
        tensors = {f"layers.{k}.query.weight": torch.full((side, side), step + k / 100) for k in range(layers)}
        save_file(tensors, path / "model.safetensors")


MEASURE = """
import resource, sys
from deltaw.analysis import Trajectory
run = Trajectory.open(sys.argv[1])
for module in run.modules:
    for step in run.steps:
        run.weight(module, step).abs().sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(folder)], capture_output=True, text=True, check=True
    )
    return int(run.stdout.split()[-1]) * 1024


def test_memory_does_not_grow(tmp_path):
    """12 MB of checkpoints, then 150 MB, of which more checkpoints and larger models, all read: the peak stays."""
    write_run(tmp_path / "small", steps=2, layers=6, side=512)
    write_run(tmp_path / "large", steps=6, layers=24, side=512)
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).rglob("*.safetensors")) for name in ("small", "large")]
    assert sizes[1] - sizes[0] > 130e6
    small, large = peak(tmp_path / "small"), peak(tmp_path / "large")
    assert large < small + 20e6, (small, large)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that knows byte ranges, and counts what it serves."""

    served = 0
    requests: list[tuple[str, str | None]] = []  # noqa: RUF012
    know_ranges = True

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            super().do_GET() if body else super().do_HEAD()
            return
        asked = self.headers.get("Range")
        if asked and self.know_ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes" if self.know_ranges else "none")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            type(self).requests.append((self.path, asked))
            type(self).served += len(part)
            self.wfile.write(part)


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(Ranges, "served", 0)
    monkeypatch.setattr(Ranges, "requests", [])
    monkeypatch.setattr(Ranges, "know_ranges", True)
    handler = functools.partial(Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()
        thread.join()


def test_only_the_bytes_needed_come_over_http(server, tmp_path):
    write_run(tmp_path / "run", steps=3, layers=30)
    total = sum(f.stat().st_size for f in (tmp_path / "run").rglob("*.safetensors"))
    local, remote = Trajectory.open(tmp_path / "run"), Trajectory.open(f"{server}/run")
    assert remote.steps == local.steps
    assert remote.modules == local.modules
    opened = Ranges.served
    assert torch.equal(remote.weight("layers.3.query", 2), local.weight("layers.3.query", 2))
    matrix, header = 64 * 64 * 4, 8 + 30 * 120
    assert matrix <= Ranges.served - opened < matrix + header + 100
    assert remote.changes("consecutive", modules=["layers.3.query"]).delta_m.tolist() == (
        local.changes("consecutive", modules=["layers.3.query"]).delta_m.tolist()
    )
    assert Ranges.served < total / 10
    assert all(asked for path, asked in Ranges.requests if path.endswith(".safetensors"))
    single = Trajectory.open(f"{server}/run/checkpoint-2/model.safetensors")
    assert torch.equal(single.weight("layers.0.query", 2), local.weight("layers.0.query", 2))


def test_a_server_without_ranges_is_named(server, tmp_path, monkeypatch):
    write_run(tmp_path / "run", steps=1, layers=2)
    monkeypatch.setattr(Ranges, "know_ranges", False)
    with pytest.raises(RecordError, match="byte ranges"):
        Trajectory.open(f"{server}/run")


def test_nothing_there_and_no_server(server, tmp_path):
    with pytest.raises(RecordError, match="not a recorded run"):
        Trajectory.open(f"{server}/nothing")
    with pytest.raises(RecordError):
        Trajectory.open("http://127.0.0.1:9/run")


def test_in_fsspecs_memory(tmp_path):
    write_run(tmp_path / "run", steps=2, layers=2)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "run"), "/runs/mine", recursive=True)
    try:
        run = Trajectory.open("memory://runs/mine", base="memory://runs/mine/checkpoint-1")
        assert run.steps == [1, 2]
        local = Trajectory.open(tmp_path / "run")
        assert torch.equal(run.weight("layers.1.query", 2), local.weight("layers.1.query", 2))
        assert (run.spectra()["rank"] == [0, 1, 0, 1]).all()
        index = {"weight_map": {"a.weight": "../../secret.safetensors"}}
        files.pipe("/bad/model.safetensors.index.json", json.dumps(index).encode())
        with pytest.raises(RecordError, match="only files of the folder"):
            Trajectory.open("memory://bad")
    finally:
        files.rm("/runs", recursive=True)
        files.rm("/bad", recursive=True)


def test_without_fsspec_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(remote.importlib, "import_module", missing)
    with pytest.raises(RecordError, match="pip install fsspec"):
        Trajectory.open("s3://bucket/run")


def test_an_unknown_address(tmp_path):
    with pytest.raises(RecordError, match="fsspec knows"):
        Trajectory.open("nonsense://bucket/run")

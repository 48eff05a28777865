"""Web servers that lie: each ends in one error, in time and memory that follow from what was asked for."""

import gzip
import http.server
import resource
import threading
import time
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import LoRA, RecordError, inject
from deltaw.analysis import Trajectory
from deltaw.analysis.records.storage import web
from deltaw.analysis.records.storage.web import links_in
from deltaw.cli import main
from deltaw.trainers import Recorder

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

FILES = ("manifest.json", "checkpoints.jsonl", "base.safetensors", "scalars.jsonl")


class Liar(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        path = urlsplit(self.path)
        file = self.server.root / path.path.strip("/")
        if self.server.query and path.query != self.server.query:
            return self.send(403)
        if file.is_dir() and self.server.mode not in self.LISTS:
            return self.send(403)
        data, code, headers = file.read_bytes() if file.is_file() else b"", 200, {}
        if not file.is_file() and not file.is_dir():
            return self.send(404)
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            total = len(data)
            data, code = data[int(first) : int(last) + 1], 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{total}"
        lie = getattr(self, self.server.mode.replace(" ", "_"))
        if file.name in (self.server.on, *([file.name] if file.is_dir() else [])) and not (head and lie != self.huge):
            return lie(code, data, headers)
        return self.send(code, data, headers, head)

    def send(self, code, data=b"", headers=None, head=False, length=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def honest(self, code, data, headers):
        self.send(code, data, headers)

    def gzip(self, code, data, headers):
        self.send(code, gzip.compress(bytes(200_000_000), 1), headers | {"Content-Encoding": "gzip"})

    def endless(self, code, data, headers):
        self.send_response(code)
        for name, value in (headers | {"Transfer-Encoding": "chunked", "Content-Type": "text/html"}).items():
            self.send_header(name, value)
        self.end_headers()
        part = b"x" * 1_000_000
        try:
            while True:
                self.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
        except OSError:
            self.close_connection = True

    def slow(self, code, data, headers):
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.drip(data)

    def slow_headers(self, code, data, headers):
        self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 5000)

    def drip(self, data):
        try:
            for one in data:
                self.wfile.write(bytes([one]))
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            self.close_connection = True

    def silent(self, code, data, headers):
        time.sleep(5)
        self.close_connection = True

    def less(self, code, data, headers):
        headers = {name: value for name, value in headers.items() if name != "Content-Range"}
        self.send(code, data[:-1], headers | {"Content-Range": f"bytes 0-{len(data) - 2}/{len(data)}"})

    def more(self, code, data, headers):
        self.send(code, data + b"x" * 1000, headers)

    def cut(self, code, data, headers):
        self.send(code, data[:-1], headers, length=len(data))
        self.close_connection = True

    def another_range(self, code, data, headers):
        self.send(206, data, {"Content-Range": f"bytes 7-{len(data) + 6}/10000"})

    def no_range(self, code, data, headers):
        self.send(206, data, {"Content-Range": "bytes"})

    def no_ranges(self, code, data, headers):
        self.send(200, data + bytes(100))

    def huge(self, code, data, headers):
        self.send(code, data, headers, head=self.command == "HEAD", length=10**15 if self.command == "HEAD" else None)

    def error(self, code, data, headers):
        self.send(500, b"x" * 10_000)

    def round(self, code, data, headers):
        self.send(302, b"", {"Location": self.path})

    def to_a_file(self, code, data, headers):
        self.send(302, b"", {"Location": "file:///etc/passwd"})

    LISTS = ("endless", "gzip", "honest")


LIES = [
    *("gzip", "endless", "slow", "slow headers", "silent", "less", "more", "cut", "another range", "no range"),
    *("no ranges", "huge", "error", "round", "to a file"),
]


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "BEGINS", 1.0)
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(3, 2)}), LoRA(rank=1), targets=["query"])
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(2):
            recorder.step(step, loss=1.0)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(parameter.requires_grad * torch.randn_like(parameter))
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    found.daemon_threads = True
    found.root, found.mode, found.on, found.query = tmp_path, "honest", "", ""
    found.url = f"http://127.0.0.1:{found.server_address[1]}/run"
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def everything(address):
    run = Trajectory.open(address)
    run.scalars()
    return [run.update(name, step) for name in run.modules for step in run.steps]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("on", FILES)
def test_a_lie_is_one_error(lie, on, server, within):
    everything(server.url)
    server.mode, server.on = lie, on
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with within(20), pytest.raises(RecordError) as told:
        everything(server.url)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 800
    assert time.monotonic() - begun < 8
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < (250 if lie == "gzip" else 60)  # the server, which packs 200 MB, is in this process


@pytest.mark.parametrize("mode", ["endless", "gzip"])
def test_the_page_of_a_folder_has_a_limit(mode, server, within):
    (server.root / "empty").mkdir()
    server.mode, server.on = mode, "empty"
    with within(20), pytest.raises(RecordError) as told:
        Trajectory.open(server.url.replace("/run", "/empty"))
    assert "limit" in str(told.value) or "more than" in str(told.value) or "compressed" in str(told.value)


def test_an_address_with_a_signature(server, capsys):
    server.query = "X-Amz-Signature=abc%2Fdef&download=true"
    assert len(everything(f"{server.url}?{server.query}")) == 2
    (server.root / "one").mkdir()
    model = server.root / "one" / "model.safetensors"
    save_file({"query.weight": torch.ones(2, 3)}, model)
    for query, code in ((server.query, 0), ("X-Amz-Signature=wrong", 1)):
        for where in (server.url, server.url.replace("/run", "/one/model.safetensors")):
            assert main(["inspect", f"{where}?{query}", "--json"]) == code
            shown = capsys.readouterr()
            assert "Signature" not in shown.out + shown.err
            assert "abc" not in shown.out + shown.err


def test_names_of_a_page_stay_in_its_folder():
    page = """
        <a href="..">up</a><a href="a.json">a</a><A class="x" HREF='b/'>b</A><a href="/run/c.bin?x=1">c</a>
        <a href="http://host/run/d">d</a><a href="https://else/run/e">e</a><a href="/other/f">f</a><a href="g/h">g</a>
        <a href="i%2Fj">i</a><a href="">k</a><a href="/run/">l</a><a href="http://[">m</a>
    """
    assert links_in(page, "http://host/run") == ["a.json", "b/", "c.bin", "d"]
    begun = time.monotonic()
    for part in ("<a ", "<a href=", "<a" + " " * 100, '<a href="x', "href "):
        links_in(part * (1_000_000 // len(part)), "http://host/run")
    assert time.monotonic() - begun < 20

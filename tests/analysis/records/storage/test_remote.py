"""Runs behind s3://, hf:// and https:// addresses, against servers of this machine that count the bytes they give."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import METHODS, RecordError, inject
from deltaw.analysis import Trajectory
from deltaw.analysis.records.run_folder.format import INDEX, MANIFEST, checkpoint_path
from deltaw.analysis.records.storage import remote
from deltaw.analysis.records.storage.files import without_secrets
from deltaw.cli import main
from deltaw.trainers import Recorder

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

LAYERS, SIDE = 30, 128
MATRIX, HEADER = SIDE * SIDE * 4, LAYERS * 100 + 100


class Server(http.server.BaseHTTPRequestHandler):
    """A server over a folder, which knows byte ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        url = urlsplit(self.path)
        self.answer(unquote(url.path).strip("/"), dict(parse_qsl(url.query, keep_blank_values=True)))

    def do_HEAD(self):
        self.do_GET()

    def send(self, code, data=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def file(self, path):
        data, asked = path.read_bytes(), self.headers.get("Range")
        headers = {"Accept_Ranges": "bytes", "ETag": '"1"', "Last_Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        total = len(data)
        if asked:
            first, last = (int(end) for end in asked.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{first + len(data) - 1}/{total}"
        if self.command == "GET" and path.suffix == ".safetensors":
            self.server.served += len(data)
        self.send(206 if asked else 200, data, **headers)


class S3(Server):
    """GET with a range, HEAD, ListObjectsV2."""

    def answer(self, path, query):
        bucket, _, key = path.partition("/")
        folder = self.server.root / bucket
        if bucket == "locked":
            self.error(403, "AccessDenied")
        elif not folder.is_dir():
            self.error(404, "NoSuchBucket")
        elif "list-type" in query:
            self.listing(folder, query.get("prefix", ""))
        elif (folder / key).is_file():
            self.file(folder / key)
        else:
            self.error(404, "NoSuchKey")

    def listing(self, folder, prefix):
        found, folders = "", set()
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(folder).as_posix()
            if path.is_file() and key.startswith(prefix):
                head, slash, _ = key.removeprefix(prefix).partition("/")
                if slash:
                    folders.add(prefix + head + slash)
                else:
                    size = f"<Size>{path.stat().st_size}</Size>"
                    found += f"<Contents><Key>{escape(key)}</Key>{size}<ETag>1</ETag></Contents>"
        found += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        found = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self.send(200, found.encode(), Content_Type="application/xml")

    def error(self, code, name):
        data = f"<Error><Code>{name}</Code><Message>{name}</Message></Error>" if self.command == "GET" else ""
        self.send(code, data.encode(), Content_Type="application/xml")


class Hub(Server):
    """What HfFileSystem asks of the Hub: a repository, its tree, its files by way of another address."""

    def answer(self, path, query):
        parts = path.split("/")
        if parts[0] == "content":
            self.file(self.server.root.joinpath(*parts[1:]))
        elif parts[:2] == ["api", "models"]:
            self.repository(self.server.root.joinpath(*parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.send(302, Location="/content/" + "/".join(parts[:2] + parts[4:]))
        else:
            self.error(404, "EntryNotFound")

    def repository(self, repository, parts):
        folder = repository.joinpath(*parts[2:])
        if repository.parent.name == "locked":
            self.error(403, "GatedRepo")
        elif not repository.is_dir():
            self.error(401, "RepoNotFound")
        elif parts[1:] and parts[1] != "main":
            self.error(404, "RevisionNotFound")
        elif parts[:1] == ["tree"] and folder.is_dir():
            self.json([self.entry(repository, path) for path in sorted(folder.iterdir())])
        elif parts[:1] == ["tree"]:
            self.error(404, "EntryNotFound")
        else:
            self.json({"id": repository.name, "sha": "0" * 40, "siblings": []})

    def entry(self, repository, path):
        kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
        return {"type": kind, "path": path.relative_to(repository).as_posix(), "oid": "0" * 40, "size": size}

    def json(self, value):
        self.send(200, json.dumps(value).encode(), Content_Type="application/json")

    def error(self, code, name):
        self.send(code, b"{}", X_Error_Code=name, X_Error_Message=name)


class Web(Server):
    """A page with links for a folder; where there is a password, only to those who know it."""

    def answer(self, path, query):
        password, given = self.server.password, self.headers.get("Authorization", "")
        known = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
        found = self.server.root / path
        if password and given != known:
            self.send(401)
        elif found.is_dir() and self.server.unlisted:
            self.send(self.server.unlisted)
        elif found.is_dir():
            links = (f'<a href="{p.name}{"/" * p.is_dir()}">x</a>' for p in sorted(found.iterdir()))
            self.send(200, "\n".join(links).encode(), Content_Type="text/html")
        elif found.is_file():
            self.file(found)
        else:
            self.send(404)


def serve(handler, root, password=""):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.root, server.served, server.password, server.unlisted = root, 0, password, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def environment(kind, url):
    """What a user sets to go to another server than the public one."""
    if kind == "s3":
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "1"}
    return {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}


@pytest.fixture(params=["s3", "hf", "http"])
def server(request, tmp_path, monkeypatch):
    """A server of a kind, and what a run's address starts with."""
    kind = request.param
    if kind == "s3":
        pytest.importorskip("s3fs", reason="s3:// is read by s3fs, which is not installed")
    found = serve({"s3": S3, "hf": Hub, "http": Web}[kind], tmp_path)
    found.kind, found.start = kind, f"{found.url}/" if kind == "http" else f"{kind}://"
    if kind == "hf":
        hub = pytest.importorskip("huggingface_hub")
        pytest.importorskip("huggingface_hub.constants")  # which huggingface_hub itself loads only when it is used
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": found.url, "token": False})
    for name, value in environment(kind, found.url).items():
        monkeypatch.setenv(name, value)
    if kind == "s3":
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": found.url})  # else one is kept from test to test
    yield found
    found.shutdown()
    found.server_close()


def write_run(folder, steps=3):
    for step in range(1, steps + 1):
        path = folder / f"checkpoint-{step}"
        path.mkdir(parents=True, exist_ok=True)
        tensors = {f"layers.{k}.query.weight": torch.full((SIDE, SIDE), step + k / 100) for k in range(LAYERS)}
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text('{"model_type": "bert"}')


def test_only_the_ranges_needed_are_read(server, tmp_path):
    write_run(tmp_path / "org" / "run")
    total = 3 * LAYERS * MATRIX
    local, remote = Trajectory.open(tmp_path / "org" / "run"), Trajectory.open(f"{server.start}org/run")
    assert (remote.steps, remote.modules, remote.name) == ([1, 2, 3], local.modules, "run")
    assert 0 < server.served < 2 * HEADER
    opened = server.served
    assert torch.equal(remote.weight("layers.3.query", 2), local.weight("layers.3.query", 2))
    assert MATRIX < server.served - opened < MATRIX + HEADER
    assert server.served < total / 50
    file = Trajectory.open(f"{server.start}org/run/checkpoint-2/model.safetensors")
    assert torch.equal(file.weight("layers.0.query", 2), local.weight("layers.0.query", 2))
    based = Trajectory.open(f"{server.start}org/run", base=f"{server.start}org/run/checkpoint-1")
    assert based.update("layers.0.query", 3).eq(2).all()


def test_a_run_that_has_grown(server, tmp_path):
    write_run(tmp_path / "org" / "run", steps=1)
    assert Trajectory.open(f"{server.start}org/run").steps == [1]
    write_run(tmp_path / "org" / "run", steps=2)
    assert Trajectory.open(f"{server.start}org/run").steps == [1, 2]


def test_a_peft_folder(server, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(nn.Sequential(nn.Linear(12, 8)), peft.LoraConfig(r=2, target_modules=["0"]))
    nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    adapted.save_pretrained(tmp_path / "org" / "adapter")
    remote = Trajectory.open(f"{server.start}org/adapter")
    assert remote.method == "lora"
    assert torch.equal(remote.update("0", 0), Trajectory.open(tmp_path / "org" / "adapter").update("0", 0))


def record(folder, method="ft", steps=3):
    """Record a run of ``LAYERS`` matrices."""
    torch.manual_seed(0)
    model = nn.ModuleDict({f"layer{k}": nn.ModuleDict({"query": nn.Linear(SIDE, SIDE)}) for k in range(LAYERS)})
    if method != "ft":
        model = inject(model, METHODS[method](rank=4), targets=["*.query"], seed=0)
    with Recorder(model, folder, modules=["*.query"]) as recorder:
        for step in range(steps):
            recorder.step(step, loss=1.0 / (step + 1))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return Trajectory.open(folder)


def weights_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", ["ft", "lora", "dora", "bora", "sbora-fa", "vera"])
def test_a_run_of_deltaw_has_the_same_bits(server, tmp_path, method):
    local = record(tmp_path / "org" / "own", method)
    remote = Trajectory.open(f"{server.start}org/own")
    assert (remote.steps, remote.modules, remote.method) == (local.steps, local.modules, local.method)
    assert (remote.manifest, remote.name) == (local.manifest, "own")
    assert remote.base_from == f"{server.start}org/own/base.safetensors"
    assert remote.scalars().equals(local.scalars())
    for module in local.modules[::20]:
        assert torch.equal(remote.base(module), local.base(module))
        for step in local.steps:
            assert same(remote.state(module, step), local.state(module, step))
            assert torch.equal(remote.weight(module, step), local.weight(module, step))
            assert torch.equal(remote.update(module, step), local.update(module, step))
    assert remote.changes("base", modules=["layer3.*"]).equals(local.changes("base", modules=["layer3.*"]))
    assert remote.spectra([2], modules=["layer3.*"]).equals(local.spectra([2], modules=["layer3.*"]))


def test_of_a_run_of_deltaw_only_the_ranges_needed_are_read(server, tmp_path):
    record(tmp_path / "org" / "own")
    remote = Trajectory.open(f"{server.start}org/own")
    assert server.served == 0
    remote.weight("layer3.query", 2)
    assert MATRIX < server.served < MATRIX + HEADER
    before = server.served
    remote.weight("layer4.query", 2)  # the header is known by now
    assert server.served == before + MATRIX
    before = server.served
    remote.changes("base", modules=["layer3.*"])  # W₀ and three steps; the headers of three files are new
    assert 4 * MATRIX < server.served - before < 4 * MATRIX + 3 * HEADER


def test_of_a_method_the_base_is_fetched_once(server, tmp_path):
    local = record(tmp_path / "org" / "own", "lora", steps=6)
    remote = Trajectory.open(f"{server.start}org/own")
    found = remote.changes(modules=["layer3.*"])
    headers = 7 * 2 * HEADER
    assert MATRIX < server.served < MATRIX + 6 * 2 * 4 * SIDE * 4 + headers
    assert found.equals(local.changes(modules=["layer3.*"]))
    remote.base("layer3.query").zero_()  # what is kept is not what was handed out
    assert torch.equal(remote.base("layer3.query"), local.base("layer3.query"))


def test_a_run_of_deltaw_is_verified_in_one_pass(server, tmp_path):
    record(tmp_path / "org" / "own", "lora")
    remote = Trajectory.open(f"{server.start}org/own")
    assert remote.verify() == 4
    assert server.served == weights_bytes(tmp_path / "org" / "own")


@pytest.mark.parametrize("part", [1, 0])
def test_a_cut_or_missing_file_of_a_run_is_one_line(server, tmp_path, part, capsys):
    record(tmp_path / "org" / "own", "lora")
    file = checkpoint_path(tmp_path / "org" / "own", 1)
    if part:
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    address = f"{server.start}org/own"
    assert main(["inspect", address]) == 1
    shown = capsys.readouterr().err
    assert f"{address}/checkpoints/0000000001.safetensors: {'has' if part else 'is missing'}" in shown
    assert shown.count("\n") == 1


def test_a_changed_file_of_a_run_is_found_by_its_checksum(server, tmp_path, capsys):
    record(tmp_path / "org" / "own", "lora")
    file = checkpoint_path(tmp_path / "org" / "own", 1)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    address = f"{server.start}org/own"
    assert main(["inspect", address, "--verify"]) == 1
    shown = capsys.readouterr().err
    assert f"{address}/checkpoints/0000000001.safetensors: has checksum" in shown
    assert shown.count("\n") == 1


def test_a_file_that_is_cut_after_the_run_was_opened(server, tmp_path):
    record(tmp_path / "org" / "own")
    remote = Trajectory.open(f"{server.start}org/own")
    file = checkpoint_path(tmp_path / "org" / "own", 1)
    file.write_bytes(file.read_bytes()[: MATRIX // 2])
    with pytest.raises(RecordError, match=r"org/own/checkpoints/0000000001\.safetensors: ") as told:
        remote.weight(remote.modules[-1], 1)
    assert "\n" not in str(told.value)


def test_a_damaged_manifest_or_index(server, tmp_path):
    record(tmp_path / "org" / "own", "lora", steps=1)
    index = tmp_path / "org" / "own" / INDEX
    lines = index.read_text()
    index.write_text(lines + '{"step": 1, "bytes"')  # a last line that was cut off announces nothing
    assert Trajectory.open(f"{server.start}org/own").steps == [0]
    index.write_text(lines + lines.replace('"bytes": ', '"bytes": 1'))  # an equal line would count once
    with pytest.raises(RecordError, match=f"org/own/{INDEX}: line 2 has step 0 after step 0"):
        Trajectory.open(f"{server.start}org/own")
    (tmp_path / "org" / "own" / MANIFEST).write_text("{")
    with pytest.raises(RecordError, match=f"org/own/{MANIFEST}: is damaged, it is not JSON"):
        Trajectory.open(f"{server.start}org/own")
    (tmp_path / "org" / "own" / MANIFEST).unlink()
    with pytest.raises(RecordError, match="org/own: is not a recorded run"):
        Trajectory.open(f"{server.start}org/own")


def test_the_verbs_on_a_run_of_deltaw(server, tmp_path, capsys):
    folder, address = tmp_path / "org" / "own", f"{server.start}org/own"
    local = record(folder, "dora")
    model = tmp_path / "model.safetensors"
    save_file({f"{name}.weight": local.base(name) for name in local.modules}, model)
    for verb, *options in (["inspect", "--verify"], ["inspect", "--base", str(model)], ["changes"], ["rank"]):
        shown = []
        for where in (str(folder), address):
            assert main([verb, where, *options, "--modules", "layer3.*", "--json"]) == 0
            shown.append(capsys.readouterr().out.replace(address, str(folder)))
        assert shown[0] == shown[1]


@pytest.mark.parametrize("unlisted", [403, 404])
def test_a_run_of_deltaw_needs_no_list(tmp_path, unlisted):
    local = record(tmp_path / "own", "lora")
    (tmp_path / "empty").mkdir()
    server = serve(Web, tmp_path)
    server.unlisted = unlisted
    try:
        remote = Trajectory.open(f"{server.url}/own")
        assert remote.steps == local.steps
        assert torch.equal(remote.weight("layer3.query", 2), local.weight("layer3.query", 2))
        if unlisted == 404:  # one step's folder is looked at by the usual names as well
            write_run(tmp_path / "org", steps=1)
            (step,) = Trajectory.open(f"{server.url}/org/checkpoint-1").steps
            assert step == 1
        why = "empty: cannot be listed .*403" if unlisted == 403 else "empty: is not a recorded run"
        with pytest.raises(RecordError, match=why):
            Trajectory.open(f"{server.url}/empty")
        checkpoint_path(tmp_path / "own", 1).unlink()
        with pytest.raises(RecordError, match=r"0000000001\.safetensors: is missing, though the record announces it"):
            Trajectory.open(f"{server.url}/own")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "what", ["none/run", "locked/run", "org/nothing", "org/run/checkpoint-9", "org/run/checkpoint-1/none.safetensors"]
)
def test_what_is_not_there_is_one_line_that_names_it(server, tmp_path, what, capsys):
    write_run(tmp_path / "org" / "run", steps=1)
    address = f"{server.start}{what}"
    assert main(["inspect", address]) == 1
    shown = capsys.readouterr().err
    assert address in shown
    assert shown.count("\n") == 1
    if server.kind != "http" and not what.endswith(".safetensors"):
        assert "there is no such folder" in shown or "AccessDenied" in shown


def test_a_refused_connection_ends_soon(server, tmp_path, monkeypatch):
    started = time.monotonic()
    nowhere = "http://127.0.0.1:9"
    start = f"{nowhere}/" if server.kind == "http" else server.start
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": nowhere, "token": False})
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": nowhere})
    with pytest.raises(RecordError, match="org/run: cannot be") as told:
        Trajectory.open(f"{start}org/run")
    assert "\n" not in str(told.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["s3", "hf"])
def test_inspect_at_the_command_line(kind, tmp_path):
    pytest.importorskip({"s3": "s3fs", "hf": "huggingface_hub"}[kind], reason="reads the address, is not installed")
    write_run(tmp_path / "org" / "run", steps=2)
    server = serve({"s3": S3, "hf": Hub}[kind], tmp_path)
    try:
        found = subprocess.run(
            [sys.executable, "-m", "deltaw.cli", "inspect", f"{kind}://org/run", "--json", "--modules", "*.3.query"],
            env=os.environ | environment(kind, server.url) | {"PYTHONWARNINGS": "default"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (found.returncode, found.stderr) == (0, "")
    told = json.loads(found.stdout)
    assert (told["path"], told["steps"], told["findings"]) == (f"{kind}://org/run", [1, 2], [])
    assert server.served < 8 * (MATRIX + HEADER)


def test_a_password_in_an_address_opens_it_and_is_never_shown(tmp_path, capsys):
    write_run(tmp_path / "run", steps=1)
    server = serve(Web, tmp_path, password="pass%word")
    address = server.url.replace("://", "://me:pass%25word@")
    wrong = server.url.replace("://", "://me:wrong%25word@")
    try:
        run = Trajectory.open(f"{address}/run", base=f"{address}/run/checkpoint-1")
        assert run.weight("layers.0.query", 1).eq(1).all()
        assert "word" not in f"{run!r} {run.path} {run.base_from}"
        assert main(["inspect", f"{address}/run", "--json"]) == 0
        assert main(["inspect", f"{address}/nothing"]) == 1
        assert main(["inspect", f"{wrong}/run"]) == 1
        assert main(["inspect", f"{wrong}/run/model.safetensors"]) == 1
        assert main(["inspect", "http://me:pass%25word@127.0.0.1:9/run"]) == 1
        assert main(["inspect", "nonsense://me:pass%25word@host/run"]) == 1
        shown = capsys.readouterr()
        assert "word" not in shown.out + shown.err
        assert shown.err.count("\n") == 5
        pair = Trajectory.from_pair(*2 * [f"{address}/run/checkpoint-1/model.safetensors"])
        assert "word" not in repr(pair)
    finally:
        server.shutdown()
        server.server_close()


def test_secrets_are_left_out_of_any_text():
    assert without_secrets("https://me:p@ss@host/run?key=1 and s3://a/b") == "https://***@host/run?*** and s3://a/b"
    assert without_secrets("hf://org/model@main/file") == "hf://org/model@main/file"
    assert without_secrets(str(Path("runs") / "a@b")) == str(Path("runs") / "a@b")


@pytest.mark.parametrize(("address", "package"), [("s3://b/run", "s3fs"), ("hf://o/run", "huggingface_hub")])
def test_a_missing_package_is_named(address, package, monkeypatch):
    def missing(url):
        raise ImportError(f"Install {package} to access it")

    core = type("core", (), {"url_to_fs": staticmethod(missing)})
    monkeypatch.setattr(remote.importlib, "import_module", lambda name: core)
    with pytest.raises(RecordError, match=rf"{address}: cannot be read .*pip install fsspec {package}$"):
        Trajectory.open(address)

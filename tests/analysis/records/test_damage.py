"""Damaged files, twelve thousand where CI is set: each ends in a clear error or in a matrix of the announced shape.

Nothing else may happen: no other exception, no hang, no gigabyte taken, no code run. Bytes are flipped, cut, put in and
zeroed; headers, manifests, indexes and configurations are made to lie.
"""

import contextlib
import io
import json
import os
import random
import resource
import signal
import time
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DeltawError, LoRA, inject
from deltaw.analysis import Trajectory
from deltaw.trainers import Recorder

TIMES = 2000 if os.environ.get("CI") else 400  # damaged files a format, of which there are six
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


@contextlib.contextmanager
def within(seconds):
    def late(number, frame):
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [recorded, checkpoints, sharded, adapter, distributed, pickled])
def test_damage_ends_in_an_error_or_a_right_answer(make, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    make(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}
    look(folder)
    assert Trajectory.open(folder).modules
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(make.__name__ + os.environ.get("DELTAW_FUZZ_SEED", ""))
    for turn in range(TIMES):
        path = rng.choice(list(files))
        data = damaged(path, files[path], rng)
        path.write_bytes(data)
        try:
            with within(SECONDS):
                look(folder)
        except BaseException as error:
            (tmp_path / "guilty").write_bytes(data)
            pytest.fail(f"{make.__name__}, turn {turn}, {path.name}: {type(error).__name__}: {error}; {data[:600]!r}")
        path.write_bytes(files[path])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 300e6, f"{grown / 1e6:.0f} MB were taken"


def test_the_fuzzer_sees_what_it_looks_for(tmp_path):
    """A reader that trusts would be caught: the plain json module fails otherwise than by an error of ours."""
    with pytest.raises(RecursionError):
        json.loads("[" * 100_000)
    with pytest.raises(TimeoutError), within(0.05):
        time.sleep(5)
    assert io.BytesIO(bytes_damaged(b"abcdefgh" * 4, random.Random(1))).read() != b"abcdefgh" * 4

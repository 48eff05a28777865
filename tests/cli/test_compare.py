"""`deltaw compare` of two: one screen, whatever the two are, and nothing on it that is not known."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from deltaw.analysis.runs import compare, differing
from deltaw.cli import main

NAMES = [f"model.layers.{i}.self_attn.{kind}" for i in range(6) for kind in ("q_proj", "v_proj")]


@pytest.fixture
def screen(monkeypatch, capsys):
    def shown(*arguments, columns=80, lines=24):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(lines))
        assert main([*map(str, arguments), "-q"]) == 0
        return capsys.readouterr().out.splitlines()

    return shown


def adapter(folder, rank, targets, seed=0, names=NAMES, **more):
    torch.manual_seed(seed)
    folder.mkdir()
    tensors = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, 16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(12, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
    return folder


@pytest.fixture
def two(tmp_path):
    a = adapter(tmp_path / "a", 2, ["q_proj", "v_proj"], layers_pattern=None, use_dora=False)
    more = [f"model.layers.{i}.mlp.{kind}" for i in range(6) for kind in ("up_proj", "down_proj")]
    config = {"lora_dropout": 0.1, "base_model_name_or_path": "someone/model"}
    b = adapter(tmp_path / "b", 4, ["v_proj", "q_proj", "up_proj", "down_proj"], 1, NAMES + more, **config)
    return a, b


@pytest.fixture
def models(tmp_path):
    torch.manual_seed(0)
    base = {f"{name}.weight": torch.randn(12, 16) for name in NAMES}
    found = []
    for place, step in (("base", 0.0), ("first", 0.1), ("second", 0.1)):
        (tmp_path / place).mkdir()
        moved = {name: weight + step * torch.randn_like(weight) for name, weight in base.items()}
        save_file(moved, tmp_path / place / "model.safetensors")
        found.append(tmp_path / place)
    return found


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (100, 40), (160, 50)])
def test_one_screen(two, models, screen, columns, lines):
    base, first, second = models
    for given in (two, (*two, "--base", base), (two[1], first, "--base", base), (first, second, "--base", base)):
        out = screen("compare", *given, columns=columns, lines=lines)
        assert len(out) < lines
        assert max(map(len, out)) <= columns
        assert sum("self_attn" in line for line in out) == 10


def test_a_wide_terminal_shows_chance_beside_each(two, models, screen):
    wide = "\n".join(screen("compare", *two, "--base", models[0], columns=200, lines=50))
    assert re.search(r"0\.\d+ \(±0\.07\)", wide)
    assert re.search(r"\d+° \(\d+°\)", wide)
    narrow = screen("compare", *two, "--base", models[0])
    assert any(line.startswith("by chance: cosine ±0.072, overlap 0.12, angle") for line in narrow)


def test_what_differs_is_said_in_words(two, screen):
    out = " ".join(" ".join(screen("compare", *two)).split())
    assert out.startswith("a against b: rank 2 against 4; alpha 4 against 8; targets q_proj, v_proj against ")
    assert "dropout 0.1 only in b" in out
    assert "only in b: 12 matrices: down, up of layers 0 to 5" in out
    assert not re.search(r"None|False|peft\.|\[|step 0", out)


def test_the_order_in_which_peft_writes_a_set_is_no_difference(tmp_path):
    a = adapter(tmp_path / "a", 2, ["q_proj", "v_proj"])
    b = adapter(tmp_path / "b", 2, ["v_proj", "q_proj"])
    assert compare(a, b).attrs["settings"] == []
    assert differing({"bias": "none", "off": False}, {"eva": None}) == []


def test_without_a_base_nothing_stands_for_what_is_not_known(two, models, screen):
    out = screen("compare", *two)
    assert not any("nan" in line or "–" in line for line in out)
    assert "ΔM and ΔD need the weights before training: --base someone/model" in out
    _, first, second = models
    out = screen("compare", first, second)
    assert not any("nan" in line or "–" in line or "cosine " in line for line in out[:-5])
    turned = [float(line.split()[3].strip(",")) for line in out if "self_attn" in line]
    assert turned == sorted(turned, reverse=True)


def test_the_same_is_said_to_be_the_same(two, models, screen):
    for path in (two[0], models[1]):
        out = screen("compare", path, path)
        assert "none of the 12 matrices in both differs" in out[0]
        assert len(out) <= 4


def test_all_and_two_steps_and_two_of_one_name(two, tmp_path, screen):
    out = screen("compare", *two, "--all")
    assert sum("self_attn" in line for line in out) == 12
    (tmp_path / "x").mkdir()
    other = adapter(tmp_path / "x" / "a", 3, ["q_proj", "v_proj"], 5)
    assert f"{two[0]} against {other}: rank 2 against 3" in " ".join(" ".join(screen("compare", two[0], other)).split())


def test_strangers_texts_are_data(tmp_path, screen):
    names = [f"evil\x1b[2J{i}.que\nry" for i in range(3)]
    paths = [
        adapter(tmp_path / f"e\x1b[31m{n}", n, ["x"], n, names, base_model_name_or_path="\x1b]0;a\x07b") for n in (2, 3)
    ]
    out = screen("compare", *paths)
    assert all(line.isprintable() for line in out)
    assert max(map(len, out)) <= 80

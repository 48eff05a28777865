"""The file itself: one safe page, numbers that come back, and the plotting library as it was published."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import deltaw
from deltaw.adapters.errors import OptionError
from deltaw.analysis.report.pack import Column, drawn, exact, pack, precision, restored, whole
from deltaw.analysis.report.page import ASSETS, LIBRARY, LIBRARY_SHA256, SCRIPTS


def test_the_plotting_library_is_the_published_one():
    data = (ASSETS / LIBRARY).read_bytes()
    assert hashlib.sha256(data).hexdigest() == LIBRARY_SHA256
    assert LIBRARY_SHA256 in (ASSETS / "library" / "README.md").read_text(encoding="utf-8")
    assert {"LICENSE", "NOTICE", "LICENSE-d3", "LICENSE-zrender"} <= {
        file.name for file in (ASSETS / "library").iterdir()
    }


def test_every_script_is_joined_and_every_asset_is_in_the_wheel():
    root = Path(str(ASSETS))
    scripts = {path.relative_to(root / "script").as_posix() for path in (root / "script").rglob("*.js")}
    assert scripts == set(SCRIPTS)
    settings = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["deltaw.analysis.report"]
    packed = {path for pattern in patterns for path in root.parent.glob(pattern) if path.is_file()}
    assert packed == {path for path in root.rglob("*") if path.is_file()}


def test_no_script_makes_html_of_text():
    """Texts of strangers become text nodes: none of our scripts parses HTML, evaluates code or asks for anything."""
    for name in SCRIPTS:
        text = (ASSETS / "script" / name).read_text(encoding="utf-8")
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttpRequest"
        assert not re.search(forbidden, text), name
        assert "</script" not in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_stand_out_from_what_they_stand_on(theme):
    """4.5 to 1, as the Web Content Accessibility Guidelines want of small texts."""
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    block = style.split(':root[data-theme="dark"]')[theme == "dark"].partition("}")[0]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))

    def luminance(color):
        parts = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    pairs = [(text, ground) for text in ("ink", "soft", "faint", "accent") for ground in ("paper", "card")]
    pairs += [
        ("accent", "tint"),
        ("warn", "warn-tint"),
        ("bad", "bad-tint"),
        ("good", "good-tint"),
        ("soft", "warn-tint"),
    ]
    for pair in pairs:
        low, high = sorted(luminance(colors[name]) for name in pair)
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


@pytest.fixture(scope="module")
def path(runs, tmp_path_factory):
    return deltaw.report(runs, tmp_path_factory.mktemp("page") / "report.html", check=False)


def test_the_policy_allows_nothing_from_elsewhere(path):
    text = path.read_text(encoding="utf-8").replace((ASSETS / LIBRARY).read_text(encoding="utf-8"), "")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src &#x27;none&#x27;" in policy
    assert "connect-src &#x27;none&#x27;" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=", text)
    assert path.stat().st_size < 5e6


def test_the_content_is_plain_json_without_folders_of_the_author(path, runs):
    text = path.read_text(encoding="utf-8")
    about = json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', text)[1])
    assert [run["name"] for run in about["runs"]] == ["ft", "lora", "bora"]
    assert str(runs[0].parent) not in text
    assert [module["label"] for module in about["modules"]][:2] == ["0 · query", "0 · value"]


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2, 3, 4)])
def test_packed_numbers_come_back(shape):
    generator = np.random.default_rng(0)
    numbers = np.exp(generator.normal(size=shape) * 8)
    numbers.flat[:1] = np.nan
    column = drawn(numbers)
    np.testing.assert_allclose(restored(column), numbers, rtol=precision(column))
    assert precision(column) < 1e-3
    np.testing.assert_array_equal(restored(exact(numbers)), numbers.astype(np.float32).astype(float))
    table, text = pack({"a": column, "b": whole(np.arange(300)), "c": Column(np.zeros(3, np.uint8))})
    assert [entry["type"] for entry in table] == ["u16", "u16", "u8"]
    assert [entry["start"] for entry in table] == [0, 2 * numbers.size, 2 * numbers.size + 600]
    assert text.isascii()


def test_wrong_calls(runs, tmp_path):
    for wrong in ({"path": tmp_path / "report.pdf"}, {"path": 3}, {"details": 0}, {"details": "some"}, {"runs": []}):
        with pytest.raises(OptionError):
            deltaw.report(**({"runs": runs[0], "path": tmp_path / "r.html", "check": False} | wrong))
    assert not list(tmp_path.iterdir())

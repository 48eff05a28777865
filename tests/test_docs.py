"""The pages say what is so: snippets run, commands exist, tables are complete, links lead somewhere."""

import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import METHODS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATE = runpy.run_path(str(ROOT / "docs" / "generate.py"))
CONTEXTS = {context.command_path: context for context in GENERATE["commands"]()}
VERBS = [path for path, context in CONTEXTS.items() if not isinstance(context.command, click.Group)]

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def calls(page: Path) -> list[list[str]]:
    """Every call of deltaw that a page shows, as words: at a prompt, in inline code, in the examples of the help."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^\$ (deltaw .+)$", text, re.MULTILINE) + re.findall(r"`(deltaw [^`\n]+)`", text)
    for example in re.findall(r"Example:\n((?:.+\n)+)", text):
        found += re.findall(r"^ *(deltaw .+)$", example, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def command_of(words: list[str]) -> tuple[click.Context, list[str]]:
    """Return the context of the command that the words call, and the words after its name."""
    path = "deltaw"
    rest = words[1:]
    while rest and isinstance(CONTEXTS[path].command, click.Group) and not rest[0].startswith("-"):
        path = f"{path} {rest.pop(0)}"
        assert path in CONTEXTS, f"there is no command {path!r}: {shlex.join(words)}"
    return CONTEXTS[path], rest


def options_of(context: click.Context) -> set[str]:
    return {
        name
        for parameter in context.command.get_params(context)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def save_adapter_and_base() -> None:
    """What a reader of the README has trained with PEFT, and on what."""
    name, generator = "model.layers.0.self_attn.q_proj", torch.Generator().manual_seed(0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    factors = {
        f"base_model.model.{name}.lora_{part}.weight": torch.randn(shape, generator=generator)
        for part, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    for folder in ("my-adapter", "my-base"):
        Path(folder).mkdir()
    save_file(factors, "my-adapter/adapter_model.safetensors")
    Path("my-adapter/adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({f"{name}.weight": torch.randn(8, 8, generator=generator)}, "my-base/model.safetensors")


def test_the_readmes_snippets_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_adapter_and_base()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, python block {number}", "exec"), namespace)
    assert (tmp_path / "symmetry.pdf").stat().st_size > 0
    assert "pearson" in capsys.readouterr().out


def test_the_reference_page_is_up_to_date():
    assert GENERATE["PAGE"].read_text(encoding="utf-8") == GENERATE["page"](), "run: make docs"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb):
    context = CONTEXTS[verb]
    assert verb in (ROOT / "README.md").read_text(encoding="utf-8"), f"README.md's table lacks {verb}"
    assert f"## {verb}\n" in GENERATE["PAGE"].read_text(encoding="utf-8")
    shown = context.command.help or ""
    assert "Example:" in shown, f"the help of {verb} has no example"
    assert verb in shown.partition("Example:")[2]


@by_page
def test_every_call_that_is_shown_exists(page):
    for words in calls(page):
        context, rest = command_of(words)
        known = options_of(context)
        for word in rest:
            if word.startswith("-"):
                assert word.split("=")[0] in known, f"{context.command_path} has no {word}: {shlex.join(words)}"


def test_calls_are_found():
    assert ["deltaw", "reproduce", "bora", "--out", "demo"] in calls(ROOT / "README.md")
    assert len(calls(GENERATE["PAGE"])) > len(VERBS)


@by_page
def test_every_long_option_that_is_named_exists(page):
    """Options in inline code without a command, as in: every verb that prints a table takes `--json`."""
    known = set().union(*(options_of(context) for context in CONTEXTS.values()))
    for option in re.findall(r"`(--[a-z][a-z-]*)`", page.read_text(encoding="utf-8")):
        assert option in known, f"{page.name}: there is no option {option}"


def test_the_tables_of_methods_and_figures_are_up_to_date():
    tables = runpy.run_path(str(ROOT / "docs" / "registry_tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert tables["filled"](text) == text, f"{page.name}: run make docs"
    for name in METHODS:
        for page in tables["PAGES"]:
            assert f"| `{name}` |" in page.read_text(encoding="utf-8"), f"{page.name}'s table lacks {name}"


@by_page
def test_every_link_into_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text(encoding="utf-8")):
            assert target in targets, f"{page.name} names make {target}"


def test_constraints_pin_every_direct_dependency_exactly():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line), f"{line!r} is no exact version without a local part"
    names = {line.partition("==")[0] for line in pins}
    assert len(names) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [r for group in project["optional-dependencies"].values() for r in group]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()
        assert name in names | {"deltaw"}, f"constraints.txt does not pin {name}"
    assert "torch==2.13.0" in pins

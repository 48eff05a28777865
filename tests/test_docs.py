"""The pages say what is so: snippets run, commands exist, tables are complete, links lead somewhere."""

import importlib
import inspect
import json
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deltaw
from deltaw.adapters import METHODS, BoRA, LoRA, inject, merge, save_peft
from deltaw.adapters.peft.formulas.table import FORMULAS
from deltaw.analysis.figures import FIGURES
from deltaw.trainers import Recorder

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


SITE = ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def site():
    """The modules of docs/site by name."""
    before = list(sys.path)
    sys.path.insert(0, str(SITE))
    names = ("docstrings", "measure_pages", "method_pages", "api_pages", "notebook_pages", "gallery", "layout")
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = before
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def laid_out(site, tmp_path_factory):
    """The sources of the site, with a gallery whose pictures are not drawn (`make site` draws them)."""
    folder = tmp_path_factory.mktemp("site") / "sources"
    gallery = site["gallery"]
    written = gallery.write

    def undrawn(where):
        where.mkdir()
        for name, figure in FIGURES.items():
            text = f"```python\n{gallery.code(name, figure)}\n```\n\n{gallery.called(name, figure)}"
            (where / f"{name}.md").write_text(f"# {name}\n\n{text}", encoding="utf-8")
            (where / f"{name}.{gallery.ending(figure)}").touch()
        (where / "index.md").write_text(gallery.index(), encoding="utf-8")

    gallery.write = undrawn
    try:
        site["layout"].lay_out(folder)
    finally:
        gallery.write = written
    return folder


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


@by_page
def test_every_anchor_of_a_link_is_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if "://" not in target:
            there = page.parent / target if target else page
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{page.name}: {there.name} has no #{anchor}"


def test_every_internal_link_of_the_site_leads_somewhere(laid_out):
    for page in laid_out.rglob("*.md"):
        for target, anchor in re.findall(
            r"\]\(([^)#\s]*)(#[^)\s]+)?\)", without_code(page.read_text(encoding="utf-8"))
        ):
            if "://" in target:
                continue
            there = page.parent / target if target else page
            where = page.relative_to(laid_out)
            assert there.exists(), f"{where} links to {target}, which is not there"
            if anchor and there.suffix == ".md":
                assert anchor[1:] in anchors(there.read_text(encoding="utf-8")), f"{where}: {target} has no {anchor}"


def test_every_page_of_the_site_is_in_its_contents(laid_out):
    listed = {laid_out / "index.md"}
    for page in laid_out.rglob("*.md"):
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            listed |= {page.parent / f"{line}.md" for line in block.split("\n") if line and not line.startswith(":")}
    assert listed == set(laid_out.rglob("*.md"))


def test_every_measure_has_a_page_with_its_formula_and_pitfalls(site, laid_out):
    pages = site["measure_pages"]
    stub = (ROOT / "analysis" / "__init__.pyi").read_text(encoding="utf-8")
    handed_on = set(re.findall(r"^from \.measures\.(\w+) import ([a-z]\w+) as", stub, re.MULTILINE))
    assert {f"{module}.{name}" for module, name in handed_on} <= set(pages.MEASURES)
    for path, note in pages.MEASURES.items():
        text = (laid_out / "measures" / f"{pages.slug(path)}.md").read_text(encoding="utf-8")
        for heading in ("## Pitfalls", "## Call", "### Arguments", "## Source"):
            assert f"\n{heading}\n" in text, f"{path} has no {heading}"
        assert note.section in anchors((ROOT / "docs" / "measures.md").read_text(encoding="utf-8"))
        assert set(note.figures) <= set(FIGURES)


def test_every_method_has_a_page_with_its_options(site, laid_out):
    for name, make in METHODS.items():
        text = (laid_out / "methods" / f"{site['method_pages'].slug(name)}.md").read_text(encoding="utf-8")
        for option in inspect.signature(make).parameters.values():
            if option.kind is not option.VAR_KEYWORD:
                assert f"| `{option.name}` |" in text


def test_the_api_has_what_the_stubs_hand_on(site, laid_out):
    pages = site["api_pages"]
    for package in pages.PACKAGES:
        text = (laid_out / "api" / f"{pages.slug(package)}.md").read_text(encoding="utf-8")
        assert pages.names(package)
        for name in pages.names(package):
            assert f"\n## {name}\n" in text


def test_every_call_of_the_gallery_exists(laid_out):
    for name in FIGURES:
        page = laid_out / "gallery" / f"{name}.md"
        (words,) = calls(page)
        context, rest = command_of(words)
        options = options_of(context)
        for word in rest:
            assert not word.startswith("-") or word in options, f"{name}: there is no {word}"


def test_the_site_names_no_path_of_this_machine(laid_out):
    for page in laid_out.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert " at 0x" not in text
        assert str(ROOT) not in text


@pytest.mark.parametrize("name", ["start_peft", "start_checkpoints", "start_method"])
def test_the_first_steps_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    save_file(model.state_dict(), "base.safetensors")
    save_file(model.state_dict(), "before.safetensors")
    save_file(
        {key: value + 0.1 * torch.randn(value.shape) for key, value in model.state_dict().items()}, "after.safetensors"
    )
    inject(model, LoRA(rank=2), targets=["*"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
    save_peft(model, "my-lora")
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    namespace: dict[str, object] = {}
    try:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), start=1):
            exec(compile(block, f"{name}.md, python block {number}", "exec"), namespace)
    finally:
        METHODS.pop("column-scale", None)
    assert namespace


def record_runs() -> nn.ModuleDict:
    """Record runs/lora and runs/bora, save the first as adapter/, and return a model like theirs."""
    for method in (LoRA(rank=2), BoRA(rank=2)):
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.ModuleDict({"query": nn.Linear(6, 4)}) for _ in range(2)])
        model = inject(nn.ModuleDict({"layer": layers}), method, targets=["*"])
        with Recorder(model, f"runs/{method.name}") as recorder:
            for step in range(3):
                recorder.step(step)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
        if method.name == "lora":
            save_peft(model, "adapter")
    return merge(model)


@pytest.mark.parametrize("name", ["advice", "agreement", "geometry", "packs", "recording", "report"])
def test_the_examples_of_a_page_run(name, tmp_path, monkeypatch):
    """But for those of reading.md and vl.md, which read from a network and need a GPU."""
    monkeypatch.chdir(tmp_path)
    model = record_runs()
    run = deltaw.open("runs/lora")
    known = {"run": run, "model": model, "evaluate": lambda model: float(model["layer"][0]["query"].weight.sum())}
    known |= {"torch": torch, "before": torch.eye(18, 17), "after": torch.eye(18, 17) + 0.1 * torch.ones(18, 17)}
    known |= {"U": torch.ones(18, 1), "V": torch.ones(1, 17)}
    for block in re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), re.S | re.M
    ):
        exec(compile(block, f"{name}.md", "exec"), known)


def test_numbers_of_the_readme_are_those_of_the_code():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(METHODS)} methods of its own, {len(FORMULAS)} types of PEFT" in text


def test_a_docstring_becomes_markdown(site):
    doc = """Return x.

        x = a*b

    with a_i and `b`.

    Arguments:
        a, b: Two *numbers*,
            of any kind.
        *more: Others.

    Source:
        A paper.
    """
    text = site["docstrings"].markdown(doc, 2)
    assert "```text\nx = a*b\n```" in text
    assert "- `a, b`: Two \\*numbers\\*, of any kind." in text
    assert "- `*more`: Others." in text
    assert text.endswith("## Source\n\nA paper.")


def test_a_paragraph_below_a_section_is_no_part_of_it(site):
    found = site["docstrings"].sections("One.\n\nArguments:\n    a: Two.\n    b: Three.\n\nFour.\n\nSource:\n    Five.")
    assert found == {"": "One.\n\nFour.", "Arguments": "a: Two.\nb: Three.", "Source": "Five."}


def test_a_wide_signature_has_a_line_for_each_argument(site):
    def made(first: torch.Tensor, *, second: "int | None" = None, third: float = 0.5) -> nn.Module:
        raise NotImplementedError

    signature = site["docstrings"].signature
    assert signature(made) == "(first: Tensor, *, second: int | None = None, third: float = 0.5) -> Module"
    lines = [
        "(",
        "    first: Tensor,",
        "    *,",
        "    second: int | None = None,",
        "    third: float = 0.5,",
        ") -> Module",
    ]
    assert signature(made, 20) == "\n".join(lines)

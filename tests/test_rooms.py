"""The laws of the house, read from the code: what may import what, no circles, no crowded room, no long file."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("deltaw", "cli", "trainers", "analysis", "adapters")
LONGEST = 400
LONG_BY_NATURE = {"trainers/cola/grammar.py"}  # data and a grammar

# The rooms of each package from the top down: a room may import from the rooms below it, and from within itself.
# Rooms on one line know nothing of each other.
ORDER: dict[str, list[set[str]]] = {
    "analysis": [
        {"report"},
        {"advice", "claims", "figures", "inspection", "figure_tables"},
        {"runs", "interpolation"},
        {"trajectory"},
        {"tables"},
        {"records.open"},
        {"records.recorded"},
        {"records.foreign"},
        {"records.source"},
        {"records.run_folder"},
        {"records.storage"},
        {"workers"},
        {"measures", "names", "progress"},
        {"printable"},
    ],
    "adapters": [
        {"peft", "counting"},
        {"state_file"},
        {"effective", "injection", "quantization"},
        {"peft.live"},
        {"methods"},
        {"modules"},
        {"bitsandbytes", "patterns", "peft.names"},
        {"layer"},
        {"clock", "constants", "method", "residual"},
        {"checks", "linear", "sharded", "small_files", "uncompiled"},
        {"compiled"},
        {"errors"},
    ],
}


def read() -> dict[str, Path]:
    """Every module of the packages by its full name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            parts = parts if package == "deltaw" else ["deltaw", *parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = read()


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, inside functions too, for types only not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deltaw":
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole[name] if whole[name] in MODULES else str(node.module) for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "deltaw"}
    return found


ARROWS = {name: imports(path) - {name} for name, path in MODULES.items()}


def room(module: str) -> tuple[str, str]:
    """Return the package of a module, and its room there: the folder or the file at the package's top."""
    parts = [*module.split("."), "", ""]
    if parts[1] not in PACKAGES:
        return "deltaw", parts[1]
    file = f"{parts[2]}.{parts[3]}"  # a file that is a room of its own
    return parts[1], file if any(file in rooms for rooms in ORDER.get(parts[1], [])) else parts[2]


def floor(package: str, name: str) -> int:
    """How many floors are above a room."""
    return next(i for i, rooms in enumerate(ORDER[package]) if name in rooms)


def test_packages_import_downwards() -> None:
    upwards = [
        f"{module} imports {target}"
        for module, targets in ARROWS.items()
        for target in targets
        if PACKAGES.index(room(module)[0]) > PACKAGES.index(room(target)[0])
    ]
    assert not upwards


@pytest.mark.parametrize("package", ORDER)
def test_rooms_import_downwards(package: str) -> None:
    upwards = []
    for module, targets in ARROWS.items():
        for target in targets:
            (here, own), (there, other) = room(module), room(target)
            if here == there == package and own != other and "" not in (own, other):
                assert own in set().union(*ORDER[package]), f"{own} is in no order; see ORDER in this file"
                if floor(package, own) >= floor(package, other):
                    upwards.append(f"{module} imports {target}")
    assert not upwards


def test_no_circles() -> None:
    def way_back(start: str) -> list[str]:
        todo, seen = [[start, target] for target in ARROWS[start]], set()
        while todo:
            way = todo.pop()
            if way[-1] == start:
                return way
            if way[-1] not in seen:
                seen.add(way[-1])
                todo += [[*way, target] for target in ARROWS.get(way[-1], ())]
        return []

    assert not [" → ".join(way) for way in map(way_back, MODULES) if way]


def test_the_library_imports_from_the_module_that_defines_a_name() -> None:
    """Not from a package's lazy names: they are for users, and hide which file needs which."""
    lazy = {"deltaw", "deltaw.adapters", "deltaw.analysis", "deltaw.trainers"}
    assert all(MODULES[name].with_suffix(".pyi").exists() for name in lazy)
    assert not [f"{name} imports from {target}" for name, targets in ARROWS.items() for target in targets & lazy]


def test_no_module_hides_a_function() -> None:
    """Importing a module sets its name on the package: it must not be one that the package hands on."""
    for package, path in MODULES.items():
        if path.with_suffix(".pyi").exists():
            tree = ast.parse(path.with_suffix(".pyi").read_text(encoding="utf-8"))
            names = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
            assert not [name for name in names if f"{package}.{name}" in MODULES]


def test_no_file_is_long() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES.values()
    }
    assert not {path for path, count in lines.items() if count > LONGEST} - LONG_BY_NATURE


def test_no_room_is_crowded() -> None:
    assert len(list((ROOT / "adapters").glob("*.py"))) <= 20
    assert len(list((ROOT / "analysis").glob("*.py"))) <= 8


def test_every_package_is_in_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    there = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == there

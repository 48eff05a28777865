"""Lay out the sources of the site: docs/ as it stands, and what is made from the code."""

import os
import re
import shutil
import tomllib
from pathlib import Path

import api_pages
import gallery
import measure_pages
import method_pages
import notebook_pages

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
# Pages that stand elsewhere in the repository, by their place on the site.
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
_LINK = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=[)\s])")


def lay_out(folder: Path) -> None:
    """Write all sources of the site into a new folder."""
    folder.mkdir(parents=True)
    pages = {f"docs/{path.name}": path.name for path in sorted(DOCS.glob("*.md"))} | ELSEWHERE
    pages |= {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in notebook_pages.NOTEBOOKS}
    for origin, place in pages.items():
        if origin != "README.md" and origin.endswith(".md"):
            write(folder / place, linked((ROOT / origin).read_text(encoding="utf-8"), origin, place, pages))
    for text, name, pictures in notebook_pages.pages():
        place = pages[f"notebooks/{name}.ipynb"]
        write(folder / place, linked(text, f"notebooks/{name}.ipynb", place, pages))
        for file, content in pictures.items():
            (folder / "notebooks" / file).write_bytes(content)
    if (DOCS / "images").is_dir():
        shutil.copytree(DOCS / "images", folder / "images")
    write(folder / "notebooks" / "index.md", notebook_pages.index())
    made = measure_pages.pages() | method_pages.pages() | api_pages.pages()
    for place, text in made.items():
        write(folder / place, text)
    gallery.write(folder / "gallery")
    index = (Path(__file__).parent / "index.md").read_text(encoding="utf-8")
    write(folder / "index.md", index)


def write(path: Path, text: str) -> None:
    """Write a page, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def linked(text: str, origin: str, place: str, pages: dict[str, str]) -> str:
    """Return a page whose links lead to where the site has what they name; else to the repository, or nowhere.

    Arguments:
        text: The page.
        origin, place: Its path in the repository, and on the site.
        pages: The place of every page of the site by its path in the repository.
    """

    def target(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        if not path or re.match(r"[a-z]+:", path):
            return found[0]
        named = os.path.normpath(os.path.join(os.path.dirname(origin), path))
        if named in pages:
            return os.path.relpath(pages[named], os.path.dirname(place)) + anchor
        if named.startswith("docs/images/") or not origin.endswith(".md"):
            return found[0]
        return f"{repository()}/blob/main/{named}" if repository() else found[0]

    fence = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
    parts = fence.split(text)
    return "".join(part if number % 2 else _LINK.sub(target, part) for number, part in enumerate(parts))


def repository() -> str:
    """The address of the repository as pyproject.toml has it; "" where it has none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = {name.lower(): url.rstrip("/") for name, url in project.get("urls", {}).items()}
    return next((urls[name] for name in ("repository", "source", "homepage") if name in urls), "")

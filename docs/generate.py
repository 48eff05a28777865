"""Write docs/cli.md from the commands' own help: ``python docs/generate.py`` or ``make docs``."""

from collections.abc import Iterator
from pathlib import Path

import click

from deltaw.cli import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100
HEAD = """# The command line

`deltaw` and `python -m deltaw.cli` are the same command. Exit codes: 0 done, 1 failed, 2 wrong call. An error is one
line on stderr; `deltaw --debug` adds the traceback.

This page is made from the commands' own help by `make docs`; a test fails where it is out of date.
"""


def commands(
    command: click.Command = app, name: str = "deltaw", parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield the context of every command, groups before what is in them."""
    settings = command.context_settings | {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            found = command.get_command(context, verb)
            if found is not None:
                yield from commands(found, verb, context)


def page() -> str:
    """Return the text of docs/cli.md."""
    sections = [HEAD]
    for context in commands():
        sections.append(f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE.name}")

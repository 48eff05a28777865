"""Write the pages that are made: ``python docs/generate.py`` or ``make docs``.

cli.md comes from the commands' own help, parameters.md from the figures in paper_parameters.py, claims.md from the
claims themselves (claims_page.py), the tables of methods, figures, rules and measures from their
registries (registry_tables.py).
"""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from deltaw.adapters.counting.configs import CONFIGS
from deltaw.cli import app

PAGE = Path(__file__).with_name("cli.md")
PARAMETERS = Path(__file__).with_name("parameters.md")
WIDTH = 100
HEAD = """# The command line

`deltaw`, `python -m deltaw` and `python -m deltaw.cli` are the same command. Exit codes: 0 done, 1 failed, 2 wrong
call, 130 interrupted. An error is one line on stderr; `deltaw --debug` adds the traceback. A group without a command,
as `deltaw plot`, prints its help. Paths and libraries are checked before anything is computed, and a missing folder of
`--out` is made.

**Output.** The answer goes to stdout; progress, warnings and errors go to stderr. Progress is a bar on a terminal, and
elsewhere a line at the start, at most one a minute, and one at the end. `--quiet` leaves the answer and errors,
`--verbose` adds the library's log. Both stand before or after the command's name.

**Cores.** Threads that wait for each other sleep (`OMP_WAIT_POLICY=PASSIVE`), so that they take no core from another
process; your own `OMP_WAIT_POLICY`, `GOMP_SPINCOUNT` or `KMP_BLOCKTIME` stays. `--jobs` trains runs side by side, equal
to the bit to one after the other: [recording.md](recording.md#runs-side-by-side-and-threads).

**Names from files.** Names of modules, files and methods may come from strangers. What a terminal would obey instead of
showing it (control characters, line breaks, marks that turn the direction of writing) is printed as an escape, such as
`\\x1b`. In a CSV file a text cell is escaped in the same way, and one that begins with `=`, `+`, `-`, `@`, a tab or a
line break gets an apostrophe before it, so that no spreadsheet takes it for a formula; numbers stay numbers. JSON and
Parquet hold every name as it is.

**Completion.** To complete commands, options, methods, figures and paths with the tab key, put this line into
`~/.bashrc`:

```bash
eval "$(_DELTAW_COMPLETE=bash_source deltaw)"
```

In `~/.zshrc` it is `eval "$(_DELTAW_COMPLETE=zsh_source deltaw)"`, and in `~/.config/fish/completions/deltaw.fish`
`_DELTAW_COMPLETE=fish_source deltaw | source`. Bash must be 4.4 or newer.

This page is made from the commands' own help by `make docs`; a test fails where it is out of date.
"""
PARAMETERS_HEAD = """# The papers' parameter figures

Every figure for trainable parameters in the papers' tables that can be computed, beside what `deltaw params` counts
for the same setting: {agree} of {all} agree to the last printed digit. This page is made by `make docs` from
`docs/paper_parameters.py`, and a test holds every row to its verdict, those that disagree too.

A share is that of all parameters, with those that the method adds: what PEFT prints, and `share_of_all` in
`deltaw params`. The total of a causal language model has its output layer, that of the others is the bare model's.
The models are named configurations, which need no network:
{models}.

What is adapted is what the paper or its authors' scripts say: query, key, value, up and down for LLaMA in the
commonsense and arithmetic tables, all seven linear layers of a block for instruction tuning, query and value for
RoBERTa, DeBERTa and GPT-2.

DoRA is counted with one magnitude per column (`dora`, its equation) in the tables of DoRA and BoRA, and with one per
row (`dora-row`, its authors' code) in those of SBoRA and Dual LoRA: only so are BoRA's Table 4, DoRA's Table 6, SBoRA's
57.4 M on LLaMA3-8B and Dual LoRA's 0.202% on LLaMA3-70B right. On most models the two count the same or nearly so.

To count such a row oneself, here DoRA's Table 1 on LLaMA 7B:

```console
$ deltaw params --model llama-7b --method lora,dora --rank 32 --targets "*.[qkvud]*_proj"
```
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


def parameters_page() -> str:
    """Return the text of docs/parameters.md."""
    data = runpy.run_path(str(Path(__file__).with_name("paper_parameters.py")))
    figures = data["FIGURES"]
    agree = sum(not figure.reason for figure in figures)
    lines = [PARAMETERS_HEAD.format(agree=agree, all=len(figures), models=", ".join(f"`{name}`" for name in CONFIGS))]
    for paper, left_out in data["LEFT_OUT"].items():
        lines.append(f"## {paper}\n")
        lines.append("| table | model | method | counted as | printed | computed | trainable | verdict |")
        lines.append("|---|---|---|---|---|---|---|---|")
        notes: list[str] = []
        for figure in figures:
            if figure.paper != paper:
                continue
            computed = f"{data['value'](figure):.{figure.decimals + 1}f}"
            trainable = f"{data['counted'](figure)['trainable']:,}"
            said = figure.reason or figure.note
            if said and said not in notes:
                notes.append(said)
            verdict = "**disagrees**" if figure.reason else "agrees"
            cells = [figure.table, figure.model, figure.label, _how(figure), f"{figure.printed} {figure.unit}"]
            cells += [computed, trainable, f"{verdict} ({notes.index(said) + 1})" if said else verdict]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
        lines += [f"{number}. {_sentence(note)}" for number, note in enumerate(notes, start=1)] + [""] * bool(notes)
        if left_out:
            lines += ["Left out:\n", *(f"- {line}" for line in left_out), ""]
        if paper == "SBoRA":
            lines += _formulas(data["SBORA_TABLE_1"])
    return "\n".join(lines).rstrip() + "\n"


def _how(figure: Any) -> str:
    return " + ".join(f"`{name}`" + (f" r = {rank}" if rank else "") for name, rank, _ in figure.parts)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _formulas(rows: list[Any]) -> list[str]:
    lines = [
        "Table 1 has formulas, for W of d × k. Its totals for SBoRA-FA and -FB are exchanged: by the paper's own",
        "equation 8, FA trains B (d × r) and keeps the r indices of A.",
        "",
        "| method | what | printed | by its equations | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, what, printed, own, _ in rows:
        lines.append(f"| `{name}` | {what} | {printed} | {own} | {'agrees' if printed == own else '**disagrees**'} |")
    return [*lines, ""]


if __name__ == "__main__":
    claims = runpy.run_path(str(Path(__file__).with_name("claims_page.py")))
    for path, text in ((PAGE, page()), (PARAMETERS, parameters_page()), (claims["PAGE"], claims["page"]())):
        path.write_text(text, encoding="utf-8")
        print(f"written to {path.name}")
    tables = runpy.run_path(str(Path(__file__).with_name("registry_tables.py")))
    for path in (*tables["PAGES"], *tables["OTHERS"]):
        path.write_text(tables["filled"](path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"tables of {path.name} made anew")

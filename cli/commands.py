"""How every command behaves: help for a bare group, "did you mean", --quiet and --verbose, names that load nothing."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

WHOLE = 10_000  # characters of a help: none is cut


@dataclass
class Session:
    """What one call of the command line is.

    Arguments:
        quiet: Nothing on stderr but errors.
        verbose: The library's log as well.
        alone: The process is there for this call alone, and ends with it.
    """

    quiet: bool = False
    verbose: bool = False
    alone: bool = False


def session() -> Session:
    """Return that of the running call."""
    return click.get_current_context().find_root().ensure_object(Session)


class Volume(click.Option):
    """--quiet or --verbose, which every command has before and after its name."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__([f"-{name[0]}", f"--{name}"], is_flag=True, expose_value=False, callback=_note, help=help)


def _note(context: click.Context, option: click.Parameter, given: bool) -> None:
    call = context.find_root().ensure_object(Session)
    if given and option.name:
        setattr(call, option.name, True)
    if call.quiet and call.verbose:
        raise click.UsageError("--quiet and --verbose contradict each other; leave one of them out", context)


def volume() -> list[click.Parameter]:
    """Return the two options."""
    return [
        Volume("quiet", "Print errors and the answer alone."),
        Volume("verbose", "Say on stderr what is done."),
    ]


class Command(click.Command):
    """A command with --quiet and --verbose."""

    def __init__(self, *arguments: Any, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.params += volume()

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; with --quiet nothing below shows how far it is."""
        from deltaw.analysis.progress import hidden

        with hidden() if ctx.find_root().ensure_object(Session).quiet else contextlib.nullcontext():
            return super().invoke(ctx)


class Group(click.Group):
    """A group with the same options; called alone it prints its help, and an unknown name gets a suggestion.

    Arguments:
        what: What its commands are called in a message.
    """

    command_class = Command

    def __init__(self, *arguments: Any, what: str = "command", **given: Any) -> None:
        given |= {"invoke_without_command": True, "subcommand_metavar": "COMMAND [ARGS]..."}
        super().__init__(*arguments, **given)
        self.params += volume()
        self.what = what
        self.callback = _or_help(self.callback)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, with the whole first sentence of each command's help."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(limit=WHOLE)) for name, one in found if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but say what there is where there is no such command."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            raise click.UsageError(f"No such {self.what}: {name!r} {did_you_mean(name, known)}", ctx)
        return super().resolve_command(ctx, args)


def _or_help(callback: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return what a group does before its command; without a command it prints its help."""

    def begin(**given: Any) -> Any:
        context = click.get_current_context()
        if context.invoked_subcommand is None:
            click.echo(context.get_help())
            context.exit()
        return callback(**given) if callback else None

    return begin


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: all names, and the nearest ones.

    Example:
        >>> did_you_mean("dorra", ["lora", "dora"])
        "is not one of lora, dora; did you mean 'dora' or 'lora'?"
        >>> did_you_mean("x", ["lora", "dora"])
        'is not one of lora, dora'
    """
    names = list(known)
    folded = {name.casefold(): name for name in reversed(names)}
    near = [folded[name] for name in difflib.get_close_matches(given.casefold(), folded, n=3)]
    near += [name for name in names if given and name.startswith(given) and name not in near][: 3 - len(near)]
    meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"is not one of {', '.join(names)}{meant}"


class OneOf(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    """One of several names; a wrong one gets a suggestion.

    Arguments:
        known: The names, in order. A registry is only read when a name is to be checked, completed or shown.
    """

    name = "choice"

    def __init__(self, known: Iterable[str]) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is."""
        if value not in self.known:
            self.fail(f"{value!r} {did_you_mean(value, self.known)}", param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return all names, as click shows a choice."""
        return f"[{'|'.join(self.known)}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last of several names with commas between."""
        before, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in self.known if name.startswith(begun)]


class ListOption(click.Option):
    """An option that takes several values, repeated or with commas between; it comes as a list, each value once.

    Arguments:
        flags: --NAME, and the argument's name where it differs.
        kind: click's type of one value.
        help: May hold {names}: the names of a ``OneOf``, which are read when the help is shown.
        given: click's.
    """

    def __init__(self, flags: Sequence[str], kind: Any, help: str, **given: Any) -> None:
        self.kind = kind
        super().__init__(
            flags,
            multiple=True,
            callback=self._split,
            shell_complete=kind.shell_complete,
            metavar="LIST",
            help=help,
            **given,
        )

    def _split(self, context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[Any]:
        parts = [part.strip() for text in given for part in text.split(",")]
        if not all(parts):
            raise click.BadParameter(f"{','.join(given)!r} has an empty place", context, option)
        return list(dict.fromkeys(self.kind.convert(part, option, context) for part in parts))

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As click's, with the names filled in."""
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.kind, OneOf):
            return record
        return record[0], record[1].replace("{names}", ", ".join(self.kind.known))

"""The command line: one file a verb, each a thin call of one library function."""

import sys
from collections.abc import Sequence

import click

from deltaw.adapters.errors import DeltawError, OptionError, TargetError


class Verbs(click.Group):
    """Finds a verb's file by its name, so that ``deltaw inspect`` does not wait for transformers."""

    names = ("train", "inspect", "changes", "rank", "plot", "reproduce", "claims", "params")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of the work."""
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import ``deltaw.cli.<verb>`` and return its command."""
        if cmd_name not in self.names:
            return None
        from importlib import import_module

        command: click.Command = import_module(f"deltaw.cli.{cmd_name}").command
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="deltaw", message="deltaw %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def app(debug: bool) -> None:
    """deltaw shows how fine-tuning moves weights.

    \b
    Example:
      deltaw reproduce bora --out demo        # train, record, measure, draw; offline, in minutes
    """
    del debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; an error is one line on stderr: exit code 2 for a wrong call, 1 for a failed one."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app.main(args=given, prog_name="deltaw", standalone_mode=False)
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _fail(f"{error.format_message()}{where}", 2)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; the same command goes on where it stopped", 130)
    except BrokenPipeError:
        return 0
    except (DeltawError, OSError) as error:
        if "--debug" in given:
            raise
        return _fail(str(error), 2 if isinstance(error, (OptionError, TargetError)) else 1)
    return 0


def _fail(message: str, code: int) -> int:
    print("deltaw: " + " ".join(message.split()), file=sys.stderr)
    return code

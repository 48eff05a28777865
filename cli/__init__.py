"""The command line: one file a verb, each a thin call of one library function, imported when it runs."""

import sys
from collections.abc import Sequence
from typing import ClassVar

import click

from deltaw.adapters.errors import DeltawError, OptionError, TargetError
from deltaw.cli.commands import Group, Session
from deltaw.cli.output import StoppedError, complain, messages
from deltaw.cli.waiting import wait_asleep


class Verbs(Group):
    """Finds a verb's file by its name, so that ``deltaw inspect`` does not wait for the others."""

    # In the order of the work, with the first sentence of each verb's help: ``deltaw --help`` imports no verb for it.
    about: ClassVar = {
        "train": "Fine-tune a model with a method, and record how its weights move.",
        "inspect": "Show what a run holds, whether it is whole, and whether it is sound.",
        "repair": "Save what is whole of a damaged run, and guess nothing.",
        "changes": "Print ΔM and ΔD of every module, pair of steps and axis.",
        "rank": "Print the rank of ΔW by module.",
        "geometry": "Print how ΔW stands to W₀: rotation, drift, off-principal share, visible changes.",
        "report": "Write a report of runs: one HTML file with linked views that opens offline.",
        "compare": "Print how two runs, models or adapters differ, on one screen.",
        "advise": "Advise a rank for every module, and say which hardly moved.",
        "resize": "Write an adapter at other ranks, and print the error of each matrix.",
        "plot": "Draw a figure from recorded runs, or from results of training.",
        "reproduce": "Train, record, analyse, plot, and hold the result against the paper.",
        "claims": "Hold papers' claims against recorded runs of one experiment.",
        "packs": "List the packs of claims, or show one: its claims, measures, rules and figures.",
        "doctor": "Print versions, threads, GPUs, caches, and what each verb still needs.",
        "params": "Count a method's trainable parameters.",
    }
    names = tuple(about)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs."""
        return list(self.names)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs with a line each."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.about.items()))

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
    session = Session(alone=arguments is None)
    wait_asleep()
    try:
        with messages(session):
            code = app.main(args=given, prog_name="deltaw", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return complain(f"{error.format_message()}{where}", 2)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except StoppedError as error:
        return complain(f"interrupted; {error}", 130)
    except (click.Abort, KeyboardInterrupt):
        return complain("interrupted", 130)
    except BrokenPipeError:
        return 0
    except (DeltawError, OSError) as error:
        if "--debug" in given:
            raise
        return complain(_said(error), 2 if isinstance(error, (OptionError, TargetError)) else 1)


def _said(error: Exception) -> str:
    """The message of an error; of the operating system's without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)

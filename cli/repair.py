"""``deltaw repair``: saves what is whole of a damaged run."""

from dataclasses import asdict

import click

from deltaw.cli.commands import Command
from deltaw.cli.options import json_option
from deltaw.cli.output import emit, emit_json


@click.command("repair", cls=Command)
@click.argument("path", metavar="RUN", type=click.Path())
@click.option("--adopt", is_flag=True, help="Take checkpoints that stand in the folder whole but unannounced.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@json_option
def command(path: str, adopt: bool, dry_run: bool, as_json: bool) -> None:
    """Save what is whole of a damaged run, and guess nothing; exit code 1 where nothing can be saved.

    RUN is a folder that deltaw recorded and nobody records to now. A checkpoint stays where its file has the checksum
    that was announced; a line that is gone comes back where the checksums around it prove it; a row of the log stays
    where it has its own checksum. Files that are written anew are kept beside as NAME.damaged-1.

    A checkpoint that nothing announces is left alone. With --adopt it is taken where it has the tensors and shapes of
    the run and finite numbers, though nobody knows what its checksum was.

    \b
    Example:
      deltaw repair runs/bora --dry-run
    """
    from deltaw.analysis.records.run_folder.repair import repair_run

    done = repair_run(path, adopt=adopt, dry_run=dry_run)
    if as_json:
        emit_json(asdict(done))
        return
    lines = [
        *(f"found: {line}" for line in done.found),
        *(f"brought back: {line}" for line in done.restored),
        *(f"dropped: {line}" for line in done.dropped),
        *(f"left alone: {line}" for line in done.unannounced),
        *(f"kept beside: {line}" for line in done.kept),
    ]
    count = f"{len(done.steps)} checkpoint{'s' * (len(done.steps) != 1)}"
    if done.whole:
        lines.append(f"{done.path}: is whole, with {count}")
    else:
        wrote = "would write" if dry_run else "wrote"
        lines.append(f"{done.path}: {wrote} {', '.join(done.written)}; {count}")
    emit("\n".join(lines))

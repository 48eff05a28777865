"""``deltaw.report``: runs in, one HTML file out."""

from collections.abc import Sequence
from pathlib import Path

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.storage.atomic import make_folder, write_text
from deltaw.analysis.report.collect import collect
from deltaw.analysis.report.matrices import Details
from deltaw.analysis.report.page import page
from deltaw.analysis.runs import Paths, open_runs
from deltaw.analysis.tables.work import chosen_work


@public
def report(
    runs: Paths,
    path: str | Path = "report.html",
    *,
    base: BaseLike = None,
    modules: Sequence[str] | None = None,
    details: Details = None,
    geometry: bool | None = None,
    check: bool = True,
    watch: float | None = None,
    progress: bool = False,
    device: str | None = None,
    jobs: int = 1,
    engine: str | None = None,
    address: str | None = None,
    cache: bool = True,
) -> Path:
    """Write a report of some runs: one HTML file with linked views, which opens offline in any browser.

    ΔM and ΔD over training by row and column, how the two go together, which matrix moved when, rank and spectrum of
    the update, how it stands to W₀, the runs against each other, loss and score, and the papers' claims. What a run
    lacks, as its W₀, is said in its place, and the other views go on. The file asks for nothing over a network, by its
    content security policy, and names of modules and runs are text in it and nothing else.

    Arguments:
        runs: One or several runs, see ``open_runs``; whoever wrote them.
        path: The file; one that is there is replaced whole or not at all.
        base: W₀ of those that do not hold it.
        modules: Glob patterns over the modules; ``None`` for all.
        details: How many checkpoints, evenly spread, get a spectrum and distributions of rows and columns; "all"; or
            ``None`` for as many as take less than a minute a run.
        geometry: ``True`` holds all of these against W₀ (rotation, spectral drift, off-principal share, visible
            changes), ``False`` none, ``None`` as many as take less than half a minute a run.
        check: Look for what is wrong with the runs, as ``inspect_run`` does, and hold the papers' claims against them.
        watch: The seconds after which an open page looks at the file anew, where it is written again and again.
        progress: Show progress bars.
        device, jobs, engine, address, cache: Where and how it is measured, see `deltaw.analysis.tables.work.Work`.

    Returns:
        The path.

    Raises:
        RecordError: One of the runs is none.
        OptionError: No run is given, or an argument cannot be used.
        WriteError: The file cannot be written.

    Example:
        >>> import tempfile, deltaw, torch
        >>> lora, plain = deltaw.METHODS["lora"](rank=2), torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> model, folder = deltaw.inject(plain, lora, targets=["0"]), tempfile.mkdtemp()
        >>> with deltaw.Recorder(model, folder) as recorder:
        ...     recorder.step(0)
        >>> deltaw.report(folder, f"{folder}/report.html").name
        'report.html'
    """
    if not isinstance(path, str | Path):
        raise OptionError(f"path is {path!r}; pass the name of an .html file")
    file = Path(path)
    if file.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"{file}: a report is an .html file, not {file.suffix!r}")
    work = chosen_work(device, jobs, engine, address, cache)
    opened = open_runs(runs, base=base)
    content = collect(
        opened, modules=modules, details=details, geometry=geometry, check=check, progress=progress, work=work
    )
    make_folder(file.parent)
    write_text(file, page(content, watch=watch))
    return file

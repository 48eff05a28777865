"""Packs held against recorded runs, from the runs to the verdicts in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.tables.work import chosen_work

if TYPE_CHECKING:
    from deltaw.analysis.claims.claim import Verdicts
    from deltaw.analysis.claims.pack import Pack
    from deltaw.analysis.runs import Paths


@public
def check_claims(
    runs: "Paths",
    pack: "str | Path | Pack | Sequence[str | Path | Pack]",
    *,
    base: BaseLike = None,
    roles: Mapping[str, str] | None = None,
    progress: bool = False,
    device: str | None = None,
    jobs: int = 1,
    engine: str | None = None,
    address: str | None = None,
    cache: bool = True,
) -> "Verdicts":
    """Hold the claims of a pack, or of several, against recorded runs of one experiment.

    Arguments:
        runs: See ``open_runs``; of several methods, several seeds of a method are averaged and resampled.
        pack: A name that ``packs()`` has, the path of a TOML file, or what ``load_pack`` returned; or several of them.
        base: W₀, where a run does not hold it.
        roles: By a run's name, what it counts as in place of its method; see ``Pack.roles``.
        progress: Show progress bars.
        device, jobs, engine, address, cache: Where and how it is measured, see `deltaw.analysis.tables.work.Work`.

    Returns:
        One outcome a claim, in the packs' order: always all of them. One that the runs cannot decide is "unclear", with
        a note that names what is missing.

    Raises:
        OptionError: There is no such pack or run, or the runs are of different experiments.
        PackError: A file is no pack; names the line.
        RecordError: A run is damaged.

    Example:
        >>> import tempfile, torch, deltaw
        >>> lora, folder = deltaw.METHODS["lora"](rank=2), tempfile.mkdtemp()
        >>> model = deltaw.inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), lora, targets=["0"])
        >>> with deltaw.Recorder(model, folder) as recorder:
        ...     recorder.step(0)
        >>> outcomes = check_claims(folder, "bora")
        >>> len(outcomes), {outcome.verdict for outcome in outcomes}
        (51, {'unclear'})
    """
    from deltaw.analysis.claims.collect import gather
    from deltaw.analysis.claims.found import find_pack
    from deltaw.analysis.claims.pack import Pack
    from deltaw.analysis.claims.papers import claims
    from deltaw.analysis.runs import open_runs

    chosen = [find_pack(one) for one in ([pack] if isinstance(pack, (str, Path, Pack)) else pack)]
    if not chosen:
        raise OptionError("no pack is given; name one, as packs() has them, or the path of a .toml file")
    work = chosen_work(device=device, jobs=jobs, engine=engine, address=address, cache=cache)
    evidence = gather(open_runs(runs, base=base), chosen, roles=roles, progress=progress, work=work)
    return claims(evidence, chosen)

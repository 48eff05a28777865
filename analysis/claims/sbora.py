"""What SBoRA's claims alone need: which part of ΔW is not zero."""

import pandas as pd

from deltaw.analysis.claims.evidence import require_methods
from deltaw.analysis.claims.interval import Measured
from deltaw.analysis.claims.rules import Parts


def _by_rank(regions: pd.DataFrame, method: str) -> list[tuple[int, pd.DataFrame]]:
    require_methods(regions, [method])
    rows = regions[regions["method"] == method]
    return [(int(str(rank)), found) for rank, found in rows.groupby("adapter_rank")]


def moved_vectors(regions: pd.DataFrame, method: str, axis: str) -> Parts:
    """Return, by rank, the share of the matrices in which exactly r vectors of ΔW are not zero."""
    return Parts(
        {
            f"rank {rank}": Measured(float((found[f"moved_{axis}s"] == rank).mean()), None)
            for rank, found in _by_rank(regions, method)
        }
    )


def untouched_share(regions: pd.DataFrame, method: str, side: str) -> Parts:
    """Return how far the share of entries of ΔW that are zero is from 1 − r/side; what is shown is the share."""
    by_rank = _by_rank(regions, method)
    shares = {rank: float(found["untouched_weights"].mean()) for rank, found in by_rank}
    expected = {rank: float((1 - rank / found[side]).mean()) for rank, found in by_rank}
    note = "; ".join(f"rank {rank}: {shares[rank]:.4g}, 1 − r/{side}: {expected[rank]:.4g}" for rank in shares)
    apart = {f"rank {rank}, off by": Measured(shares[rank] - expected[rank], None) for rank in shares}
    return Parts(apart, note=note, statistic=sum(shares.values()) / len(shares))

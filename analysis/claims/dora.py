"""What DoRA's claims alone need: which of a decoder's matrices count, and its gain by rank.

The paper measures along the columns, its equations 2 to 4 read literally, and that is what is checked for DoRA
(column). Its authors' code normalises rows, so the same claims are also held against DoRA (row) along the rows.

Two of its pictures disagree with each other: by the axes of Figure 2 DoRA moves further from W₀ than LoRA, in ΔM and in
ΔD; by Figures 3 and 8 (another model, other tasks) it moves less. Both are claims of its pack.
"""

import pandas as pd

from deltaw.analysis.claims.interval import Measured, Undecidable
from deltaw.analysis.claims.scores import ANY, score_differences
from deltaw.analysis.names import stack_of

GRANULAR = "dora+magnitude"  # magnitudes in all modules, directions in some


def of_self_attention(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the attention of a decoder to an encoder, as the paper's figures do.

    Example:
        >>> frame = pd.DataFrame({"module": ["decoder.0.self_attn.q_proj", "decoder.0.encoder_attn.q_proj"]})
        >>> of_self_attention(frame)["module"].tolist()
        ['decoder.0.self_attn.q_proj']
    """
    return frame[frame["module"].map(stack_of) != "cross"]


def score_widening(scores: pd.DataFrame, better: str, worse: str) -> Measured:
    """Return how much further a method is above another at the lowest rank that both have than at the highest."""
    found = list(score_differences(scores, ANY, better, worse).each.items())
    if len(found) < 2:
        raise Undecidable(f"missing: results of {better} and {worse} at two ranks")
    (low_name, low), (high_name, high) = found[0], found[-1]
    reaches = [one.interval[1] - one.statistic for one in (low, high) if one.interval is not None]
    reach = sum(part**2 for part in reaches) ** 0.5
    value = low.statistic - high.statistic
    return Measured(value, (value - reach, value + reach), f"{low_name} and {high_name}")

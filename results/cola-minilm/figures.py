"""Draw the figures of this folder anew from its tables; nothing is trained.

python results/cola-minilm/figures.py
"""

from pathlib import Path

import pandas as pd

from deltaw.analysis.figures import paper_style, rank, save, symmetry, updates

HERE = Path(__file__).parent
FIGURES = {
    "figure2_symmetry": (symmetry, "changes_consecutive"),
    "figure3_updates": (updates, "changes_from_start"),
    "rank_by_layer": (rank, "ranks"),
}

if __name__ == "__main__":
    with paper_style():
        for name, (draw, table) in FIGURES.items():
            frame = pd.read_csv(HERE / f"{table}.csv")
            if table == "ranks":
                frame.attrs["spacing"] = "every 20 steps"  # the table has the last alone
            figure = draw(frame)
            for suffix in ("png", "svg", "pdf"):
                save(figure, HERE / f"{name}.{suffix}")

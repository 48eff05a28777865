"""Train six methods on CoLA with MPNet-base, and make this folder's page anew from the runs that are finished.

python results/cola-mpnet/make.py --model mpnet-base --data cola --out runs

A run that was interrupted goes on, a finished one is only read; all methods of one seed come before the next seed.
"""

from collections.abc import Iterator
from pathlib import Path

import click
from page import make_page

from deltaw.trainers.cola import ColaSettings, train_cola
from deltaw.trainers.cola.experiment import finished_cola
from deltaw.trainers.cola.grid import grid_runs
from deltaw.trainers.reproduce.common import run_folder

HERE = Path(__file__).parent
METHODS = ("lora", "dora", "ft", "dual-lora", "dora-row", "bora")
ADAPTERS_RATE, FULL_RATE = 1e-3, 3e-5  # found by trial, one epoch each; the rest is ColaSettings' own, LoRA's Table 9


def wanted(model: str, data: str, out: Path, seeds: int) -> Iterator[tuple[Path, ColaSettings]]:
    """Yield folder and settings of every run, the first seed's first."""
    shared = ColaSettings(
        method="lora",
        model=model,
        data=data,
        epochs=3,
        learning_rate=ADAPTERS_RATE,
        precision="bfloat16",
        group_by_length=True,
        save_every=1,
    )
    for seed in range(seeds):
        for run in grid_runs(shared, methods=METHODS, seeds=[seed], rates={"ft": FULL_RATE}).values():
            yield out / run_folder(run.method, run.seed), run


@click.command()
@click.option("--model", required=True, help="The folder of MPNet-base.")
@click.option("--data", required=True, help="The folder with CoLA's TSV files.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder of the runs.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many, from 0.")
@click.option("--page", is_flag=True, help="Train nothing: make the page from the runs that are finished.")
def main(model: str, data: str, out: Path, seeds: int, page: bool) -> None:
    """Train what is not finished, and make the page."""
    runs = list(wanted(model, data, out, seeds))
    for place, run in [] if page else runs:
        train_cola(run, place)
    results = [(place, finished_cola(run, place)) for place, run in runs]
    make_page([(place, result) for place, result in results if result is not None])


if __name__ == "__main__":
    main()

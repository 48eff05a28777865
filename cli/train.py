"""``deltaw train``: recorded runs of an experiment, one or a grid of them."""

from pathlib import Path
from typing import Any

import click

from deltaw.cli.cola_options import train_options
from deltaw.cli.commands import Group
from deltaw.cli.options import json_option
from deltaw.cli.output import check_libraries
from deltaw.cli.train_options import OF_COLA, OF_VL, TRAINING, import_for_runs, run_options, train_runs
from deltaw.cli.vl_options import PICTURES, RANK_DEFAULT, vl_options


@click.group("train", cls=Group)
def command() -> None:
    """Fine-tune a model with a method, and record how its weights move.

    \b
    Example:
      deltaw train cola --method bora --out runs/bora      # offline, in minutes
      deltaw train vl --method dora --out runs/dora
    """


@command.command("cola")
@run_options(rank="8")
@train_options
@json_option
def cola(cola: dict[str, Any], options: dict[str, Any], methods: list[str], out: Path, **given: Any) -> None:
    """Fine-tune on CoLA; the defaults are LoRA's for RoBERTa-base, which BoRA A.2 uses.

    A run that was interrupted goes on with the same command; a finished one is only shown.

    Several methods, ranks or seeds (a,b,c, or the option repeated) are a grid: every combination is trained into its
    own folder in --out, OUT/bora-r8-s0, and the closing table has mean and standard deviation over the seeds. It goes
    on in the same way, and more methods, ranks or seeds add to it.

    \b
    Example:
      deltaw train cola --method bora --out runs/bora --epochs 5
      deltaw train cola --method bora --model roberta-base --data hub --out runs/bora
      deltaw train cola --method dual-lora --option warmup_steps=200 --out runs/dual-lora
      deltaw train cola --method bora,lora+ --rank 4,8 --seed 0,1,2 --option lora+:lr_ratio=4 --out grid
      deltaw train cola --method ft,lora,bora --lr 4e-4 --lr ft:2e-5 --model roberta-base --data hub --out grid
    """
    check_libraries(TRAINING, "train", "training")
    runs = len(methods) * max(1, len(given["ranks"])) * max(1, len(given["seeds"]))
    import_for_runs(OF_COLA, runs, given["jobs"], cola["model"], out)
    from deltaw.trainers.cola import ColaSettings, grid_table, train_cola, train_grid
    from deltaw.trainers.cola.grid import grid_page
    from deltaw.trainers.reproduce import results_table

    rates = cola.pop("learning_rate")
    train_runs(
        ColaSettings(method=methods[0], options=options, **cola),
        out,
        methods=methods,
        rates=rates,
        train_one=train_cola,
        train_grid=train_grid,
        show_one=lambda result: results_table([result]),
        grid_table=grid_table,
        grid_page=grid_page,
        **given,
    )


@command.command("vl")
@run_options(rank=RANK_DEFAULT)
@vl_options
@json_option
def vl(vl: dict[str, Any], options: dict[str, Any], methods: list[str], out: Path, **given: Any) -> None:
    """Fine-tune VL-BART on questions, statements and captions of pictures; the defaults are DoRA's.

    A frozen picture encoder gives features, BART reads them in front of the text and writes the answer; four tasks are
    trained together: vqa, gqa, nlvr (two pictures, true or false) and caption. What turns features into tokens is
    trained with every method. Offline with the built-in model and data this takes minutes.

    Runs go on and make a grid as with ``train cola``. The closing table has each task's score (CIDEr of captions is 1.0
    where papers print 100) and what guessing without the picture scores.

    \b
    Example:
      deltaw train vl --method dora --out runs/dora
      deltaw train vl --method ft,lora,dora --seed 0,1,2 --lr ft:2e-4 --out grid
      deltaw train vl --method dora --where encoder,decoder --kinds query,key --checkpoints 8 --out runs/dora-qk
      deltaw train vl --method dora --model facebook/bart-base --vision clip.h5 --data vqa --data nlvr2 --out vl-bart
      deltaw train vl --method lora --vision timm/resnet50.a1_in1k --data nlvr1 --data easy-vqa --limit 2000 --out nlvr
    """
    check_libraries([*TRAINING, *PICTURES], "vl", "training on pictures")
    runs = len(methods) * max(1, len(given["ranks"])) * max(1, len(given["seeds"]))
    import_for_runs(OF_VL, runs, given["jobs"], vl["model"], out)
    from deltaw.trainers.vl import VLSettings, grid_table, train_grid, train_vl
    from deltaw.trainers.vl.grid import grid_page, results_table

    rates = vl.pop("learning_rate")
    train_runs(
        VLSettings(method=methods[0], options=options, **vl),
        out,
        methods=methods,
        rates=rates,
        train_one=train_vl,
        train_grid=train_grid,
        show_one=results_table,
        grid_table=grid_table,
        grid_page=grid_page,
        **given,
    )

"""Does advice on ranks hold? Train LoRA, take the advice, train again with it, and beside it with as many parameters.

    python results/advice/bench.py --model MINILM --data COLA --out runs

MINILM is a model's folder (or name), COLA the folder of CoLA's TSV files. Every arm is trained with every seed; the
advice comes from the first seed's run alone, as a user would have it. What is finished is not trained again, so a call
with more seeds or arms adds to it. The table of all runs is results.csv here, that of shrinking without training again
shrunk.csv, the ranks advised by each seed's run ranks.csv.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainingArguments

from deltaw.adapters.injection import inject
from deltaw.adapters.modules import adapted
from deltaw.analysis import Trajectory
from deltaw.analysis.advice.config import read_advice, write_advice
from deltaw.analysis.measures.subspace import directions
from deltaw.trainers.cola.experiment import ColaResult, _answers, _result, _task, finished_cola
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.fine_tuning import fine_tune
from deltaw.trainers.finished import finish

HERE = Path(__file__).parent
RANK, TRAINED = 8, "trained.safetensors"
# How the ranks of an arm follow from the run with RANK everywhere.
ADVICE = {
    "energy-99": {"rule": "energy", "at": 0.99},
    "energy-90": {"rule": "energy", "at": 0.90},
    "same-need": {"parameters": "same"},
}
ARMS = ["uniform-8", "energy-99", "uniform-5", "same-need", "energy-90", "uniform-2"]


def train(settings: ColaSettings, out: Path) -> ColaResult:
    """As ``train_cola``, and keep what was trained, the head too, to shrink it later."""
    there = finished_cola(settings, out)
    if there is not None:
        return there
    task = _task(settings)
    trained = fine_tune(settings, task, out, progress=True)
    save_file({n: p.detach().clone() for n, p in task.model.named_parameters() if p.requires_grad}, out / TRAINED)
    sentences = task.evaluation["eval_dataset"]
    result = _result(settings, out, trained, len(sentences))
    finish(settings, out, result, _answers(sentences, trained, result.best_epoch))
    return result


def with_arm(settings: ColaSettings, arm: str, out: Path, first: int) -> ColaSettings:
    """The settings of an arm; advice is taken from the first seed's run."""
    kind, _, number = arm.partition("-")
    if kind == "uniform":
        return replace(settings, options={"rank": int(number), "alpha": float(number)})
    file = out / f"{arm}.json"
    if not file.exists():
        write_advice(Trajectory.open(out / f"uniform-{RANK}-s{first}").advice(**ADVICE[arm]), file)
    modules = {name: asdict(of) for name, of in read_advice(file).items()}
    return replace(settings, options={"rank": RANK, "alpha": float(RANK)}, advice=modules, targets=tuple(modules))


@torch.no_grad()
def shrunk(settings: ColaSettings, out: Path) -> list[dict[str, float]]:
    """The score after cutting every s·B A to its best approximation, without training again."""
    task = _task(settings)
    inject(task.model, settings.make_method(), task.targets, trainable=task.heads, seed=settings.seed)
    task.model.load_state_dict(load_file(out / TRAINED), strict=False)
    arguments = TrainingArguments(
        output_dir=str(out / "none"), per_device_eval_batch_size=128, report_to="none", disable_tqdm=True
    )
    layers = adapted(task.model)
    found = {
        name: directions(factors=(layer.tensor("lora_B"), layer.method.scaling * layer.tensor("lora_A")))
        for name, layer in layers.items()
    }
    run, rows = Trajectory.open(out), []
    plans = {f"uniform-{k}": dict.fromkeys(layers, k) for k in (8, 5, 2, 1)}
    for at in (0.99, 0.9, 0.5):
        table = run.advice(rule="energy", at=at)
        plans[f"energy-{at:g}"] = dict(zip(table["module"], table["rank"], strict=True))
    for plan, ranks in plans.items():
        held, whole = 0.0, 0.0
        for name, layer in layers.items():
            of, k = found[name], min(int(ranks[name]), found[name].count)
            sigma = of.spectrum.singular_values
            held, whole = held + float(sigma[:k].square().sum()), whole + float(sigma.square().sum())
            B, A = torch.zeros_like(layer.tensor("lora_B")), torch.zeros_like(layer.tensor("lora_A"))
            B[:, :k] = (of.left[:, :k] * sigma[:k]).to(B) / layer.method.scaling
            A[:k] = of.right[:, :k].T.to(A)
            layer.tensor("lora_B").copy_(B)
            layer.tensor("lora_A").copy_(A)
        trainer = Trainer(task.model, arguments, data_collator=task.collator, **task.evaluation)
        trainer.remove_callback(PrinterCallback)
        score = trainer.evaluate()["eval_mcc"]
        parameters = sum(int(ranks[name]) * (of.in_features + of.out_features) for name, of in layers.items())
        rows.append({"plan": plan, "parameters": parameters, "kept": held / whole, "mcc": score})
    return rows


def main() -> None:
    """Train what is not finished, and write the tables anew after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tables", type=Path, default=HERE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS[:4], choices=ARMS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    given = parser.parse_args()
    plain = {"model": given.model, "data": given.data, "epochs": given.epochs, "learning_rate": given.lr}
    plain |= {"precision": "bfloat16", "group_by_length": True}
    rows, cut, ranks = [], [], []
    for seed in given.seeds:
        for arm in given.arms:
            settings = ColaSettings(method="lora", seed=seed, save_every=1, **plain)
            out = given.out / f"{arm}-s{seed}"
            settings = with_arm(settings, arm, given.out, given.seeds[0])
            result = train(settings, out)
            run = Trajectory.open(out)
            table = run.advice()
            rows.append(
                {"arm": arm, "seed": seed, "parameters": result.trainable, "best_mcc": result.best_mcc}
                | {"best_epoch": result.best_epoch, "final_mcc": result.final_mcc, "epochs": result.epochs}
                | {"loss": float(run.scalars()["loss"].dropna().iloc[-5:].mean())}
            )
            if arm == f"uniform-{RANK}":
                short = table[["module", "layer", "kind", "norm", "relative", "stable_rank", "effective_rank"]]
                ranks += [short.assign(seed=seed, energy_90=table["energy_rank_90"], energy_99=table["energy_rank_99"])]
            pd.DataFrame(rows).to_csv(given.tables / "results.csv", index=False)
            pd.concat(ranks).to_csv(given.tables / "ranks.csv", index=False)
    for seed in given.seeds:
        settings, out = (
            ColaSettings(method="lora", seed=seed, save_every=1, **plain),
            given.out / f"uniform-{RANK}-s{seed}",
        )
        cut += [{"seed": seed} | row for row in shrunk(settings, out)]
        pd.DataFrame(cut).to_csv(given.tables / "shrunk.csv", index=False)


if __name__ == "__main__":
    main()

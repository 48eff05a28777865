"""Makes the experiment's offline files: ``python -m deltaw.trainers.cola.pretrain --out FOLDER``.

    FOLDER/train.tsv, FOLDER/dev.tsv    the labelled sentences of `deltaw.trainers.cola.grammar`
    FOLDER/model/                       a small RoBERTa and its tokenizer, for transformers' Auto classes

The model learns by masked language modelling from acceptable sentences alone, none of them in train or dev. Some
words are masked, some replaced, and the model says what stood there. Two things differ from RoBERTa, because 640
labelled sentences have to suffice later: more words are replaced, most of them by a rival ("is" for "are"); and the
model answers at every position, so that it has to notice which words are out of place.

Source:
    Liu et al., "RoBERTa", 2019, section 2. Answering at every position: Clark et al., "ELECTRA", 2020, section 3.4,
    "All-Tokens MLM". The shape of the model and the rivals are ours.
"""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor
from torch.nn import functional

from deltaw.adapters.errors import DataError
from deltaw.analysis.progress import progress as shown_progress
from deltaw.trainers.cola.grammar import grammatical, paradigms, splits, to_tsv, vocabulary
from deltaw.trainers.pretraining import wrapped, written_anew

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, RobertaForMaskedLM

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # RoBERTa's order: the padding's id is 1
LONGEST = 40  # tokens of one input, <s> and </s> among them

# Shares of the words of a sentence.
MASKED = 0.07
REPLACED = 0.05  # by any word
CONFUSED = 0.08  # by a rival: is for are, taken for took

BATCH_SIZE = 128
LEARNING_RATE = 2e-3
WARMUP_RATIO = 0.05
WEIGHT_DECAY = 0.01
FINETUNING_DROPOUT = 0.1  # written into config.json: 640 sentences can be overfitted
_BATCHES_SORTED = 40  # sorted by length together, so that a batch has little padding

_WRITTEN = {"train.tsv", "dev.tsv", "model"}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: one token a word of the grammar, lower case, RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    return wrapped(tokenizer, LONGEST)


def build_model(tokenizer: PreTrainedTokenizerFast) -> RobertaForMaskedLM:
    """Return the model to pretrain, its weights drawn with torch's global random numbers.

    It has no dropout: a model this small does not overfit. The initial standard deviation, 0.05, is RoBERTa's 0.02
    scaled to the smaller width; with 0.02 it learns markedly slower.
    """
    from transformers import RobertaConfig, RobertaForMaskedLM

    padding = SPECIAL_TOKENS.index("<pad>")
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LONGEST + padding + 1,  # RoBERTa counts positions from padding + 1
        type_vocab_size=1,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=padding,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return RobertaForMaskedLM(config)


def build_rivals(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return for each token id the ids of its rivals in the grammar's paradigms, (vocabulary, most rivals).

    Shorter rows repeat themselves; a word without rivals, "yesterday" or "Mary", has any word in their place.
    """
    ids = tokenizer.get_vocab()
    rivals: dict[str, set[str]] = {}
    for group in paradigms():
        for word in group:
            rivals.setdefault(word, set()).update(set(group) - {word})
    rows = [range(len(SPECIAL_TOKENS), len(ids))] * len(ids)
    lists = {ids[word]: sorted(ids[other] for other in others) for word, others in rivals.items()}
    return torch.stack(
        [torch.tensor(list(islice(cycle(lists.get(index, row)), len(ids)))) for index, row in enumerate(rows)]
    )


def corrupt(ids: Tensor, rivals: Tensor, generator: torch.Generator) -> Tensor:
    """Return the ids with some of the words masked, replaced by any word, or replaced by a rival.

    Arguments:
        ids: Token ids, (batch, length).
        rivals: What `build_rivals` returns; the special tokens come first.
        generator: Draws the positions and the words.

    Example:
        >>> ids = torch.full((1, 1000), 9)
        >>> kept = corrupt(ids, torch.arange(20).expand(20, 20), torch.Generator().manual_seed(0)) == 9
        >>> 0.75 < kept.double().mean() < 0.85
        tensor(True)
    """
    special, size = len(SPECIAL_TOKENS), len(rivals)
    draw = torch.rand(ids.shape, generator=generator).masked_fill(ids < special, 1.0)
    any_word = torch.randint(special, size, ids.shape, generator=generator)
    rival = rivals[ids, torch.randint(size, ids.shape, generator=generator)]
    corrupted = torch.where(draw < MASKED + REPLACED + CONFUSED, rival, ids)
    corrupted = torch.where(draw < MASKED + REPLACED, any_word, corrupted)
    return corrupted.masked_fill(draw < MASKED, SPECIAL_TOKENS.index("<mask>"))


def pretrain(sentences: list[str], *, epochs: int, seed: int, progress: bool = True) -> tuple[Any, Any, float]:
    """Train a model on the sentences.

    Arguments:
        sentences: Acceptable sentences.
        epochs: How often each is seen, corrupted anew every time.
        seed: Of the weights, the order, the corruption and the dropout.
        progress: Whether to draw a progress bar on stderr.

    Returns:
        The model in evaluation mode, its tokenizer, and the mean loss over the last 5 % of the steps, in nats.
    """
    tokenizer = build_tokenizer()
    encoded = [torch.tensor(ids) for ids in tokenizer(sentences)["input_ids"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, rivals, padding = build_model(tokenizer).train(), build_rivals(tokenizer), tokenizer.pad_token_id
        order, generator = Random(seed), torch.Generator().manual_seed(seed)
        steps = epochs * -(-len(encoded) // BATCH_SIZE)
        warmup = max(1, round(WARMUP_RATIO * steps))
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
        )
        losses: list[float] = []
        with shown_progress(steps, "pretrain", "step", progress) as bar:
            for _ in range(epochs):
                for ids in _batches(encoded, order):
                    corrupted, words = corrupt(ids, rivals, generator), ids != padding
                    hidden = model.roberta(corrupted, attention_mask=words.long()).last_hidden_state
                    loss = functional.cross_entropy(model.lm_head(hidden[words]), ids[words])
                    optimizer.zero_grad(set_to_none=True)
                    torch.autograd.backward(loss)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    losses.append(loss.item())
                    bar.update()
                bar.note(loss=f"{sum(losses[-200:]) / len(losses[-200:]):.3f}")
    last = losses[-max(1, steps // 20) :]
    return model.eval(), tokenizer, sum(last) / len(last)


def _batches(encoded: list[Tensor], order: Random) -> list[Tensor]:
    """Return one epoch's batches, (batch, length) each: a random order, similar lengths together."""
    shuffled = order.sample(encoded, len(encoded))
    pool = BATCH_SIZE * _BATCHES_SORTED
    batches = []
    for start in range(0, len(shuffled), pool):
        ordered = sorted(shuffled[start : start + pool], key=len)
        batches += [ordered[i : i + BATCH_SIZE] for i in range(0, len(ordered), BATCH_SIZE)]
    order.shuffle(batches)
    value = SPECIAL_TOKENS.index("<pad>")
    return [torch.nn.utils.rnn.pad_sequence(b, batch_first=True, padding_value=value) for b in batches]


def write_tables(folder: Path) -> None:
    """Write train.tsv and dev.tsv into a folder."""
    for name, examples in zip(("train.tsv", "dev.tsv"), splits(), strict=True):
        (folder / name).write_text(to_tsv(examples), encoding="utf-8", newline="\n")


def build(out: Path, *, sentences: int, epochs: int, seed: int, progress: bool = True) -> float:
    """Make the tables and the model in a folder; an earlier one is replaced only once all is written.

    Arguments:
        out: The folder.
        sentences: How many acceptable sentences to pretrain on.
        epochs: How often each is seen.
        seed: Of the sentences and of the training.
        progress: Whether to draw a progress bar on stderr.

    Returns:
        The loss at the end of pretraining, in nats.

    Raises:
        DataError: ``out`` holds something that this function did not write.
    """
    with written_anew(out, _WRITTEN) as new:
        write_tables(new)
        model, tokenizer, loss = pretrain(grammatical(sentences, seed), epochs=epochs, seed=seed, progress=progress)
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = FINETUNING_DROPOUT
        model.save_pretrained(new / "model")
        tokenizer.save_pretrained(new / "model")
    return loss


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option("--sentences", type=click.IntRange(1), default=60_000, show_default=True, help="To pretrain on.")
@click.option("--epochs", type=click.IntRange(1), default=7, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="The last digits depend on it.")
def main(out: Path, sentences: int, epochs: int, seed: int, threads: int) -> None:
    """Make the offline tables and the pretrained model.

    \b
    python -m deltaw.trainers.cola.pretrain --out builtin
    """
    torch.set_num_threads(threads)
    try:
        loss = build(out, sentences=sentences, epochs=epochs, seed=seed)
    except (DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: loss {loss:.3f} nats a word")


if __name__ == "__main__":
    main()

"""The multi-task mix: batches of one task each, every example once an epoch, in an order that the seed decides."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deltaw.trainers.vl.examples import Example, prompt, target

IGNORED = -100  # a label that counts for nothing


class TaskBatches:
    """Yields the keys of a batch after the other; a key is (epoch, place of the example).

    Each task's examples are shuffled and cut into batches, and the batches of all tasks are shuffled together. So
    every example comes once an epoch, a batch is of one task, and a task has its part of the batches in proportion to
    its size. The order depends on seed and epoch alone, so a run that goes on sees what it would have seen.

    Arguments:
        tasks: The task of every example.
        size: Examples in a batch; the last of a task may have fewer.
        seed: Of the order.

    Source:
        VL-T5's loader of several tasks ("round robin" sampling), which VL-Adapter and DoRA use.

    Example:
        >>> batches = TaskBatches(["vqa", "vqa", "vqa", "nlvr"], size=2, seed=0)
        >>> len(batches), sorted(index for batch in batches for _, index in batch)
        (3, [0, 1, 2, 3])
    """

    def __init__(self, tasks: Sequence[str], size: int, seed: int) -> None:
        self.places = {task: [i for i, other in enumerate(tasks) if other == task] for task in dict.fromkeys(tasks)}
        self.batch_size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the Trainer does."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(places) // self.batch_size) for places in self.places.values())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        random = Random(f"order {self.seed} {self.epoch}")
        batches = []
        for places in self.places.values():
            order = random.sample(places, len(places))
            batches += [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        random.shuffle(batches)
        for batch in batches:
            yield [(self.epoch, index) for index in batch]


class TrainingExamples(Dataset[dict[str, Any]]):
    """Examples as token ids, by the keys of ``TaskBatches``: of several references each epoch draws one.

    Arguments:
        examples: The examples.
        tokenizer: The model's.
        max_length: Longer questions are cut to this many tokens.
        answer_length: So are longer answers.
        seed: Of the draws.
    """

    def __init__(
        self, examples: Sequence[Example], tokenizer: Any, *, max_length: int, answer_length: int, seed: int
    ) -> None:
        self.examples, self.tokenizer, self.answer_length, self.seed = examples, tokenizer, answer_length, seed
        self.prompts = token_ids(tokenizer, [prompt(example) for example in examples], max_length)
        self._answers: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        example = self.examples[index]
        answer = target(example, Random(f"answer {self.seed} {epoch} {index}"))
        if answer not in self._answers:
            self._answers[answer] = token_ids(self.tokenizer, [answer], self.answer_length)[0]
        return {"pictures": example.pictures, "input_ids": self.prompts[index], "labels": self._answers[answer]}


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Return the token ids of texts, cut to a length or to what the tokenizer says that its model can read."""
    found = tokenizer(list(texts), truncation=True, max_length=min(length, tokenizer.model_max_length))
    ids: list[list[int]] = found["input_ids"]
    return ids


class Collator:
    """Makes a batch for ``VLBart``: pictures, text and, where there are any, labels, each padded.

    Arguments:
        features: Features by the picture's key: ``Features``.
        padding: The tokenizer's padding token.
    """

    def __init__(self, features: Any, padding: int) -> None:
        self.features, self.padding = features, padding

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return features (batch, pictures, tokens, width), picture_mask (batch, pictures), input_ids, attention_mask
        and labels (batch, length).
        """
        most = max(len(row["pictures"]) for row in rows)
        features = torch.zeros(len(rows), most, self.features.tokens, self.features.width)
        picture_mask = torch.zeros(len(rows), most, dtype=torch.bool)
        for place, row in enumerate(rows):
            picture_mask[place, : len(row["pictures"])] = True
            for number, key in enumerate(row["pictures"]):
                features[place, number] = self.features[key]
        batch = {"features": features, "picture_mask": picture_mask}
        batch["input_ids"] = _padded([row["input_ids"] for row in rows], self.padding)
        batch["attention_mask"] = _padded([[1] * len(row["input_ids"]) for row in rows], 0)
        if "labels" in rows[0]:
            batch["labels"] = _padded([row["labels"] for row in rows], IGNORED)
        return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])

"""The batches of a training or a test: their order, and who loads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from ...errors import FreePruneError
from ..inputs.batches import Images, inner, telling_items
from ..randomness import seed_all, seeded

DIED = re.compile(r"DataLoader worker .*(killed|exited)")

Collate = Callable[[list[Any]], Any]


class Order:
    """The batches of a training as indices: one shuffle of the data set after another, full batches alone.

    Batches may be taken ahead of the training, by loading processes; where the training is, it says itself.

    Args:
        length: of the data set.
        batch_size: at most the length.
        steps: how many batches there are.
        generator: on the CPU; each shuffle advances its state.
    """

    def __init__(self, length: int, batch_size: int, steps: int, generator: torch.Generator) -> None:
        self._length, self._batch_size, self._steps, self._generator = length, batch_size, steps, generator
        self._full = length // batch_size
        self._before: dict[int, Tensor] = {}  # the generator's state before each shuffle
        self._start = 0
        self._resumed: Tensor | None = None
        self._now: Tensor | None = None

    def state(self, done: int) -> Tensor:
        """The generator's state before the shuffle that the batch after the first `done` is of."""
        shuffle = done // self._full
        self._before = {number: state for number, state in self._before.items() if number >= shuffle}
        return self._before.get(shuffle, self._generator.get_state())

    def go_on(self, done: int, before: Tensor, now: Tensor | None) -> None:
        """Begin after the first `done` batches.

        Args:
            before: what `state(done)` was.
            now: the generator's state to go on with, where others draw from it too.
        """
        self._start, self._resumed, self._now = done, before, now if done % self._full else None

    def __iter__(self) -> Iterator[list[int]]:
        if self._resumed is not None:
            self._generator.set_state(self._resumed)
        rest: Iterator[list[int]] = iter(())
        for number in range(self._start, self._steps):
            shuffle, place = divmod(number, self._full)
            if number == self._start or place == 0:
                self._before[shuffle] = self._generator.get_state()
                shuffled = torch.randperm(self._length, generator=self._generator)[: self._full * self._batch_size]
                rest = iter(shuffled.view(self._full, self._batch_size)[place:].tolist())
                if number == self._start and self._now is not None:
                    self._generator.set_state(self._now)
            yield next(rest)


class Numbered:
    """Batches with the place of each item among all items of the training; of each batch the part of one process.

    Args:
        order: the batches.
        first: the number of the first batch.
        part: from the size of a batch to the part.
    """

    def __init__(self, order: Order, first: int, part: Callable[[int], slice]) -> None:
        self._order, self._first, self._part = order, first, part

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number, indices in enumerate(self._order, start=self._first):
            numbered = [(number * len(indices) + place, index) for place, index in enumerate(indices)]
            yield numbered[self._part(len(indices))]


class Failure:
    """An error in a loading process, on its way to the main process."""

    def __init__(self, error: FreePruneError) -> None:
        self.error = error


@dataclass(frozen=True)
class Whole:
    """A batch as it is stored, from a loading process: a quarter of the bytes of what it is normalised to.

    Attributes:
        pixels: of `Images.raw`.
        labels: of the same.
    """

    pixels: Tensor
    labels: Tensor | None


class Drawn(Dataset[Any]):
    """A data set whose random draws are decided by the seed and the place of an item in the training alone.

    So they are the same for any number of loading processes and of devices, and after an interruption. Errors come back as
    values, since loading processes would send them with tracebacks as text.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, collate: Collate | None = None) -> None:
        self.dataset, self._seed = dataset, seed
        images, self._numbers = inner(dataset)
        # Images draw nothing, and make batches at once.
        self._images = images if collate is None and isinstance(images, Images) else None

    def __getitem__(self, numbered: tuple[int, int]) -> Any:
        place, index = numbered
        seed = int(np.random.SeedSequence([self._seed, place]).generate_state(1)[0])
        if get_worker_info() is not None:  # the states of a loading process are nobody else's
            seed_all(seed)
            return self.dataset[index]
        with seeded(seed):
            return self.dataset[index]

    def __getitems__(self, numbered: list[tuple[int, int]]) -> Any:
        try:
            with telling_items(self.dataset):
                if self._images is None:
                    return [self[one] for one in numbered]
                indices = [index for _, index in numbered]
                return Whole(*self._images.raw(indices if self._numbers is None else [self._numbers[i] for i in indices]))
        except FreePruneError as error:
            return Failure(error)


class Collated:
    """Makes batches of items in a loading process; failures pass."""

    def __init__(self, dataset: Dataset[Any], collate: Collate | None) -> None:
        self._dataset, self._collate = dataset, collate or default_collate

    def __call__(self, items: Any) -> Any:
        if isinstance(items, Failure | Whole):
            return items
        try:
            with telling_items(self._dataset):
                return self._collate(items)
        except FreePruneError as error:
            return Failure(error)


def loader(
    dataset: Dataset[Any],
    batches: Any,
    collate: Collate | None,
    loaders: int,
    pinned: bool,
    generator: torch.Generator | None = None,
) -> DataLoader[Any]:
    """A loader in processes of its own, or in this one where there are none; batches are `Numbered`, the data set `Drawn`.

    Args:
        loaders: how many processes.
        generator: gives the loader a seed of its own, which nothing here depends on.
        pinned: whether batches are put into memory that a GPU copies from while it computes.
    """
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=Collated(dataset, collate), num_workers=loaders, pin_memory=pinned,
        generator=generator or torch.Generator(),
    )  # fmt: skip


def batches_of(dataset: Dataset[Any], iterator: Iterator[Any], loaders: int = 0, *, reused: bool = False) -> Iterator[Any]:
    """Yields the batches of a loader's iterator; an error of the data set becomes a sentence.

    Args:
        loaders: how many processes load, for sentences.
        reused: whether a batch may be written over by the next one.

    Raises:
        FreePruneError: the data set fails, or a loading process died.
    """
    out: Tensor | None = None  # the memory of one batch after the other
    while True:
        with telling_items(dataset):
            try:
                batch = next(iterator, None)
            except RuntimeError as error:
                if not DIED.search(str(error)):
                    raise
                raise FreePruneError(
                    f"a loading process died, perhaps out of memory; lower `loaders` (now {loaders}) or `batch_size`, and go "
                    "on with `resume=True`"
                ) from error
        if batch is None:
            return
        if isinstance(batch, Failure):
            raise batch.error
        if isinstance(batch, Whole):
            out = inner(dataset)[0].normalised(batch.pixels, out if reused else None)
            batch = out if batch.labels is None else [out, batch.labels]
        yield batch

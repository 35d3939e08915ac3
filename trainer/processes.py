"""The processes that share a training: one, or as many as torchrun or `accelerate launch` started.

Every process holds the whole model and plans the same steps; they share the texts of a batch among them, so that a text
is encoded once however many processes there are, and every query meets every passage of the batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from heapq import heapify, heapreplace
from typing import Literal

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from trainer.errors import TrainerError

_BUCKET = 16 << 20  # numbers that are summed in one message
# The others wait while the main process makes the tokens of millions of texts; NCCL gives up after ten minutes.
_LONGEST_WAIT = timedelta(hours=12)


class Processes:
    """This process among the others: `rank` of `count`, with its device."""

    def __init__(self, device: Literal["auto", "cpu"]) -> None:
        state = PartialState(cpu=device == "cpu", timeout=_LONGEST_WAIT)
        self.rank, self.count, self.device = state.process_index, state.num_processes, state.device
        self._wait = state.wait_for_everyone

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when every process is here.

        Raises:
            TrainerError: Another process is gone.
        """
        with self._together():
            self._wait()

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in messages of a bounded size.

        Raises:
            TrainerError: Another process is gone.
        """
        if self.count == 1:
            return
        with self._together():
            self._add_up(tensors)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo and NCCL have no other for a peer that does not answer
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise TrainerError(
                f"process {self.rank} of {self.count} lost another one, which was killed or stopped with a message of "
                "its own: run the same command again, it goes on from the last checkpoint"
            ) from error

    def _add_up(self, tensors: Iterable[Tensor]) -> None:
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and (
                sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET or bucket[0].dtype != tensor.dtype
            ):
                _add_up(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            _add_up(bucket)


def _add_up(bucket: list[Tensor]) -> None:
    flat = _flatten_dense_tensors(bucket)
    distributed.all_reduce(flat)
    for tensor, total in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
        tensor.copy_(total)


def shared_out(costs: Sequence[float], count: int) -> list[int]:
    """The process of each piece of work: the next dearest goes to the one with the least to do so far."""
    loads = [(0.0, rank) for rank in range(count)]
    heapify(loads)
    owners = [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        load, rank = loads[0]
        owners[place] = rank
        heapreplace(loads, (load + costs[place], rank))
    return owners

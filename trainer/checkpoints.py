"""The state of a training on disk: what it takes to go on as if it had never stopped.

Nothing is drawn from a running generator (every draw is a function of seed, step and place), so weights, moments and
the step's number are all. Processes hold the same state; the main one writes it, all read it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from trainer.errors import TrainerError

_CHECKPOINT = "checkpoint.pt"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other calls out of a training's folder, which is made where it is missing and goes when nothing is in it.

    A training that is refused before its first checkpoint leaves nothing.

    Raises:
        TrainerError: Another call has it, or something else has its name.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise TrainerError(f"{error.filename} is in the way, and is no folder: move it away") from error
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        raise TrainerError(f"{folder} was just left by another call: run the same command again") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it for a call that was killed
        except BlockingIOError as error:
            raise TrainerError(
                f"{folder} is in use: this recipe is being trained by another call; wait for it, or give the recipe "
                "another name"
            ) from error
        if not _is_still(handle, folder):
            raise TrainerError(f"{folder} was just left by another call: run the same command again")
        try:
            yield
        except TrainerError:
            if _is_still(handle, folder) and not (folder / _CHECKPOINT).exists():
                _clear(folder)
            raise
        finally:
            if _is_still(handle, folder) and not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(handle)


def _is_still(handle: int, folder: Path) -> bool:
    """Whether the open folder still has this name."""
    return folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat())


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class Checkpoints:
    """The newest checkpoint of a folder, for one identity: what decides the weights it ends with."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._path, self._identity = folder / _CHECKPOINT, identity

    def save(
        self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, journal: dict[str, int]
    ) -> None:
        """Write the state after a step, by one rename: a kill leaves the old checkpoint or the new one."""
        state = {
            "identity": self._identity,
            "step": step,
            "model": dict(_trained(model)),
            "optimizer": optimizer.state_dict(),
            "journal": journal,
        }
        partial = self._path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)  # on a full disk it would be in the way of what makes room
            raise
        partial.rename(self._path)

    def is_of_another(self) -> bool:
        """Whether a checkpoint is there and belongs to another recipe, release or base model."""
        return self._path.is_file() and self._read()["identity"] != self._identity

    def num_steps(self) -> int:
        """Steps that the checkpoint has behind it; 0 without one."""
        return int(self._read()["step"]) if self._path.is_file() else 0

    def clear(self) -> None:
        """Remove everything in the folder, which itself is held."""
        _clear(self._path.parent)

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, int]] | None:
        """Put the state back; the number of steps done and the journal's mark, or None where there is nothing."""
        if not self._path.is_file():
            return None
        state = self._read()
        with torch.no_grad():
            for name, parameter in _trained(model):
                parameter.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["journal"]

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
            _ = state["identity"], state["step"], state["model"], state["optimizer"], state["journal"]
        except (RuntimeError, ValueError, EOFError, KeyError, TypeError, UnpicklingError) as error:
            raise TrainerError(
                f"{self._path} is broken: remove {self._path.parent} to begin this training anew"
            ) from error
        return state


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

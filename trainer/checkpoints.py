"""The state of a training on disk: what it takes to go on as if it had never stopped.

Nothing is drawn from a running generator (every draw is a function of seed, step and place), so weights, moments and
the step's number are all. Processes hold the same state; the main one writes it, all read it.
"""

import os
from pathlib import Path
from typing import Any

import torch


class Checkpoints:
    """The newest checkpoint of a folder, for one identity (recipe and release)."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._path, self._identity = folder / "checkpoint.pt", identity

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
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._path)

    def is_of_another(self) -> bool:
        """Whether a checkpoint is there and belongs to another recipe or release."""
        return self._path.is_file() and self._read()["identity"] != self._identity

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
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        return state


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]

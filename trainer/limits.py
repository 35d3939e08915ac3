"""What the machine has too little of while it trains, memory or room on its disk, as one line that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe

_NO_MEMORY = ("allocate memory", "bad_alloc", "os error 12", "can't start new thread")
_NO_ROOM = (
    "No space left", "File too large", "Disk quota exceeded", "file write failed", "os error 28", "os error 27",
    "unexpected pos",  # what torch.save says when its bytes did not arrive
)  # fmt: skip
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def limits_told(recipe: TrainRecipe, folder: Path) -> Iterator[None]:
    """Turns what torch, safetensors and the system say of a limit into a line that names the knobs.

    Raises:
        TrainerError: Memory is short, or the folder cannot be written.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise TrainerError(
                f"out of memory: lower kept_tokens = {recipe.kept_tokens} (0 keeps no graph), then chunk_tokens = "
                f"{recipe.chunk_tokens}, which keep the steps that are done; or max_length = {recipe.max_length}, or "
                "choose a smaller model"
            ) from error
        if _is_of_disk(error):
            raise TrainerError(
                f"{folder.parent} cannot be written ({error}): mend that and run the same command again, it goes on "
                "from the last checkpoint"
            ) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is how torch, NumPy, safetensors or the system tell that memory is short."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(told in str(error) for told in _NO_MEMORY)


def _is_of_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK
    return any(told in str(error) for told in _NO_ROOM)

"""Models that are kept on the way: by value, with adapters too, through kills, and asked for at the wrong moment."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.test_training import StopError, assert_same, recipe, started_training, stopped_at
from trainer.backbones import save_model
from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.training import train


def _after(num_steps: int, asked: TrainRecipe, folders: tuple[Path, Path], folder: Path) -> dict[str, torch.Tensor]:
    """Weights after so many steps, which are taken by hand."""
    run = started_training(asked, *folders, folder)
    run.model.train()
    for number in range(num_steps):
        run.learner.take(number, run.steps[number])
    save_model(run.model, folder / "saved")
    return load_file(folder / "saved" / "model.safetensors")


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_they_are_those_of_their_steps_however_often_it_is_cut_off(
    lora: dict[str, int] | None, release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folders, asked = (release, tiny_model), recipe(checkpoint_every=3, dropout=0.1, pooling="log1p", lora=lora)
    plain = train(asked, *folders, output=tmp_path / "plain" / "toy").folder
    assert not (plain / "steps").exists()
    output, begun = tmp_path / "toy", []

    def stop(done: int, total: int | None) -> None:
        begun.append(done)
        # Cut off after step 2, before any checkpoint; after step 5, with a checkpoint of step 3; the last call goes on.
        if begun in ([0, 1, 2], [0, 1, 2, 0, 1, 2, 3, 4, 5]):
            raise StopError

    for _ in range(2):
        with pytest.raises(StopError):
            train(asked, *folders, output=output, keep_after=(2, 5), progress=stop)
    result = train(asked, *folders, output=output, keep_after=(2, 5), progress=stop)
    assert begun[9:] == [3, 4, 5, 6, 7, 8]
    assert_same(plain, result.folder)
    for number in (2, 5):
        mine = load_file(result.folder / "steps" / str(number) / "model.safetensors")
        theirs = _after(number, asked, folders, tmp_path / str(number))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_was_begun_or_done_without_them_is_not_gone_on_with(
    release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folders, asked, output = (release, tiny_model), recipe(max_steps=4), tmp_path / "toy"
    stopped_at(3, asked, folders, output)
    told: list[str] = []
    begun: list[int] = []

    def count(done: int, total: int | None) -> None:
        begun.append(done)

    train(asked, *folders, output=output, keep_after=(3,), progress=count, tell=told.append)
    assert begun[:2] == [2, 3]  # step 3 was still to be taken
    stopped_at(3, asked, folders, tmp_path / "late" / "toy")
    train(asked, *folders, output=tmp_path / "late" / "toy", keep_after=(2,), tell=told.append)
    assert told[-1].startswith("'toy' was begun without keeping the models that are asked for: that is cleared")
    assert_same(output, tmp_path / "late" / "toy")
    with pytest.raises(TrainerError, match=r"was trained without keeping the model after step 1: remove it first"):
        train(asked, *folders, output=output, keep_after=(1, 3))
    for number in (0, 5):
        with pytest.raises(TrainerError, match=r"the training has steps 1 to 4"):
            train(asked, *folders, output=tmp_path / "none", keep_after=(number,))

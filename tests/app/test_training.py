"""Which release a recipe names: a retired one is refused by its name, and taken where its folder is named."""

import shutil
from pathlib import Path

import pytest

from app.errors import AppError
from app.training import release_folder
from curation.errors import CurationError
from curation.release.catalogue import retire_release
from db.store import Store
from trainer.recipe import TrainRecipe


def test_a_retired_release_is_refused_by_name(
    toy_releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(toy_releases / "gradus", tmp_path / "data"))
    monkeypatch.setenv("GRADUS_DATA", str(data))
    monkeypatch.delenv("GRADUS_STORE", raising=False)
    recipe = TrainRecipe(name="toy", release="toy-1.0.0")
    assert release_folder(recipe) == data / "releases" / "toy-1.0.0"
    store = Store.open(f"sqlite:///{data / 'store.db'}")
    retire_release(store, "toy-1.0.0", "wrong negatives")
    store.close()
    with pytest.raises(CurationError, match=r"was retired on .*: wrong negatives"):
        release_folder(recipe)
    assert release_folder(TrainRecipe(name="toy", release="toy-1.1.0")).name == "toy-1.1.0"
    pointed_at = TrainRecipe(name="toy", release=str(data / "releases" / "toy-1.0.0" / "."))
    assert release_folder(pointed_at) == data / "releases" / "toy-1.0.0"
    (data / "store.db").unlink()
    assert release_folder(recipe).is_dir()
    with pytest.raises(AppError, match="no folder, and no release in"):
        release_folder(TrainRecipe(name="toy", release="nothing"))

"""Training: killed at any step it ends with the same weights, and it learns what it is shown."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import read_release
from trainer.training import plan_training, train

ROOT = Path(__file__).parents[2]
ANIMALS = ("otter", "heron", "badger", "lynx", "viper", "falcon", "beetle", "salmon")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight examples with ranks 1 to 4 (one lacks rank 4) and two mined negatives."""
    folder = tmp_path_factory.mktemp("release")
    rows = []
    for number, animal in enumerate(ANIMALS):
        other = ANIMALS[(number + 1) % len(ANIMALS)]
        written = [
            _negative(f"{animal} {word} number {number}", rank, "synthetic")
            for rank, word in enumerate(["eats", "sleeps", "runs", "bank"][: 3 if number == 2 else 4], start=1)
        ]
        mined = [_negative(f"the {other} lives in place {i}", None, "mined") for i in range(2)]
        rows.append(
            {
                "example_id": f"e{number}", "query": f"where does the {animal} live", "query_id": f"q{number}",
                "positive": f"the {animal} lives in habitat {number}", "positive_id": f"p{number}",
                "num_synthetic_slots": 1 + number % 2, "num_mined_slots": 1, "negatives": written + mined,
            }
        )  # fmt: skip
    (folder / "graded").mkdir()
    name = "graded/train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest = {"name": "toy-1.0.0", "digest": "d" * 64, "files": {name: {"sha256": digest}}}
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    return folder


def _negative(text: str, rank: int | None, origin: str) -> dict[str, object]:
    return {"id": hashlib.sha256(text.encode()).hexdigest(), "text": text, "rank": rank, "origin": origin}


def recipe(**changes: object) -> TrainRecipe:
    fields = {"name": "toy", "release": "toy-1.0.0", "batch_size": 4, "max_length": 16, "checkpoint_every": 2}
    return TrainRecipe.model_validate({**fields, **changes})


def minilm() -> Path:
    from curation.embeddings import model_folder

    return model_folder("minilm")


def test_killed_at_several_steps_it_ends_with_the_same_weights(release: Path, tmp_path: Path) -> None:
    whole = train(recipe(), release, minilm(), output=tmp_path / "whole" / "toy")
    code = (
        "import sys; from pathlib import Path\n"
        "from trainer.recipe import TrainRecipe; from trainer.training import train\n"
        "def told(done, total): print(done, flush=True)\n"
        "train(TrainRecipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]),"
        " output=Path(sys.argv[4]), progress=told)"
    )
    target = tmp_path / "killed" / "toy"
    command = [sys.executable, "-c", code, recipe().model_dump_json(), str(release), str(minilm()), str(target)]
    for last_step in ("1", "3", "6"):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == last_step:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    one, other = load_file(whole.folder / "model.safetensors"), load_file(target / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    for file in ("metrics.jsonl", "margins.parquet"):
        assert (whole.folder / file).read_bytes() == (target / file).read_bytes()
    assert not list(target.parent.glob(".*"))


def test_again_it_changes_nothing_and_another_recipe_is_refused(release: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy"
    first = train(recipe(), release, minilm(), output=output)
    stamp = (output / "model.safetensors").stat().st_mtime_ns
    time.sleep(0.01)
    second = train(recipe(), release, minilm(), output=output)
    assert (first.is_new, second.is_new) == (True, False)
    assert (output / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(TrainerError, match="another name"):
        train(recipe(seed=1), release, minilm(), output=output)


def test_loss_falls_and_margins_name_every_negative(release: Path, tmp_path: Path) -> None:
    result = train(recipe(schedule="fixed:1", learning_rate=1e-4), release, minilm(), output=tmp_path / "toy")
    losses = [block["loss"] for block in result.summary["blocks"]]
    assert losses[-1] < losses[0]
    margins = pq.read_table(result.folder / "margins.parquet").to_pylist()
    per_block = sum(1 + number % 2 + 1 for number in range(len(ANIMALS)))
    assert len(margins) == 4 * per_block


def test_plan_counts_negatives_of_another_rank(release: Path) -> None:
    plan = plan_training(recipe(), release)
    assert [row["rank"] for row in plan] == [4, 3, 2, 1]
    assert {row["rows"] for row in plan} == {8}
    # Four examples have a second written slot, which their one negative of the rank cannot fill; one lacks rank 4.
    assert [row["of another rank"] for row in plan] == [5, 4, 4, 4]


def test_release_faults_are_told(release: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"manifest\.json"):
        read_release(tmp_path)
    with pytest.raises(TrainerError, match="no split 'dev'"):
        read_release(release, "dev")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(release), str(copy)], check=True)
    with (copy / "graded" / "train-00000-of-00001.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TrainerError, match="not what its manifest says"):
        read_release(copy)

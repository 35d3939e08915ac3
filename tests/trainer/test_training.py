"""Training: killed at any step it ends with the same weights, alone or as two; it learns; its faults are told."""

import copy
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from trainer.backbones import weights_digest
from trainer.contrast import known_positives
from trainer.errors import TrainerError
from trainer.outlook import outlook
from trainer.recipe import TrainRecipe
from trainer.release import read_release
from trainer.training import train

from .conftest import ANIMALS, toy_rows

ROOT = Path(__file__).parents[2]
_CODE = (
    "import sys; from pathlib import Path\n"
    "from trainer.recipe import TrainRecipe; from trainer.training import train\n"
    "def told(done, total): print(done, flush=True)\n"
    "train(TrainRecipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]),"
    " output=Path(sys.argv[4]), progress=told, keep_after=(3,))"
)


def recipe(**changes: object) -> TrainRecipe:
    fields = {
        "name": "toy", "release": "toy-1.0.0", "batch_size": 4, "max_length": 16, "checkpoint_every": 2,
        "chunk_tokens": 64, "bf16": "off", "device": "cpu",
    }  # fmt: skip
    return TrainRecipe.model_validate({**fields, **changes})


# Everything at once: dropout, chunks that run twice, every term of the loss, two batches a step.
FULL = recipe(
    dropout=0.1, kept_tokens=100, batch_size=2, accumulate=2, mask_margin=0.1, ordering={}, max_steps=8,
    distillation={"teacher": "judge"}, matryoshka={"dimensions": [32, 8]}, negatives={"written": 3, "mined": 1},
    grades={"hard": {"weight": 2, "margin": 0.05}, "easy": {"temperature": 0.1}}, query_prompt="{instruction} ",
    learning_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(release: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full recipe, trained without a break in one process, on one thread like those that are killed."""
    target = tmp_path_factory.mktemp("whole") / "toy"
    run((release, tiny_model), target)
    return target


def started(folders: tuple[Path, Path], target: Path, rank: int = 0, port: int | None = None) -> subprocess.Popen[str]:
    """A process that trains the full recipe; one of two where there is a port."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    if port is not None:
        env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        env["MASTER_PORT"] = str(port)
    command = [sys.executable, "-c", _CODE, FULL.model_dump_json(), *map(str, folders), str(target)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_of(process: subprocess.Popen[str]) -> Iterator[int]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit():
            yield int(line)


def run(folders: tuple[Path, Path], target: Path, *, count: int = 1, kill_at: int | None = None) -> None:
    """Train, on `count` processes; with `kill_at`, kill all at once when that step begins."""
    port = None
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    processes = [started(folders, target, rank, port) for rank in range(count)]
    if kill_at is not None:
        for step in steps_of(processes[0]):
            if step == kill_at:
                break
        for process in processes:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if kill_at is not None else 0), errors[-3000:]


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit: weights, metrics and margins."""
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for file in ("metrics.jsonl", "margins.parquet"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def assert_same_way(one: Path, other: Path) -> None:
    """Bit for bit: what was kept after step 3, and all at the end."""
    assert_same(one, other)
    mine, theirs = (load_file(folder / "steps" / "3" / "model.safetensors") for folder in (one, other))
    end = load_file(one / "model.safetensors")
    assert mine.keys() == theirs.keys() == end.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not all(torch.equal(mine[name], end[name]) for name in mine)


def test_killed_at_several_steps_it_ends_with_the_same_weights(
    whole: Path, release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "killed" / "toy"
    for step in (1, 4, 7):
        run((release, tiny_model), target, kill_at=step)
    run((release, tiny_model), target)
    assert_same_way(whole, target)
    assert not list(target.parent.glob(".*"))


@pytest.mark.slow
def test_two_processes_equal_one_and_resume_exactly(
    whole: Path, release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight" / "toy", tmp_path / "killed" / "toy"
    run((release, tiny_model), straight, count=2)
    run((release, tiny_model), killed, count=2, kill_at=5)
    run((release, tiny_model), killed, count=2)
    assert_same_way(straight, killed)
    assert orjson.loads((killed / "training.json").read_bytes())["num_processes"] == 2
    # The same global batch on one process: the same but for the order in which gradients are added up. Adam blows up
    # what rounding leaves of gradients that are zero by symmetry (a key's bias moves all scores alike).
    one, two = load_file(whole / "model.safetensors"), load_file(straight / "model.safetensors")
    unused = load_file(tiny_model / "model.safetensors")["pooler.dense.weight"]
    assert torch.equal(one["pooler.dense.weight"], unused) and torch.equal(two["pooler.dense.weight"], unused)
    for name, weights in one.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(two[name], weights, atol=1e-4, rtol=1e-3)
    for line, other in zip(metrics_of(whole), metrics_of(straight), strict=True):
        for name in ("loss", "gradient_norm", "query_gradient_variance", "positive", "written", "mined"):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def test_again_it_changes_nothing_and_another_recipe_is_refused(
    whole: Path, release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    stamp = (whole / "model.safetensors").stat().st_mtime_ns
    assert not train(FULL, release, tiny_model, output=whole).is_new
    assert (whole / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(TrainerError, match=r"differs in .*seed.*; give the recipe another name"):
        train(recipe(seed=1), release, tiny_model, output=whole)
    with pytest.raises(TrainerError, match="no model that Gradus trained"):
        train(recipe(), release, tiny_model, output=tmp_path)


def test_leftovers_of_another_recipe_are_no_start(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    stopped_at(3, recipe(seed=4), (release, tiny_model), tmp_path / "toy")
    assert (tmp_path / ".toy.partial" / "checkpoint.pt").is_file()
    told: list[str] = []
    mixed = train(recipe(), release, tiny_model, output=tmp_path / "toy", tell=told.append).folder
    assert "'toy' was begun with another recipe" in told[-1]
    told.clear()
    clean = train(recipe(), release, tiny_model, output=tmp_path / "clean" / "toy", tell=told.append).folder
    assert not any("begun" in line for line in told)
    assert_same(clean, mixed)


class StopError(Exception):
    pass


def stopped_at(step: int, asked: TrainRecipe, folders: tuple[Path, Path], output: Path) -> list[int]:
    """Begin or go on until this step; the steps that were begun."""
    begun: list[int] = []

    def stop(done: int, total: int | None) -> None:
        begun.append(done)
        if done == step:
            raise StopError

    with pytest.raises(StopError):
        train(asked, *folders, output=output, progress=stop)
    return begun


def test_knobs_of_memory_cost_no_step_that_was_done(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    folders, output = (release, tiny_model), tmp_path / "toy"
    fast = {"learning_rate": 1e-3}
    assert stopped_at(5, recipe(**fast), folders, output) == [0, 1, 2, 3, 4, 5]
    short = {**fast, "kept_tokens": 0, "checkpoint_every": 3}
    assert stopped_at(6, recipe(**short), folders, output) == [4, 5, 6]
    result = train(recipe(**short, chunk_tokens=32), *folders, output=output)
    whole = train(recipe(**fast), *folders, output=tmp_path / "whole" / "toy")
    one, other = (load_file(each.folder / "model.safetensors") for each in (result, whole))
    for name, weights in one.items():
        if not name.endswith("key.bias"):  # zero but for rounding, which Adam blows up
            torch.testing.assert_close(other[name], weights, atol=1e-4, rtol=1e-3)
    assert not train(recipe(**fast), *folders, output=output).is_new


def test_other_base_weights_are_another_training(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    other, output = tmp_path / "other", tmp_path / "toy"
    shutil.copytree(tiny_model, other)
    weights = load_file(other / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] += 0.1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    adapted = recipe(lora={"rank": 2}, max_steps=6)
    stopped_at(4, adapted, (release, tiny_model), output)
    assert stopped_at(5, adapted, (release, other), output) == [0, 1, 2, 3, 4, 5]
    summary = train(adapted, release, other, output=output).summary
    assert summary["weights_digest"] == weights_digest(other) != weights_digest(tiny_model)
    with pytest.raises(TrainerError, match=r"another recipe, release or base model"):
        train(adapted, release, tiny_model, output=output)


def test_the_saved_model_reads_what_it_was_trained_on(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    base = SentenceTransformer(str(tiny_model), device="cpu")
    base.max_seq_length = 8
    base.save(str(short), create_model_card=False)
    assert SentenceTransformer(str(short), device="cpu").max_seq_length == 8
    for length, expected in ((24, 24), (8, 8)):
        asked = recipe(max_length=length, max_steps=1, schedule="mixture")
        folder = train(asked, release, short, output=tmp_path / str(length) / "toy").folder
        model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        assert model.max_seq_length == expected
        assert model.preprocess(["the otter " * 40])["input_ids"].shape[1] == expected
    whole = train(recipe(max_steps=1, schedule="mixture"), release, tiny_model, output=tmp_path / "toy").folder
    assert SentenceTransformer(str(whole), trust_remote_code=True, device="cpu").max_seq_length == 32


def test_loss_falls_and_margins_name_every_negative(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    asked = recipe(schedule="fixed:1", learning_rate=2e-3)
    result = train(asked, release, tiny_model, output=tmp_path / "toy")
    losses = [block["loss"] for block in result.summary["blocks"]]
    assert losses[-1] < losses[0]
    margins = pq.read_table(result.folder / "margins.parquet").to_pylist()
    per_block = sum(1 + number % 2 + 1 for number in range(len(ANIMALS)))
    assert len(margins) == 4 * per_block
    lines = metrics_of(result.folder)
    assert [line["step"] for line in lines] == list(range(8))
    for line in lines:
        mine = [row for row in margins if row["step"] == line["step"]]
        for label, values in line["ranks"].items():
            of_rank = [row["margin"] for row in mine if str(row["rank"] or "mined") == label]
            assert values["negatives"] == len(of_rank)
            assert values["margin"] == pytest.approx(sum(of_rank) / len(of_rank), abs=2e-6)
            assert values["above_positive"] == pytest.approx(sum(m < 0 for m in of_rank) / len(of_rank), abs=2e-6)
            assert values["gradient_variance"] >= 0
    assert {row["rank"] for row in result.summary["ranks"]} == {"1", "2", "mined"}
    assert result.summary["num_texts_cut"] > 0


def test_metrics_are_written_for_tensorboard(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "runs"))
    events.Reload()
    assert {"step/loss", "margin/1", "gradient_variance/mined", "similarity/4"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("step/loss")] == list(range(8))


def test_it_learns_only_what_follows_from_the_gradient(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Gradients that are added over batches equal those of one batch when nothing counts across rows."""
    alone = {"grades": {"in_batch": {"weight": 0}}, "max_steps": 3, "schedule": "mixture"}
    one = train(recipe(**alone, batch_size=8), release, tiny_model, output=tmp_path / "one" / "toy")
    two = train(recipe(**alone, batch_size=4, accumulate=2), release, tiny_model, output=tmp_path / "two" / "toy")
    mine, theirs = (load_file(result.folder / "model.safetensors") for result in (one, two))
    for name, weights in mine.items():
        if not name.endswith("key.bias"):  # zero but for rounding, which Adam blows up
            torch.testing.assert_close(theirs[name], weights, atol=1e-5, rtol=1e-4)


def test_adapters_alone_learn_and_are_merged_when_saved(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    adapted = recipe(lora={"rank": 2, "alpha": 4, "dropout": 0.2}, learning_rate=1e-2, max_steps=3, kept_tokens=0)
    result = train(adapted, release, tiny_model, output=tmp_path / "toy")
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(result.folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("weight") and before[name].dim() == 2 for name in changed)
    assert not any("embeddings" in name for name in changed)


def test_prompts_are_put_before_queries_and_left_out_of_pooling(
    release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    prompted = recipe(query_prompt="{instruction} ", passage_prompt="the ", include_prompt=False, max_steps=2)
    train(prompted, release, tiny_model, output=tmp_path / "toy")
    found = read_release(release)
    run = started_training(prompted, release, tiny_model, tmp_path)
    tokens, texts = run.encoder.tokens, run.texts
    assert set(texts.queries) == {f"of many {example.query}" for example in found.examples}
    assert tokens.num_prompt.tolist() == [3] * len(texts.queries) + [2] * len(texts.passages)  # with the opening token
    numbers = [0, len(texts.queries), 1]
    vectors = run.encoder.encode(numbers, (0,)).embeddings_ME
    for place, prompt in enumerate(("of many ", "the ", "of many ")):
        text = list(texts.with_prompts())[numbers[place]][0].removeprefix(prompt)
        expected = run.model.encode([text], prompt=prompt, convert_to_tensor=True, normalize_embeddings=False)[0]
        torch.testing.assert_close(vectors[place].detach(), expected, atol=1e-5, rtol=1e-4)


def started_training(asked: TrainRecipe, release: Path, tiny_model: Path, folder: Path) -> Any:
    """A training before its first step."""
    from trainer.curriculum import plan_steps
    from trainer.processes import Processes
    from trainer.training import _Training

    found = read_release(release)
    steps = plan_steps(asked, found.examples)
    partial = folder / ".started.partial"
    return _Training(asked, found, steps, tiny_model, partial, processes=Processes("cpu"), identity="one")


def test_a_rehearsal_leaves_no_trace(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = started_training(recipe(), release, tiny_model, tmp_path)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.learner.rehearse(run.steps)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert not run.learner.optimizer.state
    run.learner.take(0, run.steps[0])
    moments = copy.deepcopy(run.learner.optimizer.state_dict()["state"])
    run.learner.rehearse(run.steps)  # of a training that goes on
    for key, state in run.learner.optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[key][name], tensor) for name, tensor in state.items())


def test_a_rehearsal_holds_the_optimisers_moments(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = started_training(recipe(), release, tiny_model, tmp_path)
    held: list[int] = []
    run.model.register_forward_hook(lambda *_: held.append(len(run.learner.optimizer.state)))
    run.learner.rehearse(run.steps)
    assert held and set(held) == {len(run.learner.parameters)}


def test_plan_counts_negatives_of_another_rank(release: Path, tiny_model: Path) -> None:
    plan = outlook(recipe(), release, tiny_model).plan
    assert [row["rank"] for row in plan] == [4, 3, 2, 1]
    assert {row["rows"] for row in plan} == {8}
    # Four examples have a second written slot, which their one negative of the rank cannot fill; one lacks rank 4.
    assert [row["of another rank"] for row in plan] == [5, 4, 4, 4]


def test_every_known_positive_is_read(release_of: Callable[[list[dict[str, Any]]], Path]) -> None:
    rows = toy_rows()
    for row in rows:
        row["more_positives"] = [{"text": "it bank"}, {"text": "in water"}] if row["example_id"] == "e1" else []
    known = known_positives(read_release(release_of(rows)).examples)
    assert known[rows[1]["query"]] == {rows[1]["query"], rows[1]["positive"], "it bank", "in water"}
    assert known[rows[0]["query"]] == {rows[0]["query"], rows[0]["positive"]}


def test_release_faults_are_told(release: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"manifest\.json"):
        read_release(tmp_path)
    with pytest.raises(TrainerError, match="no split 'dev'"):
        read_release(release, "dev")
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    with (copy / "graded" / "train-00000-of-00001.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TrainerError, match="not what its manifest says"):
        read_release(copy)


Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def without(column: str) -> Change:
    return lambda rows: [{name: value for name, value in row.items() if name != column} for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:1], r"split 'train' has 1 example"),
        (without("positive"), r"lacks the column 'positive'"),
        (without("negatives"), r"lacks the column 'negatives'"),
        (lambda rows: [{**row, "negatives": row["negatives"][-2:]} for row in rows], r"no graded negatives.*'mixture'"),
        (
            lambda rows: [{**rows[0], "query": " "}, *rows[1:]],
            r"row 1 \(example 'e0'\): query = ' ': a text belongs there",
        ),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_told(
    change: Change, message: str, release_of: Callable[[list[dict[str, Any]]], Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = release_of(change(toy_rows()))
    with pytest.raises(TrainerError, match=message):
        train(recipe(), folder, tiny_model, output=tmp_path / "toy")
    assert not (tmp_path / ".toy.partial").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 64}, r"max_length = 64: model 'minilm' takes at most 32 tokens"),
        ({"max_query_length": 33}, r"max_query_length = 33"),
        ({"matryoshka": {"dimensions": [64]}}, r"dimensions = 64: the model's embeddings have 32"),
        ({"distillation": {"teacher": "nobody"}}, r"teacher = 'nobody'.*it has those of judge"),
    ],
)
def test_a_recipe_that_the_model_cannot_follow_is_told(
    changes: dict[str, Any], message: str, release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=message):
        train(recipe(**changes), release, tiny_model, output=tmp_path / "toy")


def test_no_memory_is_told(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    def no_memory(done: int, total: int | None) -> None:
        torch.empty(1 << 60)

    with pytest.raises(TrainerError, match=r"out of memory: lower kept_tokens = 65536"):
        train(recipe(), release, tiny_model, output=tmp_path / "toy", progress=no_memory)


def test_a_gradient_that_is_not_finite_is_told(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"step \d+: the gradient is not finite; lower learning_rate"):
        train(recipe().model_copy(update={"learning_rate": 1e30}), release, tiny_model, output=tmp_path / "toy")

"""Training a bi-encoder on a release, from easy to hard, exactly resumable.

One plain loop: every step is a function of the plan and of the state that a checkpoint holds, nothing is drawn while
training (dropout is off: on a few hundred examples it adds noise that no resumed run could repeat), so a run that was
killed ends with the same weights as one that was not.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from trainer.backbones import save_model, with_pooling
from trainer.curriculum import Batch, describe_plan, negatives_of_row, plan_batches
from trainer.errors import TrainerError
from trainer.loss import info_nce
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, GradedRelease, Negative, read_release

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained model's folder and what its training.json says; `is_new` is false when it was there already."""

    folder: Path
    summary: dict[str, Any]
    is_new: bool


def plan_training(recipe: TrainRecipe, release_folder: Path) -> list[dict[str, Any]]:
    """The curriculum as a table, without training."""
    release = read_release(release_folder)
    return describe_plan(_plan(recipe, release), release.examples, recipe.seed)


def train(
    recipe: TrainRecipe,
    release_folder: Path,
    model_folder: Path,
    *,
    output: Path,
    progress: Progress = lambda done, total: None,
) -> TrainResult:
    """Train and save to `output`, a folder that plain sentence-transformers loads.

    Args:
        release_folder: The release to train on.
        model_folder: The model to start from.

    Raises:
        TrainerError: The release is not readable, or `output` holds a model of another recipe or release.
    """
    release = read_release(release_folder)
    identity = {"recipe": recipe.model_dump(mode="json"), "release_digest": release.digest}
    if (output / "training.json").is_file():
        summary = orjson.loads((output / "training.json").read_bytes())
        if {name: summary[name] for name in identity} != identity:
            raise TrainerError(f"{output} holds a model of another recipe or release: give the recipe another name")
        return TrainResult(output, summary, is_new=False)
    disable_progress_bar()
    if output.exists():
        raise TrainerError(f"{output} exists and is no model that Gradus trained: give the recipe another name")
    run = _Training(recipe, release, model_folder, output.with_name(f".{output.name}.partial"))
    start = time.monotonic()
    run.train(progress)
    summary = {
        **identity,
        "release": release.name,
        "num_examples": len(release.examples),
        "num_steps": len(run.batches),
        "seconds_of_last_call": round(time.monotonic() - start, 1),
        "bf16": run.bf16,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "plan": describe_plan(run.batches, release.examples, recipe.seed),
        "blocks": _by_block(run.metrics),
    }
    run.save(summary)
    run.folder.joinpath("model").rename(output)
    shutil.rmtree(run.folder)
    return TrainResult(output, summary, is_new=True)


def _plan(recipe: TrainRecipe, release: GradedRelease) -> list[Batch]:
    return plan_batches(
        recipe.schedule, num_examples=len(release.examples), batch_size=recipe.batch_size, seed=recipe.seed
    )


def _has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.is_file() else ""
    return torch.cuda.is_available() or "avx512_bf16" in text or "amx_bf16" in text


@dataclass(frozen=True, slots=True)
class _Row:
    example: GradedExample
    negatives: list[Negative]


class _Training:
    """A training in progress: model, optimiser, plan, and the checkpoint folder that holds them."""

    def __init__(self, recipe: TrainRecipe, release: GradedRelease, model_folder: Path, folder: Path) -> None:
        self.recipe, self.release, self.folder = recipe, release, folder
        self.batches = _plan(recipe, release)
        torch.manual_seed(recipe.seed)
        self.model = with_pooling(SentenceTransformer(str(model_folder)), recipe.pooling)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.device = self.model.device.type
        self.bf16 = recipe.bf16 == "on" or (recipe.bf16 == "auto" and _has_bf16())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
        self.metrics: list[dict[str, Any]] = []
        self.margins: list[dict[str, Any]] = []
        self.step = 0
        self._tokens: dict[str, list[int]] = {}

    def train(self, progress: Progress) -> None:
        """Every step of the plan that the checkpoint has not seen."""
        self._resume()
        self.model.train()
        for step in range(self.step, len(self.batches)):
            progress(step, len(self.batches))
            self._train_step(self.batches[step])
            self.step = step + 1
            if self.step % self.recipe.checkpoint_every == 0:
                self._checkpoint()
        progress(len(self.batches), len(self.batches))

    def _train_step(self, batch: Batch) -> None:
        examples = [self.release.examples[index] for index in batch.examples]
        rows = [_Row(example, negatives_of_row(example, batch, self.recipe.seed)) for example in examples]
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._rate(self.step)
        passages = _distinct_passages(rows)
        column = {text: place for place, text in enumerate(passages)}
        queries_BE = self._embed([row.example.query for row in rows])
        passages_NE = self._embed(passages)
        similarities = queries_BE @ passages_NE.T
        positive = torch.tensor([column[row.example.positive] for row in rows])
        losses = info_nce(similarities, positive, _allowed(rows, column), temperature=self.recipe.temperature)
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._note(batch, rows, column, similarities.detach(), losses.detach(), float(norm))

    def _rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero."""
        warm = max(1, round(self.recipe.warmup * len(self.batches)))
        return min((step + 1) / warm, (len(self.batches) - step) / max(1, len(self.batches) - warm))

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors, [texts, E]."""
        features = self.model.tokenizer.pad(
            {"input_ids": [self._token_ids(text) for text in texts]}, padding=True, return_tensors="pt"
        )
        inputs = {name: tensor.to(self.model.device) for name, tensor in features.items()}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            vectors: Tensor = self.model(inputs)["sentence_embedding"]
        return torch.nn.functional.normalize(vectors.float(), dim=-1)

    def _token_ids(self, text: str) -> list[int]:
        """Each text is tokenised once, not once an epoch."""
        if text not in self._tokens:
            encoded = self.model.tokenizer(text, truncation=True, max_length=self.recipe.max_length)
            self._tokens[text] = encoded["input_ids"]
        return self._tokens[text]

    def _note(
        self,
        batch: Batch,
        rows: Sequence[_Row],
        column: dict[str, int],
        similarities: Tensor,
        losses: Tensor,
        gradient_norm: float,
    ) -> None:
        positives: list[float] = []
        written: list[float] = []
        mined: list[float] = []
        for place, row in enumerate(rows):
            positive = float(similarities[place, column[row.example.positive]])
            positives.append(positive)
            for negative in row.negatives:
                value = float(similarities[place, column[negative.text]])
                (mined if negative.rank is None else written).append(value)
                self.margins.append(
                    {
                        "step": self.step,
                        "example_id": row.example.id,
                        "negative_id": negative.id,
                        "rank": negative.rank,
                        "margin": round(positive - value, 6),
                    }
                )
        self.metrics.append(
            {
                "step": self.step,
                "block": batch.block + 1,
                "rank": batch.rank,
                "loss": round(float(losses.mean()), 6),
                "gradient_norm": round(gradient_norm, 6),
                "positive": _mean(positives),
                "written": _mean(written),
                "mined": _mean(mined),
            }
        )

    def _checkpoint(self) -> None:
        """State after this step, by one rename: a kill leaves the old checkpoint or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity(),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": self.metrics,
            "margins": self.margins,
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.rename(self.folder / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        if state["identity"] != self._identity():
            return  # another recipe's leftovers: start anew and overwrite them
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.metrics, self.margins = state["step"], state["metrics"], state["margins"]

    def _identity(self) -> str:
        return orjson.dumps([self.recipe.model_dump(mode="json"), self.release.digest]).decode()

    def save(self, summary: dict[str, Any]) -> None:
        """Model, metrics per step, margins per negative, summary and card, into the partial folder."""
        target = self.folder / "model"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        save_model(self.model.eval(), target)
        lines = b"".join(orjson.dumps(row) + b"\n" for row in self.metrics)
        (target / "metrics.jsonl").write_bytes(lines)
        pq.write_table(pa.Table.from_pylist(self.margins), target / "margins.parquet")
        (target / "README.md").write_text(_card(summary), encoding="utf-8")
        (target / "training.json").write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")


def _distinct_passages(rows: Sequence[_Row]) -> list[str]:
    """Each text once, however many rows it serves: encoded once, and counted once against a query."""
    texts = [row.example.positive for row in rows] + [n.text for row in rows for n in row.negatives]
    return list(dict.fromkeys(texts))


def _allowed(rows: Sequence[_Row], column: dict[str, int]) -> Tensor:
    """False where a passage is a known positive of the row's query through another row."""
    allowed = torch.ones(len(rows), len(column), dtype=torch.bool)
    positives: dict[str, set[str]] = {}
    for row in rows:
        positives.setdefault(row.example.query_id, set()).add(row.example.positive)
    for place, row in enumerate(rows):
        for text in positives[row.example.query_id]:
            allowed[place, column[text]] = False
    return allowed


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if values else None


def _by_block(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    blocks = []
    for block in sorted({row["block"] for row in metrics}):
        mine = [row for row in metrics if row["block"] == block]
        means = {
            name: _mean([row[name] for row in mine if row[name] is not None])
            for name in ("loss", "positive", "written", "mined")
        }
        variance = float(np.var([row["gradient_norm"] for row in mine]))
        blocks.append({"block": block, "rank": mine[0]["rank"], **means, "gradient_variance": round(variance, 6)})
    return blocks


def _card(summary: dict[str, Any]) -> str:
    recipe = summary["recipe"]
    return (
        f"---\nlibrary_name: sentence-transformers\ntags: [sentence-transformers, graded-negatives]\n---\n\n"
        f"# {recipe['name']}\n\n"
        f"`{recipe['model']}` trained on release `{summary['release']}` (digest {summary['release_digest'][:16]}): "
        f"{summary['num_examples']:,} examples, {summary['num_steps']:,} steps, schedule `{recipe['schedule']}`, "
        f"pooling `{recipe['pooling']}`, seed {recipe['seed']}.\n\n"
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{recipe["name"]}", trust_remote_code=True)\n```\n\n'
        "The pooling is in `modeling_ata.py` beside this file. `training.json` holds the whole recipe, `metrics.jsonl` "
        "every step, `margins.parquet` the margin of every negative when it was trained on.\n"
    )

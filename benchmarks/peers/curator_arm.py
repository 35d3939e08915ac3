"""Bespoke Curator: `curator.LLM` with its online "openai" backend, which speaks aiohttp (0.1.31, own environment).

Settings, the fastest that its public API has:
- backend "openai", not "litellm": the latter adds LiteLLM's own layers to every request;
- max_concurrent_requests is the concurrency, and both limits per minute are out of reach. Without them it holds itself
  to a default limit, for a local server sends no rate-limit headers;
- response_format travels among the generation parameters, as written in the file. Curator's own response_format
  parameter would send a looser schema, ask the server one request more and validate each answer three times;
- no hosted viewer, telemetry, display or progress bar, no logging below warnings; its price map is the one on disk.
Its request and response files cannot be turned off; they are in the working folder, new for a fresh run. It sends one
request with no messages at start, to read rate-limit headers, and counts each prompt's tokens. It would download the
tokenizer's file; LiteLLM, which it depends on, has a copy.
"""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from arm import Job, is_good, run

_OUT_OF_REACH = 10**9  # requests per minute; tokens are a thousand times that


def send(job: Job) -> int:
    litellm = find_spec("litellm")
    assert litellm is not None and litellm.origin is not None
    os.environ |= {
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "CURATOR_VIEWER": "0",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TELEMETRY_ENABLED": "false",
        "TQDM_DISABLE": "1",
        "TIKTOKEN_CACHE_DIR": str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"),
    }
    logging.disable(logging.INFO)
    from bespokelabs import curator
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    class Prompt(curator.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return row["prompt"]

    prompts, parameters = job.prompts()
    llm = Prompt(
        model_name=parameters.pop("model"),
        backend="openai",
        generation_params=parameters,
        backend_params={
            "base_url": job.base_url,
            "api_key": "none",
            "max_concurrent_requests": job.concurrency,
            "max_requests_per_minute": _OUT_OF_REACH,
            "max_tokens_per_minute": _OUT_OF_REACH * 1000,
        },
    )
    answers = llm(Dataset.from_dict({"prompt": prompts}), working_dir=str(job.workdir)).dataset
    return sum(map(is_good, answers["response"]))


if __name__ == "__main__":
    run(send)

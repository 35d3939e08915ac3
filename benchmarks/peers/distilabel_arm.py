"""distilabel: a pipeline of one `ChatGeneration` step on `OpenAILLM` (1.5.3, own environment).

Settings, the fastest that its public API has:
- the batch is the concurrency: a batch's requests go out together and the next batch waits for the slowest;
- one replica of the step: two of half the batch each cost twice the CPU and wall time a request on two cores;
- messages given ready-made instead of through a template;
- response_format travels in extra_body, as written in the file: its own parameter takes no JSON schema, and its
  structured_output goes through instructor, which cost two fifths more CPU when measured;
- no metadata column, no raw input or output; logging below warnings off. distilabel sends no telemetry;
- its cache is on, in the working folder, which is new for a fresh run: switched off it was no faster.
Steps run in processes of their own, and batches travel between them through a manager's queue: not an option.
"""

import os

from arm import Job, is_good, run

_MAX_NEW_TOKENS = 4096  # if the file has none: distilabel always sends one, and its default of 128 would cut answers


def send(job: Job) -> int:
    os.environ |= {"DISTILABEL_LOG_LEVEL": "WARNING", "DISTILABEL_CACHE_DIR": str(job.workdir)}
    from datasets import disable_progress_bars
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import ChatGeneration

    disable_progress_bars()
    prompts, parameters = job.prompts()
    rows = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    llm = OpenAILLM(
        model=parameters.pop("model"),
        base_url=job.base_url,
        api_key="none",
        generation_kwargs={
            "max_new_tokens": parameters.pop("max_tokens", _MAX_NEW_TOKENS),
            "extra_body": parameters,
        },
    )
    with Pipeline(name="arm", enable_metadata=False) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=job.concurrency)
        ask = ChatGeneration(llm=llm, input_batch_size=job.concurrency, add_raw_output=False, add_raw_input=False)
        load >> ask
    answers = pipeline.run()["default"]["train"]
    return sum(map(is_good, answers["generation"]))


if __name__ == "__main__":
    run(send)

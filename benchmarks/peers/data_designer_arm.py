"""NeMo Data Designer: one LLM text column over a seed column of prompts (0.9.7, own environment).

Settings, the fastest that its public API has:
- max_parallel_requests is the concurrency; its asynchronous engine is the only one in this version;
- a text column with all parameters in extra_body, as written in the file: its structured column would add the schema
  to each prompt and validate each answer against it in Python;
- native Jinja rendering instead of the hardened one; no early shutdown, health check, trace, terminal display or
  metrics port; telemetry off; logging below warnings off;
- buffer_size as it comes: a row group of 1,000 is also the unit that a resumed run does not ask again. Runs resume in
  a folder that has an unfinished one.
Its closing profile counts tokens of a sample with a tokenizer file that it downloads; offline it warns and leaves the
counts out.
"""

import logging
import os

from arm import Job, is_good, run


def send(job: Job) -> int:
    os.environ |= {"NEMO_TELEMETRY_ENABLED": "false", "DATA_DESIGNER_HOME": str(job.workdir)}
    logging.disable(logging.INFO)
    import data_designer.config as dd
    import pandas as pd
    from data_designer.interface import DataDesigner

    prompts, parameters = job.prompts()
    provider = dd.ModelProvider(name="local", endpoint=job.base_url, api_key="none")
    model = dd.ModelConfig(
        alias="model",
        model=parameters.pop("model"),
        provider=provider.name,
        inference_parameters=dd.ChatCompletionInferenceParams(
            max_parallel_requests=job.concurrency, extra_body=parameters
        ),
        skip_health_check=True,
    )
    config = dd.DataDesignerConfigBuilder(model_configs=[model])
    config.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame({"prompt": prompts})))
    config.add_column(dd.LLMTextColumnConfig(name="answer", model_alias=model.alias, prompt="{{ prompt }}"))

    designer = DataDesigner(job.workdir / "artifacts", model_providers=[provider], auto_configure_logging=False)
    designer.set_run_config(
        dd.RunConfig(
            disable_early_shutdown=True, jinja_rendering_engine=dd.JinjaRenderingEngine.NATIVE, otel_metrics_port=None
        )
    )
    answers = designer.create(config, num_records=len(prompts), resume=dd.ResumeMode.IF_POSSIBLE).load_dataset()
    return sum(map(is_good, answers["answer"]))


if __name__ == "__main__":
    run(send)

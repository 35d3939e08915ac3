"""What most people write: one AsyncOpenAI client, a task for each request, a semaphore (project's environment).

Settings: the default client with its own retries, time limits and HTTP library. Nothing is stored.
"""

import asyncio
from typing import Any

import openai
from arm import Job, is_good, run


async def send(job: Job) -> int:
    semaphore = asyncio.Semaphore(job.concurrency)

    async def ask(body: dict[str, Any]) -> bool:
        async with semaphore:
            completion = await client.chat.completions.create(**body)
        return is_good(completion.choices[0].message.content)

    async with openai.AsyncOpenAI(base_url=job.base_url, api_key="none") as client:
        return sum(await asyncio.gather(*map(ask, job.bodies())))


if __name__ == "__main__":
    run(lambda job: asyncio.run(send(job)))

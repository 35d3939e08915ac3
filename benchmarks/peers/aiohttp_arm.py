"""The floor: bare aiohttp that sends the lines as they are and only reads the answers (project's environment).

Settings: one session, as many connections as the concurrency, as many workers that share one iterator. An answer is
good if its status is 200; nothing is parsed, checked or kept.
"""

import asyncio

import aiohttp
from arm import Job, run

_HEADERS = {"content-type": "application/json", "authorization": "Bearer none"}


async def send(job: Job) -> int:
    url, lines, good = f"{job.base_url}/chat/completions", iter(job.lines), 0

    async def work() -> None:
        nonlocal good
        for line in lines:
            async with session.post(url, data=line, headers=_HEADERS) as response:
                await response.read()
                good += response.status == 200

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=job.concurrency)) as session:
        await asyncio.gather(*(work() for _ in range(job.concurrency)))
    return good


if __name__ == "__main__":
    run(lambda job: asyncio.run(send(job)))

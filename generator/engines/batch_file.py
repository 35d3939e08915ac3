"""The `batch_file` engine: requests out, completions in, as JSONL in the OpenAI Batch format.

What answers stands outside: the Batch API, `vllm run-batch`, another vendor, or an air-gapped machine. Completions are
joined by `custom_id`; a bad line is named with file, line and field and never stops the good ones.
"""

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from generator.errors import GeneratorError
from generator.ledger import Answer, Wanted

ENGINE = "batch_file"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of the completions file that could not be used."""

    where: str
    reason: str
    detail: str


def write_requests(path: Path, wanted: Iterator[Wanted]) -> int:
    """Write the requests that wait for an answer; returns how many. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    num = 0
    with partial.open("wb") as file:
        for item in wanted:
            num += 1
            line = {
                "custom_id": item.custom_id,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": item.body,
            }
            file.write(orjson.dumps(line) + b"\n")
    partial.rename(path)
    return num


def read_completions(path: Path, request_of: Mapping[str, int]) -> Iterator[Answer | BadLine]:
    """Answers to the requests that `request_of` knows by custom id; everything else is a bad line.

    Raises:
        GeneratorError: The file is missing or cannot be read to its end.
    """
    if not path.is_file():
        raise GeneratorError(f"engine.completions = {path}: no such file; have the requests answered first")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _answer(line, f"{path.name}:{number}", request_of)
    except (OSError, EOFError) as error:
        raise GeneratorError(f"{path}: cannot be read to its end: {error}") from error


def _answer(line: bytes, where: str, request_of: Mapping[str, int]) -> Answer | BadLine:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BadLine(where, "malformed_line", f"not JSON: {error}")
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        return BadLine(where, "malformed_line", "field 'custom_id' is missing or not a string")
    request = request_of.get(row["custom_id"])
    if request is None:
        return BadLine(where, "unknown_request", f"custom_id {row['custom_id']!r} answers no request of this run")
    response = row.get("response")
    failure = _error_message(row.get("error")) or _response_error(response)
    status = response.get("status_code") if isinstance(response, dict) else None
    if failure is not None:
        return Answer(request, ENGINE, None, error=failure, status=status if isinstance(status, int) else None)
    return chat_answer(request, ENGINE, response["body"], status=status, where=where)  # type: ignore[index]


def _error_message(error: Any) -> str | None:
    """The message of an error object; vllm run-batch nests it once more."""
    if not error:
        return None
    if isinstance(error, dict):
        return _error_message(error.get("error")) or str(error.get("message") or error)
    return str(error)


def _response_error(response: Any) -> str | None:
    if not isinstance(response, dict):
        return "field 'response' is missing"
    status, body = response.get("status_code"), response.get("body")
    if status != 200 or not isinstance(body, dict):
        return _error_message(body) or f"status {status}"
    return None


def chat_answer(
    request_id: int,
    engine: str,
    body: dict[str, Any],
    *,
    status: int | None,
    where: str,
    latency_s: float | None = None,
) -> Answer | BadLine:
    """The answer in a Chat Completions body; a refusal of the model is an error with its text."""
    try:
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        return BadLine(where, "malformed_line", "field 'choices[0].message' is missing")
    error = None
    if not isinstance(content, str):
        error = f"refused: {refusal}" if refusal else "field 'choices[0].message.content' is not a string"
    usage = body.get("usage")
    return Answer(
        request_id,
        engine,
        None if error else content,
        error=error,
        status=status,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model_reported=body.get("model") if isinstance(body.get("model"), str) else None,
        usage=usage if isinstance(usage, dict) else None,
        latency_s=latency_s,
    )

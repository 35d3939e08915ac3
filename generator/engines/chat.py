"""What every engine gets back: a Chat Completions body, or an error object, in the shapes that servers use."""

from typing import Any

from generator.ledger import Answer


def chat_answer(
    request_id: int, engine: str, body: Any, *, status: int | None, latency_s: float | None = None
) -> Answer:
    """The answer in a Chat Completions body; a refusal, an empty text or a malformed body is an error."""
    known: dict[str, Any] = {"status": status, "latency_s": latency_s}
    if not isinstance(body, dict):
        return Answer(request_id, engine, None, error="the body is not an object", **known)
    usage, model = body.get("usage"), body.get("model")
    known |= {
        "usage": usage if isinstance(usage, dict) else None,
        "model_reported": model[:300] if isinstance(model, str) else None,
    }
    try:
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer(request_id, engine, None, error="field 'choices[0].message' is missing", **known)
    known["finish_reason"] = finish_reason[:50] if isinstance(finish_reason, str) else None
    if isinstance(content, str) and content.strip():
        return Answer(request_id, engine, content.replace("\x00", "\ufffd"), **known)
    error = f"refused: {refusal}" if refusal else "field 'choices[0].message.content' is empty or not a string"
    return Answer(request_id, engine, None, error=error[:2_000], is_refusal=True, **known)


def error_message(error: Any) -> str | None:
    """The message of an error object; some servers nest it once more."""
    if not error:
        return None
    if isinstance(error, dict):
        return error_message(error.get("error")) or str(error.get("message") or error)[:2_000]
    return str(error)[:2_000]

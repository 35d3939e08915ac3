"""Digests of files."""

import hashlib
from pathlib import Path


def digest_file(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits; memory does not grow with the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

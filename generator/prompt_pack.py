"""Prompt packs: folders of Jinja templates with a digest, rendered in a sandbox.

A pack is named by its folder's name here, or by a path to a user's own folder.
"""

import hashlib
import tomllib
from functools import cached_property
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from generator.errors import GeneratorError

_BUNDLED = Path(__file__).parent / "prompts"


class PromptPack:
    """The templates of one folder. `digest` changes when any of its bytes does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self._environment = SandboxedEnvironment(
            loader=FileSystemLoader(folder), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False
        )

    @classmethod
    def load(cls, name: str) -> "PromptPack":
        """The bundled pack of this name, or the folder at this path.

        Raises:
            GeneratorError: Neither is there.
        """
        for folder in (_BUNDLED / name, Path(name)):
            if folder.is_dir() and any(folder.glob("*.j2")):
                return cls(folder)
        bundled = ", ".join(sorted(path.name for path in _BUNDLED.iterdir() if path.is_dir()))
        raise GeneratorError(f"pack = {name!r}: no such prompt pack; bundled: {bundled}; or give a folder of .j2 files")

    @cached_property
    def digest(self) -> str:
        total = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    @cached_property
    def task_types(self) -> dict[str, str]:
        """How the pack describes each type of task, from its task_types.toml."""
        path = self.folder / "task_types.toml"
        return {str(k): str(v) for k, v in tomllib.loads(path.read_text()).items()} if path.is_file() else {}

    def render(self, template: str, variables: dict[str, object]) -> str:
        """The prompt; a variable that the template needs and does not get is an error, never an empty slot."""
        try:
            return self._environment.get_template(f"{template}.j2").render(variables)
        except TemplateError as error:
            raise GeneratorError(f"prompt pack {self.name!r}, template {template!r}: {error}") from error

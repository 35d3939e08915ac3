"""What a person sees when something is wrong.

    AppError          bad input that the command line itself finds: one line, exit code 1
    └── RecipeError   a recipe that cannot be read or is not valid

Errors of the other packages (StoreError, GeneratorError, CurationError, TrainerError) are shown the same way; anything
else is a bug of ours and keeps its traceback.
"""


class AppError(Exception):
    """Base of the command line's own errors."""


class RecipeError(AppError):
    """A recipe file is missing, is not TOML, or has a field that is not valid."""

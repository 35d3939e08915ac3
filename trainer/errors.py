"""Every error that training raises on purpose.

TrainerError    one line for the person: what, which value, what to do
"""


class TrainerError(Exception):
    """Base of all errors of training."""

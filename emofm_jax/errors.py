"""The one exception that a user's mistake raises; `cli.run` prints it and exits with 2.

And what Python's `warnings` are told of.
"""


class UserError(Exception):
    """`{where}: {what was wrong, with the value}; {what to do}`, on one line."""


class UnknownValues(UserWarning):
    """A slot that training knew, and of which `scorer.encode` gets nearly unknown values only."""


def check_choice(where: str, value: str, known) -> None:
    """Raises a UserError that lists `known` unless `value` is one of them."""
    if value not in known:
        raise UserError(f"{where}: {value!r} is not known; choose one of {', '.join(known)}")


def check_heads(where: str, heads: int, width: int, of: str) -> None:
    """Raises a UserError unless `heads` divide `width`, the width `of` something."""
    if width % heads:
        raise UserError(f"{where}: {heads} heads do not divide {of} = {width}; choose a divisor")

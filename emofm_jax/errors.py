"""The one exception that a user's mistake raises; `cli.run` prints it as `error: ...` and exits with 2."""


class UserError(Exception):
    """`{where}: {what was wrong, with the value}; {what to do}`, on one line."""

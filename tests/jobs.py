"""Jobs for tests of engines: functions that processes of their own can import."""

import os
import signal
from pathlib import Path

from emofm_jax.errors import UserError


def square(number):
    """A job that prints, too, which must not disturb its answer."""
    print("squared")
    return number * number


def die_once(place):
    """Kills its process, unless it did so before: the file `place` says so."""
    if not Path(place).exists():
        Path(place).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die(_):
    """Kills its process whenever it is done."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number):
    """A mistake of the user at 2, one of ours at 3."""
    if number == 2:
        raise UserError("a: it is 2; change it")
    return 1 / (number - 3)

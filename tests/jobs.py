"""Jobs for tests of engines: functions that processes of their own can import."""

import errno
import os
import signal
from pathlib import Path

import emofm_jax
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


def process(_):
    """The number of its process."""
    return os.getpid()


def where(_):
    """The file of the package."""
    return emofm_jax.__file__


def refuse(number):
    """A mistake of the user at 2, one of ours at 3, one of the disk at 4."""
    if number == 2:
        raise UserError("a: it is 2; change it")
    if number == 4:
        raise PermissionError(errno.EACCES, "Permission denied", "raw.csv")
    return 1 / (number - 3)


def interrupt(_):
    """Interrupts its process, as Ctrl-C does all of a job on a cluster."""
    os.kill(os.getpid(), signal.SIGINT)

"""Memory in pages of 2 MB: on a CPU a step takes two thirds of the time, a score five sixths.

The figures are in docs/performance.md.

In every step the allocator gets large arrays from the system, and the system clears them, 4 KB at a
time. From glibc 2.35 on `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` asks for huge pages, where Linux
gives them to who asks (`madvise`). It is read as a process starts, so a program that trains or
scores starts itself once more, before it has loaded much: it stays the same process, and has the
same numbers.
"""

import contextlib
import itertools
import os
import re
import sys
from pathlib import Path

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SINCE = (2, 35)  # of glibc
_DONE = "EMOFM_STARTED_AGAIN"  # glibc keeps its own variable from a Python with rights of its own
_PROGRAMS = ("train", "sweep", "backtest", "evaluate", "predict", "compare")
_COMMANDS = {f"emofm-{name}" for name in _PROGRAMS}


def use(program: str) -> None:
    """Starts the program once more, with huge pages, if that helps and has not been done.

    Nothing happens if the user has set the tunable, of which `glibc.malloc.hugetlb=0` switches it
    off; if Python was started with another file, or under a debugger; or if the system gives no
    huge pages to who asks, or does not start the program.

    Args:
      program: the file that Python runs. What it has done before is done twice.
    """
    tunables = os.environ.get(_TUNABLES, "")
    running = getattr(sys.modules["__main__"], "__file__", None) or ""
    if os.path.realpath(running) != os.path.realpath(program) or not _is_asked_for(program):
        return
    if _TUNABLE in tunables or _DONE in os.environ or _is_debugged() or not _are_there():
        return

    tunables = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    environment = os.environ | {_TUNABLES: tunables, _DONE: "1"}
    with contextlib.suppress(OSError):
        os.execve(sys.executable, sys.orig_argv, environment)


def use_in_command() -> None:
    """`use` in a command that pip made (emofm-train), which begins by loading our program."""
    if Path(sys.argv[0]).name in _COMMANDS:
        use(sys.argv[0])


def _is_asked_for(program: str) -> bool:
    """Whether Python was started with the program, by its path or by -m and its module."""
    if not sys.executable:
        return False
    path, words = os.path.realpath(program), sys.orig_argv[1:]
    modules = [
        after for word, after in itertools.pairwise(words) if re.fullmatch("-[a-zA-Z]*m", word)
    ]
    is_path = any(os.path.realpath(word) == path for word in words)
    return is_path or any(name.rpartition(".")[2] == Path(path).stem for name in modules)


def _is_debugged() -> bool:
    """Whether a debugger has this process, which from Python 3.12 on needs no trace function."""
    monitoring = getattr(sys, "monitoring", None)
    tool = monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID)
    return bool(sys.gettrace() or tool)


def _are_there() -> bool:
    """Whether glibc can ask for huge pages, and Linux gives them to who asks alone."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        if name != "glibc" or tuple(map(int, version.split(".")[:2])) < _SINCE:
            return False
        return "[madvise]" in _ENABLED.read_text()
    except (AttributeError, OSError, ValueError):  # another system, or another libc
        return False

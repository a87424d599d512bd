"""Compiled programs stay on disk: the next run of the same shapes does not wait for the compiler.

    ~/.cache/emofm_jax/<host>/    XDG_CACHE_HOME in place of ~/.cache; a hash of the processor

JAX's persistent compilation cache does the work. `JAX_COMPILATION_CACHE_DIR` chooses another
directory, and `JAX_ENABLE_COMPILATION_CACHE=0` switches it off (docs/performance.md). No jax here:
JAX reads its environment once, when it is loaded.
"""

import contextlib
import hashlib
import os
import platform
import re
import sys
from pathlib import Path

from emofm_jax.data import files

_NO = ("0", "false", "no", "off", "n", "f")
LIMIT = 1 << 30  # bytes in all; what was used longest ago goes first


def enable() -> None:
    """Tells JAX, which is not loaded yet, where to keep what it compiles.

    Nothing happens if the user has chosen a directory or switched the cache off, if JAX is loaded
    already, or if there is no directory to write to.
    """
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in _NO
    if off or "jax" in sys.modules:
        return
    chosen, processor = os.environ.get("JAX_COMPILATION_CACHE_DIR"), _processor()
    try:
        base = files.user_cache()
        directory = base / hashlib.sha256(processor.encode()).hexdigest()[:16]
        if chosen is not None and not _is_ours(Path(chosen), base):
            return
        base.mkdir(parents=True, exist_ok=True, mode=0o700)  # what lies there is executed
        directory.mkdir(exist_ok=True, mode=0o700)
        _prune(base, LIMIT)
    except OSError:
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        return

    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if "avx512" in processor and not any(Path("/dev").glob("nvidia[0-9]*")):
        # On these processors XLA logs an error of several lines for each program that it loads: it
        # counts two of its own preferences among the processor's features
        # (github.com/openxla/xla/issues/44565).
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _is_ours(directory: Path, base: Path) -> bool:
    """Whether a directory is one of these, chosen by the sweep that started this process."""
    return directory.parent == base and re.fullmatch("[0-9a-f]{16}", directory.name) is not None


def _processor() -> str:
    """What decides the code that the compiler makes: JAX's key has none of it.

    The features of the processor, since code for others may end in SIGILL, and how many processors
    there are, since loops are cut for them.
    """
    kept = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []  # not Linux
    facts = {line for line in lines if line.startswith(kept)} or {platform.processor()}
    whole = not hasattr(os, "sched_getaffinity")
    count = os.cpu_count() if whole else len(os.sched_getaffinity(0))
    return "\n".join([platform.machine(), str(count), *sorted(facts)])


def _prune(base: Path, limit: int) -> None:
    """Removes the files that were used longest ago until the rest is within the limit."""
    kept = []
    for path in base.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a neighbour removes, too
            found = path.stat()
            if path.is_file():
                kept.append((max(found.st_atime, found.st_mtime), found.st_size, path))

    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size

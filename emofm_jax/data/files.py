"""Files appear when they are whole: each is written under another name, then renamed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emofm_jax.errors import UserError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields the name to write to; at the end the file has its own. After an error neither is."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        try:
            temporary.replace(path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: cannot be written ({reason}); name another place") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Writes an object as JSON, with a line end behind it."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def user_cache() -> Path:
    """What the package keeps for a user: ~/.cache/emofm_jax; raises OSError if there is no home."""
    text = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not Path(text).is_absolute():
        raise OSError(f"{text}: nobody knows where the user's home is")
    return Path(text) / "emofm_jax"


def read_cache(name: str) -> str:
    """A file that `write_cache` wrote; raises OSError if there is none."""
    return (user_cache() / name).read_text(encoding="utf-8")


def write_cache(name: str, text: str) -> None:
    """Writes a file of the user's cache, whoever else does so; raises OSError if it cannot."""
    directory = user_cache()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # others may not write there
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=directory, delete=False) as file:
        file.write(text)
    try:
        os.replace(file.name, directory / name)
    except OSError:
        os.unlink(file.name)
        raise

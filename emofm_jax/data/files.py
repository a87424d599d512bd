"""Files appear when they are whole: each is written under another name, then renamed."""

import contextlib
import json
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

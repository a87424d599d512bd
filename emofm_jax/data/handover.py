"""Files that programs leave for each other in a place, on machines that may share nothing else.

    at(name)       a local directory; of a place at s3:// one of this program, which is empty
    names(root)    the files that are there
    leave(path)    puts a file there: at s3:// it appears whole, and goes here
    take(path)     fetches a file, if it is not here yet; `drop` ends that

Each file is one object, which is put once or again with the same content; whoever starts again
leaves out what is there. A directory that has to appear as a whole is published (storage.py).
Where all see the directory, `leave`, `take` and `drop` have nothing to do.
"""

from pathlib import Path

from emofm_jax.data import directories, files, remote, storage
from emofm_jax.data.remote import Place

_places: dict[Path, Place] = {}  # by their local directories


def at(name: str) -> Path:
    """A local directory for the files of a place; the same one each time.

    Raises:
      UserError: it is no name of a place; there is no room for a copy.
    """
    if not storage.is_remote(name):
        return Path(name)
    place = remote.place(name)
    for root, known in _places.items():
        if known.name == place.name and root.exists():
            return root
    root = storage.own_directory(place)
    _places[root] = place
    return root


def names(root: Path) -> set[str]:
    """Names of the files that were left below the directory of a place; raises FileError."""
    if place := _places.get(root):
        return {*remote.names(place)}
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def leave(path: Path) -> None:
    """Puts a file that is written to where other programs find it; raises FileError."""
    if found := _found(path):
        place, name = found
        storage.put(place, name, path)
        files.remove(path)


def take(path: Path) -> None:
    """Fetches a file that another program has left, unless it is here.

    Raises:
      FileError: it cannot be read; it is not there.
    """
    if (found := _found(path)) and not path.exists():
        place, name = found
        files.make_directory(path.parent)
        storage.fetch(place, name, path)


def drop(path: Path) -> None:
    """Removes what `take` has fetched, and that only."""
    if _found(path):
        files.remove(path)


def clear(name: str, last: str) -> None:
    """Removes all that was left in the places below another; files of the name `last` go last."""
    if not storage.is_remote(name):
        directories.remove(Path(name))
        return
    place = remote.place(name)
    if found := remote.names(place):
        parts = {tuple(file.split("/")[:2]) for file in found}
        for part in sorted(part for part in parts if part[-1] != last):
            remote.remove(place, "/".join(part))
        remote.remove(place.above(), place.key.rpartition("/")[2])


def _found(path: Path) -> tuple[Place, str] | None:
    """The place that a path is a copy of a part of, and its name there."""
    for root, place in _places.items():
        if path.is_relative_to(root):
            return place, path.relative_to(root).as_posix()
    return None

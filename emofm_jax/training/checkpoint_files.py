"""What the directory of a checkpoint holds, and how every byte of it is checked.

    state.safetensors    arrays under flat names ("params/embedding", ...), but for those of rows_I
    rows_I.safetensors   a table over several devices, and what else has an entry for each row of
                         it: the share of process I, a range in the order of storage
    state.json           step, info, name -> [dtype, shape], rows_I -> range, xxh3 of all files

state.json is written last. Without rows_I, as on one device, the table is in the order of its rows.
A share is read from either, a piece at a time: nobody has more than what was asked for.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from emofm_jax.data import files, placing
from emofm_jax.data.placing import Share
from emofm_jax.errors import UserError

STATE, INDEX = "state.safetensors", "state.json"
_VERSION, _VERSION_OF_ROWS = 1, 2  # format_version, without and with rows_I
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 24, 1 << 16
_HASHES = ', "xxh3": '


class DamagedError(Exception):
    """A checkpoint that cannot be what was written."""


class Copy(NamedTuple):
    """A state on the host, as far as this process writes it.

    Attributes:
      arrays: those that one process writes.
      shares: [n, ...] of each, a range in the order of storage; empty if nothing is spread.
      places: first and last place of the range.
      tree: name -> [dtype, shape of the whole array] of all.
    """

    arrays: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    places: list[int]
    tree: dict[str, list]


class Body(NamedTuple):
    """The content of state.json: `rows` are the ranges of its files, `digests` those of all."""

    step: int
    info: dict
    tree: dict[str, list]
    rows: dict[str, list[int]]
    digests: dict[str, str]


def rows_name(process: int) -> str:
    """The file of the share of a process."""
    return f"rows_{process}.safetensors"


def copy_of(state: Any, whole: bool = True) -> Copy:
    """Copies a state to the host.

    Args:
      state: tree of arrays, Python numbers and shares of arrays of the devices.
      whole: whether to copy more than the shares.
    """
    import jax

    leaves, _ = flatten(state)
    # On a CPU `device_get` alone gives a view, which the next step overwrites.
    copied = lambda leaf: np.array(jax.device_get(leaf), copy=True, order="C")
    arrays, shares, places = {}, {}, [0, 0]
    for name, leaf in leaves.items():
        if isinstance(leaf, Share):
            found = copied(leaf.array)
            shares[name] = found.reshape(-1, *found.shape[2:])[: leaf.size]
            places = [leaf.first, leaf.first + leaf.size]
        elif whole:
            arrays[name] = copied(leaf)
    return Copy(arrays, shares, places, {k: dtype_and_shape(leaf) for k, leaf in leaves.items()})


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """({"opt_state/embedding/0/mu": leaf, ...} in the tree's order, structure)."""
    import jax

    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of the state have the same flat name")
    return flat, structure


def dtype_and_shape(leaf: Any) -> list:
    """Of an array, a number, or the array that a share is of."""
    if isinstance(leaf, Share):
        return [np.dtype(leaf.array.dtype).name, [leaf.num_rows, *leaf.array.shape[2:]]]
    typed = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return [np.dtype(typed.dtype).name, list(typed.shape)]


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Writes arrays, flushes them to the disk and returns the digest of the file.

    Raises:
      FileError: it cannot be written.
    """
    with files.whole(path) as temporary:  # the process of a run that was killed may write there
        safetensors.numpy.save_file(arrays, temporary)
    with files.named(path):
        return _hash(path)


def write_index(path: Path, body: Body) -> None:
    """Writes state.json; its own hash, the last entry, is of everything before it."""
    version = _VERSION_OF_ROWS if body.rows else _VERSION
    content = {"format_version": version, "step": body.step, "info": body.info, "tree": body.tree}
    text = json.dumps(content | ({"rows": body.rows} if body.rows else {})).removesuffix("}")
    hashes = body.digests | {INDEX: xxhash.xxh3_64_hexdigest(text.encode())}
    files.write_text(path / INDEX, f"{text}{_HASHES}{json.dumps(hashes)}}}\n")


def read_index(path: Path) -> Body:
    """The checked content of state.json.

    Raises:
      DamagedError: it is not what was written.
      UserError: a later version has written it.
    """
    try:
        text = (path / INDEX).read_text(encoding="utf-8")
        body = json.loads(text)
        digests = body["xxh3"]
        wanted = digests.pop(INDEX)
        found = xxhash.xxh3_64_hexdigest(text[: text.rindex(_HASHES)].encode())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{INDEX} is not readable: {error}") from None

    if found != wanted:
        raise DamagedError(f"{INDEX} has another hash than it was written with")
    if (version := body["format_version"]) not in (_VERSION, _VERSION_OF_ROWS):
        known = f"this program reads {_VERSION} and {_VERSION_OF_ROWS}"
        raise UserError(f"{path}: format version {version}, {known}; train again")
    rows = body.get("rows", {})
    if digests.keys() != {STATE, *rows}:
        raise DamagedError(f"{INDEX} has digests of other files than it names")
    return Body(body["step"], body["info"], body["tree"], rows, digests)


def verify(path: Path) -> Body:
    """Reads all files and compares their digests; raises DamagedError."""
    body = read_index(path)
    spread = _check_state(path, body)
    for name in body.rows:
        _check_rows(path, body, name, spread)
    return body


def read_arrays(path: Path, body: Body, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Reads arrays, whole or in part, from files whose hash and content state.json names.

    Args:
      path: of the checkpoint.
      body: of its state.json.
      wanted: name -> what has the shape and dtype: a `Share` of shapes is read as one.

    Raises:
      DamagedError: a file that was read is not what was written.
    """
    spread = _check_state(path, body)
    with safetensors.safe_open(path / STATE, "numpy") as file:
        found = {k: _of_whole(file, k, leaf) for k, leaf in wanted.items() if k not in spread}
    if any(dtype_and_shape(array) != body.tree[name] for name, array in found.items()):
        raise DamagedError(f"{STATE} holds other arrays than {INDEX} names")

    of_rows = {name: wanted[name] for name in wanted if name in spread}
    found |= {name: _empty(leaf, body.tree[name]) for name, leaf in of_rows.items()}
    for name, (first, last) in body.rows.items():
        parts = {k: _overlap(leaf, first, last) for k, leaf in of_rows.items()}
        if not any(parts.values()):
            continue
        _check_rows(path, body, name, spread)
        with safetensors.safe_open(path / name, "numpy") as file:
            for key, places in parts.items():
                piece = file.get_slice(key)
                for start, stop in _chunks(places):
                    _fill(found[key], start, stop, piece[start - first : stop - first])
    return found


def _check_state(path: Path, body: Body) -> Collection[str]:
    """Compares state.safetensors with its hash and its names; returns those that rows_I have."""
    _check_hash(path / STATE, body)
    found = _shapes(path / STATE)
    spread = body.tree.keys() - found.keys()
    wanted = {name: shape for name, (_, shape) in body.tree.items() if name not in spread}
    if found != wanted or bool(spread) != bool(body.rows):
        raise DamagedError(f"{STATE} holds other arrays than {INDEX} names")
    return spread


def _check_rows(path: Path, body: Body, name: str, spread: Collection[str]) -> None:
    """Compares a file of rows with its hash, its range and the names that it should have."""
    _check_hash(path / name, body)
    first, last = body.rows[name]
    if _shapes(path / name) != {key: [last - first, *body.tree[key][1][1:]] for key in spread}:
        raise DamagedError(f"{name} holds other arrays than {INDEX} names")


def _check_hash(path: Path, body: Body) -> None:
    if _hash(path) != body.digests[path.name]:
        raise DamagedError(f"{path.name} has another hash than it was written with")


def _shapes(path: Path) -> dict[str, list[int]]:
    """name -> shape of the arrays of a file."""
    with safetensors.safe_open(path, "numpy") as file:
        names = file.keys()
        return {name: list(file.get_slice(name).get_shape()) for name in names}


def _of_whole(file: Any, name: str, leaf: Any) -> Any:
    """An array in the order of its rows, or a share of it."""
    if not isinstance(leaf, Share):
        return file.get_tensor(name)
    share, piece = _empty(leaf, dtype_and_shape(leaf)), file.get_slice(name)
    flat = share.array.reshape(-1, *share.array.shape[2:])
    for start, stop in _chunks((0, leaf.num_rows)):
        at = placing.places(np.arange(start, stop), leaf.num_rows) - leaf.first
        own = (at >= 0) & (at < leaf.size)
        flat[at[own]] = piece[start:stop][own]
    return share


def _empty(leaf: Any, spec: list) -> Any:
    """What is to be filled: an array as state.json has it, or a share of zeros."""
    if not isinstance(leaf, Share):
        return np.empty(spec[1], spec[0])
    return Share(np.zeros(leaf.array.shape, leaf.array.dtype), leaf.first, leaf.num_rows)


def _overlap(leaf: Any, first: int, last: int) -> tuple[int, int] | None:
    """The places of a file's range that a leaf asks for."""
    if isinstance(leaf, Share):
        first, last = max(first, leaf.first), min(last, leaf.first + leaf.size)
    return (first, last) if first < last else None


def _chunks(places: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    """A range in pieces."""
    first, last = places or (0, 0)
    for start in range(first, last, _CHUNK_ROWS):
        yield start, min(start + _CHUNK_ROWS, last)


def _fill(found: Any, start: int, stop: int, piece: np.ndarray) -> None:
    """Puts the entries of some places where they belong."""
    if isinstance(found, Share):
        flat = found.array.reshape(-1, *found.array.shape[2:])
        flat[start - found.first : stop - found.first] = piece
        return
    rows = placing.rows_at(np.arange(start, stop), len(found))
    real = rows < len(found)
    found[rows[real]] = piece[real]


def _hash(path: Path) -> str:
    """xxh3 of a file."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()

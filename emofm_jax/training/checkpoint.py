"""Checkpoints: the state of a run, written so that a kill at any point leaves a good one behind.

    <directory>/step_N/state.safetensors    arrays under flat names ("params/embedding", ...)
    <directory>/step_N/state.json           step, info, name -> [dtype, shape], xxh3 of both files

A checkpoint appears when it is whole and on the disk (`directories`); the newest two and the best
are kept. Reading checks every byte: a damaged checkpoint is reported on stderr and the
one before is taken. Beyond the host copy of the state neither writing nor reading needs a second.
"""

import concurrent.futures
import copy
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from emofm_jax import errors
from emofm_jax.data import directories, files
from emofm_jax.errors import FileError, UserError

_T = TypeVar("_T")

FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 24
_HASHES = ', "xxh3": '


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: Any  # of the structure of `like`; numpy arrays, Python numbers where `like` has some
    info: dict  # as saved, with lists for tuples
    step: int


class _DamagedError(Exception):
    """A checkpoint that cannot be what was written."""


def save(
    directory: Path, step: int, state: Any, info: dict, *, best_step: int | None = None
) -> None:
    """Writes `step_N` and removes what need not be kept; a kill leaves the old files or the new.

    Args:
      directory: of all checkpoints of the run; made if missing. One process writes there.
      step: steps done. A checkpoint of the same step is replaced; those of later steps are removed:
        they are of a run that was taken back to an earlier one.
      state: tree of arrays (numpy or jax) and Python numbers.
      info: anything JSON can hold; NaN and infinity may be in it.
      best_step: a step that is kept beside the newest two.

    Raises:
      FileError: the disk is full or cannot be written; the checkpoints before are untouched.
    """
    _write(Path(directory), step, _host_copy(state), info, best_step)


class Saver:
    """Does `save` in the background, one at a time; the state may be donated when `save` returns.

    The host copy of the state lives until it is written. An error is raised by the next call.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._running: concurrent.futures.Future | None = None

    def save(self, step: int, state: Any, info: dict, *, best_step: int | None = None) -> None:
        """Waits for the checkpoint before, copies the state to the host and starts writing it."""
        self.wait()
        job = (self.directory, step, _host_copy(state), copy.deepcopy(info), best_step)
        self._running = self._executor.submit(_write, *job)

    def wait(self) -> None:
        """Returns when everything is on the disk; raises what went wrong, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        """Waits; what went wrong is raised unless the block itself failed."""
        self._executor.shutdown()
        if error_type is None:
            self.wait()


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, ascending; whether it is whole shows when it is read."""
    names = (path.name.removeprefix("step_") for path in Path(directory).glob("step_*"))
    return sorted(int(name) for name in names if name.isdecimal())


def latest(directory: Path) -> int | None:
    """The newest step that has a checkpoint; None if there is none."""
    return max(steps(directory), default=None)


def read_info(directory: Path, step: int | None = None) -> tuple[int, dict]:
    """Step and `info` of a checkpoint without its arrays; which one, as for `restore`."""
    body = _newest_good(Path(directory), step, _read_json)
    return body["step"], body["info"]


def verify(directory: Path, step: int) -> str:
    """Reads a checkpoint and compares its digests; returns how many arrays it has, in words.

    Raises:
      UserError: it is damaged.
    """
    path = Path(directory) / f"step_{step}"
    try:
        body = _read_json(path)
        _read_arrays(path / "state.safetensors", body["tree"], body["xxh3"], ())
    except _DamagedError as error:
        raise UserError(f"{path}: damaged checkpoint ({error}); restore it") from None
    return f"{len(body['tree'])} arrays"


def restore(
    directory: Path, like: Any, *, step: int | None = None, only: Collection[str] = ()
) -> Restored:
    """Reads a checkpoint into the structure of `like`.

    Args:
      directory: of all checkpoints of the run.
      like: tree whose leaves have the shapes and dtypes that are expected (arrays,
        `jax.ShapeDtypeStruct` or Python numbers).
      step: which one; by default the newest that is undamaged, saying on stderr which were not.
      only: first parts of the names to read ("params"); by default `like` is the whole state.

    Raises:
      UserError: no checkpoint; none that is undamaged, or not the one asked for; one of another
        model, with the arrays that only the checkpoint has (-) and those that only `like` has (+).
    """
    return _newest_good(Path(directory), step, lambda path: _read(path, like, only))


def _newest_good(directory: Path, step: int | None, read: Callable[[Path], _T]) -> _T:
    """Returns `read` of the step's directory, or of the newest that it does not find damaged."""
    known = steps(directory)
    candidates = [step] if step is not None else known[::-1]
    if not set(candidates) & set(known):
        done = (directory.parent / "metrics.json").exists()
        hint = "sweep --nocheckpoints keeps none; train it again" if done else "train first"
        hint = f"choose one of {', '.join(map(str, known))}" if known else hint
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UserError(f"{directory}: {what}; {hint}")

    problems: list[str] = []
    for candidate in candidates:
        path = directory / f"step_{candidate}"
        try:
            result = read(path)
        except (_DamagedError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise errors.of_file(error.filename or path, error, "read") from None
            if not path.exists():
                gone = "taken away while it was read, since its run goes on"
                raise UserError(f"{path}: {gone}; start this program again") from None
            problems.append(f"{path}: damaged checkpoint ({error})")
            continue
        for problem in problems:
            print(f"warning: {problem}; taking step {candidate} instead", file=sys.stderr)
        return result
    what = "it" if len(problems) == 1 else "them"
    raise UserError(f"{', '.join(problems)}; restore {what}, or move {what} away to do without")


def prune(directory: Path, step: int, best_step: int | None) -> None:
    """Removes what need not be kept beside the checkpoint of a step; `save` does it, too.

    Raises:
      FileError: it cannot be removed.
    """
    kept = {best_step, *[s for s in steps(directory) if s <= step][-2:]}
    for other in steps(directory):
        if other not in kept or other > step:
            directories.remove(Path(directory) / f"step_{other}")


def _host_copy(state: Any) -> dict[str, np.ndarray]:
    """{flat name: copy of the leaf}."""
    # On a CPU `device_get` alone gives a view, which the next step overwrites.
    leaves, _ = flatten(state)
    return {k: np.array(jax.device_get(leaf), copy=True, order="C") for k, leaf in leaves.items()}


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """({"opt_state/embedding/0/mu": leaf, ...} in the tree's order, structure)."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of the state have the same flat name")
    return flat, structure


def _write(
    directory: Path, step: int, leaves: dict[str, np.ndarray], info: dict, best_step: int | None
) -> None:
    path = directory / f"step_{step}"
    tree = {name: _dtype_and_shape(leaf) for name, leaf in leaves.items()}
    directories.clear(directory)  # what a killed writer left
    try:
        with directories.whole(path) as new:
            arrays = new / "state.safetensors"
            with files.named(arrays):
                safetensors.numpy.save_file(leaves, arrays)
                digest = _hash(arrays)
            _write_json(new / "state.json", step, info, tree, digest)
        prune(directory, step, best_step)
    except FileError as error:
        good = ", ".join(f"step_{s}" for s in steps(directory)) or "none"
        raise FileError(f"{error} (checkpoints that are there: {good})") from None


def _write_json(path: Path, step: int, info: dict, tree: dict, digest: str) -> None:
    """Writes state.json; its own hash, the last entry, is of everything before it."""
    body = {"format_version": FORMAT_VERSION, "step": step, "info": info, "tree": tree}
    text = json.dumps(body).removesuffix("}")
    hashes = {"state.safetensors": digest, "state.json": xxhash.xxh3_64_hexdigest(text.encode())}
    files.write_text(path, f"{text}{_HASHES}{json.dumps(hashes)}}}\n")


def _read_json(path: Path) -> dict:
    """The checked content of state.json; under "xxh3" the hash of state.safetensors."""
    try:
        text = (path / "state.json").read_text(encoding="utf-8")
        body = json.loads(text)
        wanted, body["xxh3"] = body["xxh3"]["state.json"], body["xxh3"]["state.safetensors"]
        found = xxhash.xxh3_64_hexdigest(text[: text.rindex(_HASHES)].encode())
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"state.json is not readable: {error}") from None
    if found != wanted:
        raise _DamagedError("state.json has another hash than it was written with")
    if body["format_version"] != FORMAT_VERSION:
        found = body["format_version"]
        raise UserError(
            f"{path}: format version {found}, this program reads {FORMAT_VERSION}; train again"
        )
    return body


def _read(path: Path, like: Any, only: Collection[str]) -> Restored:
    body = _read_json(path)
    flat, structure = flatten(like)
    tree = body["tree"]
    wanted = {k: spec for k, spec in tree.items() if not only or k.split("/")[0] in only}
    _check_same(path, wanted, {name: _dtype_and_shape(leaf) for name, leaf in flat.items()})

    arrays = _read_arrays(path / "state.safetensors", tree, body["xxh3"], wanted)
    for name, leaf in flat.items():
        is_number = isinstance(leaf, bool | int | float)
        flat[name] = type(leaf)(arrays[name].item()) if is_number else arrays[name]
    state = jax.tree_util.tree_unflatten(structure, flat.values())
    return Restored(state, body["info"], body["step"])


def _read_arrays(
    path: Path, tree: dict, digest: str, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """Those arrays of state.safetensors, whose hash and content must be what state.json names."""
    if _hash(path) != digest:
        raise _DamagedError(f"{path.name} has another hash than it was written with")
    with safetensors.safe_open(path, "numpy") as file:
        names = set(file.keys())
        arrays = {name: file.get_tensor(name) for name in wanted if name in names}
    same = all(_dtype_and_shape(array) == tree[name] for name, array in arrays.items())
    if names != tree.keys() or not same:
        raise _DamagedError(f"{path.name} holds other arrays than state.json names")
    return arrays


def _check_same(path: Path, saved: dict, expected: dict) -> None:
    """Raises UserError with the leaves of one side only: - the checkpoint's, + the run's."""
    ours, theirs = ({f"{k} {v[0]}{v[1]}" for k, v in tree.items()} for tree in (expected, saved))
    if ours == theirs:
        return
    sides = []
    for sign, names in (("-", sorted(theirs - ours)), ("+", sorted(ours - theirs))):
        sides += [f"{sign} {name}" for name in names[:8]]
        if len(names) > 8:
            sides.append(f"{sign} {len(names) - 8} more")
    raise UserError(
        f"{path}: its state (-) is not of this model and optimizer (+): {', '.join(sides)}; use "
        "the configuration that it was made with, or another workdir"
    )


def _hash(path: Path) -> str:
    """xxh3 of a file."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _dtype_and_shape(leaf: Any) -> list:
    typed = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return [np.dtype(typed.dtype).name, list(typed.shape)]

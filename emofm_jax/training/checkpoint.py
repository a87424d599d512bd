"""Checkpoints: the whole state of a run, written so that a kill at any point leaves a good one behind.

    <directory>/step_N/state.safetensors    every array, under flat names ("params/embedding", "opt_state/...")
    <directory>/step_N/state.json           step, info, path -> [dtype, shape] of each array, xxh3 of both files

A checkpoint is written into a temporary directory, flushed to the disk and renamed; the newest two and the best
are kept. Reading checks every byte: a damaged checkpoint is reported on stderr and the one before is taken.
Beyond the host copy of the state neither writing nor reading needs a second one.
"""

import concurrent.futures
import json
import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from emofm_jax.errors import UserError

FORMAT_VERSION = 1
_TEMPORARY = ".unfinished_"
_CHUNK_BYTES = 1 << 24
_HASHES = ', "xxh3": '


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      state: of the structure of `like`; numpy arrays, and Python numbers where `like` has some.
      info: as saved, with lists for tuples.
      step: of the checkpoint.
    """

    state: Any
    info: dict
    step: int


class _DamagedError(Exception):
    """A checkpoint that cannot be what was written."""


def save(
    directory: Path,
    step: int,
    state: Any,
    info: dict,
    *,
    best_step: int | None = None,
    exclude: tuple[str, ...] = (),
) -> None:
    """Writes `step_N` and removes what need not be kept. A kill leaves either the old files or all the new ones.

    Args:
      directory: of all checkpoints of the run; made if missing. One process writes there.
      step: steps done. A checkpoint of the same step is replaced; those of later steps are removed: they are
        of a run that was taken back to an earlier one.
      state: tree of arrays (numpy or jax) and Python numbers.
      info: anything JSON can hold; NaN and infinity may be in it.
      best_step: a step that is kept beside the newest two.
      exclude: flat names, or beginnings of them up to a `/`, that are left out ("owner").

    Raises:
      UserError: the disk is full or cannot be written; the checkpoints before this one are untouched.
    """
    _write(Path(directory), step, _host_copy(state, exclude), json.dumps(info), best_step)


class Saver:
    """Does `save` in the background, one at a time; the state may be donated as soon as `save` returns.

    The host copy of the state lives until it is written. An error of the writing is raised by the next call.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._running: concurrent.futures.Future | None = None

    def save(
        self,
        step: int,
        state: Any,
        info: dict,
        *,
        best_step: int | None = None,
        exclude: tuple[str, ...] = (),
    ) -> None:
        """Waits for the checkpoint before, copies the state to the host and starts writing it; see `save`."""
        self.wait()
        leaves, text = _host_copy(state, exclude), json.dumps(info)
        self._running = self._executor.submit(_write, self.directory, step, leaves, text, best_step)

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
    """The steps that have a checkpoint, ascending; whether their bytes are good shows when they are read."""
    names = (path.name.removeprefix("step_") for path in Path(directory).glob("step_*"))
    return sorted(int(name) for name in names if name.isdecimal())


def latest(directory: Path) -> int | None:
    """The newest step that has a checkpoint; None if there is none."""
    return max(steps(directory), default=None)


def read_info(directory: Path, step: int | None = None) -> tuple[int, dict]:
    """Step and `info` of a checkpoint without its arrays; which one, and the errors, as for `restore`."""
    body = _newest_good(Path(directory), step, _read_json)
    return body["step"], body["info"]


def restore(
    directory: Path, like: Any, *, step: int | None = None, exclude: tuple[str, ...] = ()
) -> Restored:
    """Reads a checkpoint into the structure of `like`.

    Args:
      directory: of all checkpoints of the run.
      like: tree whose leaves have the shapes and dtypes that are expected (arrays, `jax.ShapeDtypeStruct` or
        Python numbers).
      step: which one; by default the newest that is undamaged, saying on stderr which were not.
      exclude: as for `save`; these leaves come back as they are in `like`, and the checkpoint's are not read.

    Raises:
      UserError: no checkpoint; none that is undamaged, or not the one asked for; one of another model, with the
        arrays that only the checkpoint has (-) and those that only `like` has (+).
    """
    return _newest_good(Path(directory), step, lambda path: _read(path, like, exclude))


def _newest_good(directory: Path, step: int | None, read):
    """`read` of the step's directory, or of the newest one that it does not find damaged."""
    known = steps(directory)
    candidates = [step] if step is not None else known[::-1]
    if not set(candidates) & set(known):
        done = (directory.parent / "metrics.json").exists()
        hint = "sweep --nocheckpoints keeps none; train it again" if done else "train first"
        hint = f"choose one of {', '.join(map(str, known))}" if known else hint
        raise UserError(
            f"{directory}: no checkpoint{'' if step is None else f' of step {step}'}; {hint}"
        )
    problems = []
    for candidate in candidates:
        path = directory / f"step_{candidate}"
        try:
            result = read(path)
        except (_DamagedError, OSError) as error:
            problems.append(f"{path}: damaged checkpoint ({error})")
            continue
        for problem in problems:
            print(f"warning: {problem}; taking step {candidate} instead", file=sys.stderr)
        return result
    raise UserError(
        f"{', '.join(problems)}; remove {'it' if len(problems) == 1 else directory} to do without"
    )


def _host_copy(state: Any, exclude: tuple[str, ...]) -> dict[str, np.ndarray]:
    """{flat name: copy of the leaf}. On a CPU `device_get` alone gives a view, which the next step overwrites."""
    leaves = {
        name: leaf for name, leaf in _flatten(state)[0].items() if not _is_excluded(name, exclude)
    }
    return {
        name: np.array(jax.device_get(leaf), copy=True, order="C") for name, leaf in leaves.items()
    }


def _flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """({"opt_state/embedding/0/mu": leaf, ...} in the tree's order, structure)."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(flat) != len(pairs):
        raise ValueError("two leaves of the state have the same flat name")
    return flat, structure


def _is_excluded(name: str, exclude: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}/") for prefix in exclude)


def _write(
    directory: Path, step: int, leaves: dict[str, np.ndarray], info: str, best_step: int | None
) -> None:
    path, temporary = directory / f"step_{step}", directory / f"{_TEMPORARY}step_{step}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for unfinished in directory.glob(f"{_TEMPORARY}*"):  # of a killed writer
            shutil.rmtree(unfinished)
        temporary.mkdir()
        tree = {name: [leaf.dtype.name, list(leaf.shape)] for name, leaf in leaves.items()}
        safetensors.numpy.save_file(leaves, temporary / "state.safetensors")
        _sync(temporary / "state.safetensors")
        _write_json(
            temporary / "state.json", step, info, tree, _hash(temporary / "state.safetensors")
        )
        _sync(temporary / "state.json")
        _sync(temporary)
        if path.exists():
            _remove(path)
        os.rename(temporary, path)
        _sync(directory)
        kept = {best_step, *[s for s in steps(directory) if s <= step][-2:]}
        for other in steps(directory):
            if other not in kept or other > step:
                _remove(directory / f"step_{other}")
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        good = ", ".join(f"step_{s}" for s in steps(directory)) or "none"
        raise UserError(
            f"{path}: this checkpoint could not be written ({error}); free space or choose another workdir "
            f"(checkpoints that are there: {good})"
        ) from None


def _write_json(path: Path, step: int, info: str, tree: dict, digest: str) -> None:
    """Writes state.json; its own hash, the last entry, is of everything before it."""
    fields = {
        "format_version": str(FORMAT_VERSION),
        "step": str(step),
        "info": info,
        "tree": json.dumps(tree),
    }
    text = "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items())
    hashes = {"state.safetensors": digest, "state.json": xxhash.xxh3_64_hexdigest(text.encode())}
    path.write_text(f"{text}{_HASHES}{json.dumps(hashes)}}}\n", encoding="utf-8")


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


def _read(path: Path, like: Any, exclude: tuple[str, ...]) -> Restored:
    body = _read_json(path)
    flat, structure = _flatten(like)
    expected = {
        name: _dtype_and_shape(leaf)
        for name, leaf in flat.items()
        if not _is_excluded(name, exclude)
    }
    saved = {name: spec for name, spec in body["tree"].items() if not _is_excluded(name, exclude)}
    _check_same(path, saved, expected)
    arrays = _read_arrays(
        path / "state.safetensors", body["tree"], body["xxh3"], wanted=saved.keys()
    )
    for name in expected:
        is_number = isinstance(flat[name], bool | int | float)
        flat[name] = type(flat[name])(arrays[name].item()) if is_number else arrays[name]
    return Restored(
        jax.tree_util.tree_unflatten(structure, flat.values()), body["info"], body["step"]
    )


def _read_arrays(
    path: Path, tree: dict, digest: str, wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """Those arrays of state.safetensors, whose hash and content must be what state.json names."""
    if _hash(path) != digest:
        raise _DamagedError(f"{path.name} has another hash than it was written with")
    with safetensors.safe_open(path, "numpy") as file:
        names = set(file.keys())
        arrays = {name: file.get_tensor(name) for name in wanted if name in names}
    if names != tree.keys() or any(
        _dtype_and_shape(array) != tree[name] for name, array in arrays.items()
    ):
        raise _DamagedError(f"{path.name} holds other arrays than state.json names")
    return arrays


def _check_same(path: Path, saved: dict, expected: dict) -> None:
    """UserError with the leaves of one side only: - the checkpoint's, + the run's."""
    ours, theirs = ({f"{k} {v[0]}{v[1]}" for k, v in tree.items()} for tree in (expected, saved))
    if ours == theirs:
        return
    sides = []
    for sign, names in (("-", sorted(theirs - ours)), ("+", sorted(ours - theirs))):
        sides += [f"{sign} {name}" for name in names[:8]] + [f"{sign} {len(names) - 8} more"] * (
            len(names) > 8
        )
    raise UserError(
        f"{path}: its state (-) is not of this model and optimizer (+): {', '.join(sides)}; "
        "use the configuration that it was made with, or another workdir"
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


def _remove(path: Path) -> None:
    """Removes a checkpoint so that no half of it is ever taken for one."""
    trash = path.with_name(f"{_TEMPORARY}removed_{path.name}")
    os.rename(path, trash)
    shutil.rmtree(trash)


def _sync(path: Path) -> None:
    """Flushes a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checkpoints: the state of a run, written so that a kill at any point leaves a good one behind.

    <directory>/step_N/    arrays and what they are (training/checkpoint_files.py)

A checkpoint appears when it is whole and on the disk (`directories`); the newest two and the best
are kept. Of several processes each writes the rows of the table that it has, and the first, when
all have, the rest. Reading checks every byte: a damaged checkpoint is reported on stderr and the
one before is taken, by all processes. Beyond the host copy of the state neither writing nor reading
needs a second.
"""

import concurrent.futures
import copy
import json
import os
import secrets
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from emofm_jax import errors
from emofm_jax.data import directories, remote, storage
from emofm_jax.errors import FileError, LostError, UserError
from emofm_jax.training import checkpoint_files, processes
from emofm_jax.training.checkpoint_files import STATE, Body, Copy, DamagedError
from emofm_jax.training.checkpoint_files import flatten as flatten

_T = TypeVar("_T")


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: Any  # of the structure of `like`; numpy arrays, Python numbers where `like` has some
    info: dict  # as saved, with lists for tuples
    step: int


def save(
    directory: Path, step: int, state: Any, info: dict, *, best_step: int | None = None
) -> None:
    """Writes `step_N` and removes what need not be kept; a kill leaves the old files or the new.

    Args:
      directory: of all checkpoints of the run; made if missing. Only one run writes there.
      step: steps done. A checkpoint of the same step is replaced; those of later steps are removed:
        they are of a run that was taken back to an earlier one.
      state: tree of arrays (numpy or jax), Python numbers and shares of arrays (`placing.Share`).
      info: anything JSON can hold; NaN and infinity may be in it.
      best_step: a step that is kept beside the newest two.

    Raises:
      FileError: the disk is full or cannot be written; the checkpoints before are untouched.
      LostError: another process has ended.
    """
    with Saver(directory) as saver:
        saver.save(step, state, info, best_step=best_step)


class Saver:
    """Does `save` in the background, one at a time; the state may be donated when `save` returns.

    All processes make one at the same place, and save the same steps. The host copy of the state
    lives until it is written. An error is raised by the next call.
    """

    def __init__(self, directory: Path):
        self.directory = Path(directory)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._running: concurrent.futures.Future | None = None
        self._talk = _Talk(processes.gather(secrets.token_hex(8))[0], threading.Event())

    def save(self, step: int, state: Any, info: dict, *, best_step: int | None = None) -> None:
        """Waits for the checkpoint before, copies the state to the host and starts writing it."""
        self.wait()
        first = processes.is_first()
        copied = checkpoint_files.copy_of(state, whole=first)
        if first:
            job = (self.directory, step, copied, copy.deepcopy(info), best_step, self._talk)
            self._running = self._executor.submit(_write, *job)
        else:
            args = (self.directory, step, copied, self._talk)
            self._running = self._executor.submit(_write_share, *args)

    def wait(self) -> None:
        """Returns when everything is on the disk; raises what went wrong, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        """Waits; what went wrong is raised unless the block itself failed."""
        well = error_type is None or issubclass(error_type, UserError)
        if not well or error_type is LostError:  # others may never write what is waited for
            self._talk.given_up.set()
        self._executor.shutdown()
        if error_type is None:
            self.wait()


class _Talk(NamedTuple):
    """How the threads of processes that write one checkpoint tell each other what they have done.

    A collective would have to wait for its turn among those of the steps.
    """

    run: str  # so that nobody hears what an earlier run said
    given_up: threading.Event

    def tell(self, step: int, who: str, what: Any) -> None:
        processes.tell(f"{self.run}/{step}/{who}", json.dumps(what))

    def hear(self, step: int, who: str) -> Any:
        return json.loads(processes.hear(f"{self.run}/{step}/{who}", self.given_up))


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, ascending; whether it is whole shows when it is read."""
    names = (path.name.removeprefix("step_") for path in Path(directory).glob("step_*"))
    return sorted(int(name) for name in names if name.isdecimal())


def latest(directory: Path) -> int | None:
    """The newest step that has a checkpoint; None if there is none."""
    return max(steps(directory), default=None)


def read_info(directory: Path, step: int | None = None) -> tuple[int, dict]:
    """Step and `info` of a checkpoint without its arrays; which one, as for `restore`."""
    body = _newest_good(Path(directory), step, checkpoint_files.read_index)
    return body.step, body.info


def verify(directory: Path, step: int) -> str:
    """Reads a checkpoint and compares its digests; returns how many arrays it has, in words.

    Raises:
      UserError: it is damaged.
    """
    path = Path(directory) / f"step_{step}"
    storage.need(path)
    try:
        body = checkpoint_files.verify(path)
    except (DamagedError, FileNotFoundError) as error:
        raise UserError(f"{path}: damaged checkpoint ({error}); restore it") from None
    of_rows = f", rows in {len(body.rows)} files" if body.rows else ""
    return f"{len(body.tree)} arrays{of_rows}"


def restore(
    directory: Path, like: Any, *, step: int | None = None, only: Collection[str] = ()
) -> Restored:
    """Reads a checkpoint into the structure of `like`; all processes do so at the same place.

    Args:
      directory: of all checkpoints of the run.
      like: tree whose leaves have the shapes and dtypes that are expected (arrays,
        `jax.ShapeDtypeStruct` or Python numbers). Of a `placing.Share` of such, one is read: no
        more than that of a table that may have been saved as a whole or in other shares.
      step: which one; by default the newest that is undamaged, saying on stderr which were not.
      only: first parts of the names to read ("params"); by default `like` is the whole state.

    Raises:
      UserError: no checkpoint; none that is undamaged, or not the one asked for; one of another
        model, with the arrays that only the checkpoint has (-) and those that only `like` has (+).
    """
    read = lambda path: _agreed(lambda: _read(path, like, only))
    return _newest_good(Path(directory), step, read)


def _agreed(read: Callable[[], _T]) -> _T:
    """Returns what is read; damaged for all processes if it is for one, which reads other files."""
    if processes.count() == 1:
        return read()
    found, problem = None, ""
    try:
        found = read()
    except (DamagedError, FileNotFoundError) as error:
        problem = str(error)

    if said := [x for x in processes.gather(problem) if x]:
        raise DamagedError(said[0])
    assert found is not None
    return found


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
        except (DamagedError, OSError) as error:
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


def _write(
    directory: Path, step: int, copied: Copy, info: dict, best_step: int | None, talk: _Talk
) -> None:
    """Writes a checkpoint, or of several processes the first's part; it then waits for theirs."""
    path = directory / f"step_{step}"
    directories.clear(directory)  # what a killed writer left
    try:
        with directories.whole(path) as new:
            others = range(1, processes.count())
            if others:
                where = os.path.relpath(new, directory.absolute())
                talk.tell(step, "place", {"place": where, "token": remote.token()})
            digests = {STATE: checkpoint_files.write_arrays(new / STATE, copied.arrays)}
            shares = [_share(new, copied)] if copied.shares else []
            shares += [talk.hear(step, str(number)) for number in others]
            rows: dict[str, list[int]] = {}
            for number, share in enumerate(shares):
                if "error" in share:
                    raise FileError(share["error"])
                name = checkpoint_files.rows_name(number)
                rows[name], digests[name] = share["places"], share["xxh3"]
                if "object" in share:
                    storage.adopt(path / name, remote.File(*share["object"]))
            body = Body(step, info, copied.tree, rows, digests)
            checkpoint_files.write_index(new, body)
        prune(directory, step, best_step)
        storage.publish(directory)
    except FileError as error:
        good = ", ".join(f"step_{s}" for s in steps(directory)) or "none"
        raise FileError(f"{error} (checkpoints that are there: {good})") from None


def _write_share(directory: Path, step: int, copied: Copy, talk: _Talk) -> None:
    """Writes the share of a process that is not the first where that one says, or puts it there."""
    where, who = talk.hear(step, "place"), str(processes.index())
    try:
        if not storage.is_following(directory):
            talk.tell(step, who, _share(directory / where["place"], copied))
            return
        with directories.scratch(directory) as new:
            found, name = _share(new, copied), checkpoint_files.rows_name(processes.index())
            target = directory / f"step_{step}" / name
            talk.tell(
                step, who, found | {"object": storage.part(new / name, target, where["token"])}
            )
    except FileError as error:
        talk.tell(step, who, {"error": str(error)})
        raise


def _share(new: Path, copied: Copy) -> dict[str, Any]:
    """Writes the share of this process; returns what state.json says of it."""
    name = checkpoint_files.rows_name(processes.index())
    digest = checkpoint_files.write_arrays(new / name, copied.shares)
    return {"places": copied.places, "xxh3": digest}


def _read(path: Path, like: Any, only: Collection[str]) -> Restored:
    import jax

    storage.need(path)
    body = checkpoint_files.read_index(path)
    flat, structure = flatten(like)
    wanted = {k: x for k, x in body.tree.items() if not only or k.split("/")[0] in only}
    specs = {name: checkpoint_files.dtype_and_shape(leaf) for name, leaf in flat.items()}
    _check_same(path, wanted, specs)

    arrays = checkpoint_files.read_arrays(path, body, flat)
    for name, leaf in flat.items():
        is_number = isinstance(leaf, bool | int | float)
        flat[name] = type(leaf)(arrays[name].item()) if is_number else arrays[name]
    state = jax.tree_util.tree_unflatten(structure, flat.values())
    return Restored(state, body.info, body.step)


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

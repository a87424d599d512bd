"""Runs of a sweep at s3:// that another program has gone on with: places within a place.

    s3://bucket/sweep/published.json                      what the sweep has published
    s3://bucket/sweep/runs/POINT/seed-0/published.json    what others have of that run since

`train` and `evaluate` of one run, and the processes of a cluster, write the second; only the
program of the sweep, or of the backtest, writes the first. So each has one writer. The second says
of what in the first it began (`Index.began`): once the sweep has published something else of that
run, it is not read any more. Who reads the sweep reads both; the sweep, as it starts or a run ends,
names the objects of the second in the first, and then removes the second.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Mapping

from emofm_jax.data import files, remote
from emofm_jax.data.remote import DeniedError, File, Index, Place

_RUNS = re.compile(r"(?<=.)/(?=runs/.)")
_OBJECT = re.compile(rf"(runs/.+?/{re.escape(remote.OBJECTS)}/[^/]+)/.+")
_HAVE_RUNS = {"sweep.json", "backtest.json"}


def find_index(of: Place) -> tuple[Place, Index] | None:
    """The published directory that a place is or lies in; None if it is plain.

    Raises:
      UserError: as `remote.read_index` does.
    """
    at = of
    while at.key:
        try:
            if (index := remote.read_index(at)) and is_of_now(at, index):
                return at, index
        except DeniedError:
            if at is of:
                raise
            return None  # what lies above is of somebody else
        at = at.above()
    return None


def above(of: Place) -> tuple[Index, str] | None:
    """What the sweep has published that a place may be a run of, and the name of the run in it."""
    for found in reversed([*_RUNS.finditer(of.key)]):  # a point may be called "runs"
        run = of.key[found.end() :]
        sweep = Place(of.name.removesuffix(f"/{run}"), of.system, of.key[: found.start()])
        try:
            index = remote.read_index(sweep)
        except DeniedError:
            continue
        if index and index.files.keys() & _HAVE_RUNS:
            return index, run
    return None


def said(index: Index, run: str) -> str:
    """The digest of what an index says of a run; empty if nothing."""
    lines = sorted([n, f.size, f.xxh3] for n, f in index.files.items() if n.startswith(f"{run}/"))
    return files.digest(json.dumps(lines)) if lines else ""


def is_of_now(of: Place, index: Index) -> bool:
    """Whether what is published at a place goes on from what the sweep around it has of that."""
    found = above(of)
    return not found or index.began == said(*found)


def runs(of: Place) -> dict[str, Index]:
    """What is published within a place: {name of a run: its index}, of now or not."""
    below = Place(f"{of.name}/runs", of.system, f"{of.key}/runs")
    try:
        names = remote.names(below)
    except DeniedError:  # who may read what is named may not look what else there is
        return {}
    at = (f"runs/{posixpath.dirname(n)}" for n in names if posixpath.basename(n) == remote.INDEX)
    found = {run: remote.read_index(run_of(of, run)) for run in sorted(at)}
    return {run: index for run, index in found.items() if index}


def run_of(of: Place, run: str) -> Place:
    """The place of a run."""
    return Place(f"{of.name}/{run}", of.system, f"{of.key}/{run}")


def with_runs(of: Place, index: Index) -> Index:
    """What is to be read of a published place: with what programs have of its runs since."""
    if not index.files.keys() & _HAVE_RUNS:
        return index
    new = {run: own for run, own in runs(of).items() if own.began == said(index, run)}
    if not new:
        return index
    commits = files.digest(" ".join(own.commit for own in new.values()))
    return Index(f"{index.commit}+{commits}", taken(index.files, new))


def taken(of: Mapping[str, File], new: Mapping[str, Index]) -> dict[str, File]:
    """The files of a place when runs in it are what their own indexes say."""
    gone = tuple(f"{run}/" for run in new)
    found = {name: file for name, file in of.items() if not name.startswith(gone)}
    for run, own in new.items():
        at = lambda name, run=run: f"{run}/{name}"
        found |= {at(n): f._replace(object=at(f.object)) for n, f in own.files.items()}
    return found


def remove(of: Place, run: str, index: Index, used: set[str]) -> None:
    """Removes what a run has published itself, but for objects that are used: the place has it."""
    place, own = run_of(of, run), f"{run}/{remote.OBJECTS}/"
    remote.remove_file(place, remote.INDEX)
    kept = {name.removeprefix(own).split("/")[0] for name in used if name.startswith(own)}
    for token in {*remote.tokens(place)} - kept:
        if token <= index.commit:  # who goes on with the run puts newer ones
            remote.remove(place, f"{remote.OBJECTS}/{token}")


def homes(objects: Iterable[str]) -> set[str]:
    """The directories, of runs, that objects of a place lie in."""
    return {found[1] for name in objects if (found := _OBJECT.fullmatch(name))}


def named_above(of: Place) -> set[str]:
    """Tokens of a place of which the sweep around it names objects."""
    if not (found := above(of)):
        return set()
    index, run = found
    own = f"{run}/{remote.OBJECTS}/"
    objects = [file.object for file in index.files.values()]
    return {name.removeprefix(own).split("/")[0] for name in objects if name.startswith(own)}

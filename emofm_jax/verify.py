"""Reads all that a directory holds and says of each part whether it is what was written.

    python -m emofm_jax.verify data/mine            shards
    python -m emofm_jax.verify runs/quickstart      a run
    python -m emofm_jax.verify runs/mixers          a sweep, with all of its runs
    python -m emofm_jax.verify runs/backtest        a backtest: its results, data and runs
    python -m emofm_jax.verify artefact             an export

Compares digests, checksums of Parquet pages, and of an export its worked example. A part of release
0.1, or one that was changed by hand, has no digest: it is read, and the line says so. Exit code: 0;
2 if a part is damaged.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from emofm_jax import cli, errors, options
from emofm_jax import config as config_lib
from emofm_jax.data import encode, files, parquet, shards, storage
from emofm_jax.data import schema as schema_lib
from emofm_jax.errors import UserError
from emofm_jax.evaluation import run_report
from emofm_jax.sweeping import record

_REMEDY = "restore it, or make it again"
_UNSIGNED = "no digest"
# A part of a directory: its name, and what reads it and returns a word on it.
_Part = tuple[str, Callable[[], str]]


def _main(flags: absl_flags.FlagValues) -> None:
    directory = storage.reading(flags.dir)
    storage.need(directory)
    damaged, number = [], 0
    for name, read in _parts(directory):
        number += 1
        problem = ""
        try:
            word = read()
        except Exception as error:
            if not (problem := _problem(error)):
                raise
            damaged.append(problem)
        line = f"DAMAGED  {problem}" if problem else f"well     {name}{word and f' ({word})'}"
        print(errors.printable(line))

    if damaged:
        what = f"{len(damaged)} of {number} parts are damaged"
        raise UserError(f"{directory}: {what}, the first is {damaged[0]}")
    print(f"all {number} parts of {directory} are well")


def _problem(error: Exception) -> str:
    """What is wrong with a part, in a line; empty if the error is none of a file's."""
    is_content = isinstance(error, ValueError | KeyError | TypeError | AttributeError)
    return errors.said(error) or (f"{type(error).__name__}: {error}" if is_content else "")


def _parts(directory: Path) -> Iterator[_Part]:
    """The parts of whatever a directory is.

    Raises:
      UserError: it is nothing that a program has written.
    """
    has = lambda name: (directory / name).exists()
    if has("backtest.json"):
        yield from _of_backtest(directory)
    elif has("sweep.json"):
        yield from _of_sweep(directory)
    elif has("signature.json"):
        yield from _of_export(directory)
    elif has("config.json"):
        yield from _of_run(directory)
    elif has("schema.json"):
        yield from _of_shards(directory)
    else:
        holds = "holds no shards, run, sweep, backtest or export"
        names = "no schema.json, config.json, sweep.json, backtest.json or signature.json"
        raise UserError(f"{directory}: it {holds} ({names}); name another")


def _json(path: Path) -> _Part:
    """A file that holds a JSON object."""

    def read() -> str:
        try:
            files.read_json(path)
        except ValueError as error:
            raise UserError(f"{path}: {error}; {_REMEDY}") from None
        return "" if '"xxh3": "' in path.read_text(encoding="utf-8") else _UNSIGNED

    return str(path), read


def _lines(path: Path) -> _Part:
    """A file that holds a JSON object a line."""

    return str(path), lambda: f"{len(_objects(path)):,} lines"


def _parquet(path: Path) -> _Part:
    """A file of rows."""
    return str(path), lambda: f"{parquet.read(path, None, _REMEDY).num_rows:,} rows"


def _there(directory: Path, *patterns: str) -> Iterator[_Part]:
    """The JSON and Parquet files of a directory that have such names."""
    of = {".json": _json, ".jsonl": _lines, ".parquet": _parquet}
    for path in sorted({path for pattern in patterns for path in directory.glob(pattern)}):
        yield of[path.suffix](path)


def _vocabularies(directory: Path) -> _Part:
    def read() -> str:
        found = encode.load_vocabularies(schema_lib.load(directory), directory)
        return f"{len(found)} of them"

    return f"{directory / 'vocabulary'}", read


def _of_shards(directory: Path) -> Iterator[_Part]:
    yield _json(directory / "schema.json")
    names = ("prepare.json", "rare/*.parquet", "*/rejected.parquet", "*/truth.parquet")
    yield from _there(directory, *names)
    yield _vocabularies(directory)
    noted = schema_lib.load(directory).digests
    for name in (n for n in shards.SPLITS if n in noted or (directory / n).is_dir()):
        yield f"{directory / name}", functools.partial(_split, directory, name)


def _split(directory: Path, name: str) -> str:
    split = shards.open_split(directory, name)
    shards.verify(split)
    rows = f"{split.num_rows:,} rows"
    return rows if split.digest else f"{rows}, {_UNSIGNED}"


def _of_run(directory: Path) -> Iterator[_Part]:
    yield f"{directory} as a run", functools.partial(_run, directory)
    yield from _there(directory, "*.json", "*.jsonl", "rare/*.parquet")
    yield _vocabularies(directory)
    yield from _there(directory / "predictions", "*.json", "*.parquet")
    if (directory / "checkpoints").is_dir():
        from emofm_jax.training import checkpoint  # loads jax

        yield f"{directory / 'log.jsonl'} as a whole", functools.partial(_log, directory)
        for step in checkpoint.steps(directory / "checkpoints"):
            name = f"{directory / 'checkpoints' / f'step_{step}'}"
            yield name, functools.partial(checkpoint.verify, directory / "checkpoints", step)


def _run(directory: Path) -> str:
    """The name of a run whose metrics.json, if it has one, is of its own state."""
    if (directory / run_report.FILE).exists():
        with contextlib.suppress(ValueError):  # damaged, which is said of the file
            run_report.check(directory, files.read_json(directory / run_report.FILE))
    return config_lib.load(directory).name


def _log(directory: Path) -> str:
    """Compares the length of log.jsonl with what it had when the newest checkpoint was saved."""
    from emofm_jax.training import checkpoint  # loads jax

    if checkpoint.latest(directory / "checkpoints") is None:
        return "no checkpoint tells"
    step, info = checkpoint.read_info(directory / "checkpoints")
    path, saved = directory / "log.jsonl", int(info.get("log_bytes") or 0)
    found = path.stat().st_size if path.exists() else 0
    if found < saved:
        what = f"{found:,} bytes, and {saved:,} when the checkpoint of step {step} was saved"
        raise UserError(f"{path}: {what}; restore it, reports lack its curves")
    return f"{found:,} bytes"


def _of_export(directory: Path) -> Iterator[_Part]:
    def read() -> str:
        from emofm_jax.scoring import artefact  # loads jax

        artefact.load(directory)
        return "checksums and worked example"

    yield f"{directory}", read
    yield _vocabularies(directory)


def _of_sweep(directory: Path) -> Iterator[_Part]:
    yield from _there(directory, "sweep.json", "results.jsonl")
    yield str(directory), functools.partial(_one_sweep, directory)
    lines = functools.cache(functools.partial(_by_run, directory / "results.jsonl"))
    found = sorted(directory.glob("runs/*/seed-*/result.json"))
    for path in (x for x in found if x.parent.name.removeprefix("seed-").isdigit()):
        yield f"{path} as a whole", functools.partial(_one_result, directory, path, lines)
    yield from _runs(directory, "runs/*/seed-*")


def _one_sweep(directory: Path) -> str:
    """Compares which sweep its files say that they are of."""
    path, lines = directory / "sweep.json", _objects(directory / "results.jsonl")
    try:
        header = record.Header.from_json(files.read_json(path))
        for line in lines:
            header.check(line)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {_REMEDY}") from None
    return "of one sweep"


def _by_run(path: Path) -> dict[tuple, dict[str, Any]]:
    """{(point, seed): line}; of a file that is damaged, which is said of it, nothing."""
    with contextlib.suppress(UserError, TypeError):  # which a list as a point raises
        return {(line.get("point"), line.get("seed")): line for line in _objects(path)}
    return {}


def _one_result(
    directory: Path, path: Path, lines: Callable[[], Mapping[tuple, Mapping[str, Any]]]
) -> str:
    """Compares how a run ended with its place, with its metrics.json and its line."""
    with files.undamaged(path, _REMEDY):
        result = record.Result.from_json(files.read_json(path))
        place = directory / record.place(result.point, result.seed)
    if path.parent != place:
        what = f"of point {result.point!r}, seed {result.seed}, not of its place"
        raise UserError(f"{path}: {what}; {_REMEDY}")
    metrics = path.parent / run_report.FILE
    if result.ok and metrics.exists() and not _went_on(path.parent, result):
        with files.undamaged(metrics, _REMEDY):
            same = files.read_json(metrics) == result.metrics
        if not same:
            raise UserError(f"{path}: other figures than {metrics}; {_REMEDY}")

    there = lines().get((result.point, result.seed))
    if there is None:
        return "no line in results.jsonl"
    here = files.from_json(files.as_json(result.line()))
    # The same run may have another name for what differs from a base that has changed.
    if any(there[k] != here[k] for k in (there.keys() & here.keys()) - {"overrides", "workdir"}):
        raise UserError(f"{path}: another result than its line of results.jsonl; {_REMEDY}")
    return ""


def _went_on(run: Path, result: record.Result) -> bool:
    """Whether a run was trained on, or fitted anew, since the sweep noted how it ended."""
    if not (run / "config.json").exists():
        return False
    then = config_lib.renamed(dict(result.config))
    differ = config_lib.changed(then, options.flatten(config_lib.load(run)))
    return any(key in then and key not in config_lib.free() for key in differ)


def _objects(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, if it is there."""
    with files.named(path, what="read"):
        lines = path.read_bytes().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(files.from_json(line.decode()))
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}; {_REMEDY}") from None
    return found


def _one_backtest(directory: Path) -> str:
    """Compares the lines of a backtest, the runs that they are of, and what backtest.json says."""
    from emofm_jax.sweeping import backtest  # loads jax

    header = backtest.Header.load(directory / backtest.FILE)
    path = directory / "results.jsonl"
    lines = _objects(path)
    for body in lines:
        with files.undamaged(path, _REMEDY):
            line = backtest.Line.from_json(body)
            backtest.check_line(directory, header, line)
    return f"{len(lines):,} lines of {len(header.days)} days"


def _of_backtest(directory: Path) -> Iterator[_Part]:
    yield from _there(directory, "backtest.json", "results.jsonl")
    yield str(directory), functools.partial(_one_backtest, directory)
    for path in sorted(directory.glob("data/*/*/schema.json")):
        yield from _of_shards(path.parent)
    yield from _runs(directory, "runs/*/*/seed-*")


def _runs(directory: Path, pattern: str) -> Iterator[_Part]:
    """Runs, and what is left of those that never began."""
    for run in sorted(directory.glob(pattern)):
        if (run / "config.json").exists():
            yield from _of_run(run)
        else:
            yield from _there(run, "*.json", "predictions/*.parquet")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    where = "Directory of shards, a run, a sweep, a backtest or an export."
    absl_flags.DEFINE_string("dir", None, where, flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """Runs the program: exit code 0, or 2 after one line of error."""
    program, *words = sys.argv if argv is None else argv
    flags = [word if word.startswith("-") else f"--dir={word}" for word in words]
    return cli.run(_main, _define, [program, *flags])


if __name__ == "__main__":
    sys.exit(main())

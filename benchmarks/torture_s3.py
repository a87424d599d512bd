"""Is anything half-published ever read? Kills programs at each operation on a store, and lets each fail.

    python benchmarks/torture_s3.py [--only=train] [--reads=1] [--server]

The store is in memory, with streams that publish what they hold as they are let go of, as pyarrow's do; with --server
it is moto's on localhost (extra `test`), with pyarrow's client, and takes some five times as long. For each program, for each operation on
the store, n = 1, 2, ..:

    fail, fail late    operation n fails; late: it was done, and its answer lost. One line and exit code 2; 0 with a
                       warning where only what is not needed any more stays
    kill, kill late    no operation from n on is done; late: from the one after n on

With --reads=5 these are all operations that change the store, and each fifth of those that read it.

How many operations train has depends on its threads: it may have ended before the last.

Then a program on another machine, without a copy, reads what is there: all of it, with digests, or nothing. The same
command there ends well, with the numbers that local paths have, to the bit: arrays of checkpoints, predictions, shards,
metrics. Stages of prepare (--only=stages) are attacked one after another: the same command, and those behind it, end
with the shards of local paths. Prints a table; the exit code is 1 if one fell short.
"""

import argparse
import collections
import contextlib
import functools
import importlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import object_store, s3_server  # noqa: E402
from benchmarks.faulty import Faulty, Killed  # noqa: E402
from emofm_jax.data import files, remote, storage  # noqa: E402

PREPARE = 'p.groups = (("user", ("user_id",)), ("item", ("item_id",)))'
KINDS = {
    "fail": (False, False),
    "fail late": (True, False),
    "kill": (False, True),
    "kill late": (True, True),
}
IN, TRIAL = "s3://bucket/in", "s3://bucket/trial"


class Case(NamedTuple):
    """A program: what it has to begin with, its flags ({i} for inputs, {o} for outputs), what it makes."""

    program: str
    begins_with: str
    flags: str
    makes: str


DATA = "--config={config} --config.prepare.source={i}/raw"
CASES = [
    Case("prepare", "", DATA + " --config.data.dir={o}/data", "data"),
    Case("train", "", DATA + " --config.data.dir={i}/data --workdir={o}/run", "run"),
    Case("export", "", "--workdir={i}/run --output={o}/art", "art"),
    Case(
        "predict",
        "",
        "--workdir={i}/run --input={i}/data/test --output={o}/scores.parquet",
        "scores.parquet",
    ),
    Case("evaluate", "run", "--workdir={o}/run --split=valid --calibrate=platt", "run"),
    Case(  # which publishes a run of the sweep alone
        "evaluate",
        "sweep",
        "--workdir={o}/sweep/runs/one/seed-0 --split=valid --calibrate=platt",
        "sweep/runs/one/seed-0",
    ),
]
SWEEP = Case("sweep", "", DATA + " --config.data.dir={i}/data --workdir={o}/sweep", "sweep")
POINTS = """

def sweep():
    yield "one", {}
"""
STAGES = ("count --shard=1/1", "merge", "encode --shard=1/1", "publish")


def flags_of(case: Case, place: Path, inputs: str, outputs: str) -> list[str]:
    """The command line of a case."""
    text = case.flags.format(config=place / "mine.py", i=inputs, o=outputs)
    return [case.program, *text.split()]


def run(argv: list[str]) -> tuple[int, str]:
    """Runs a program in this process: its exit code, and what it said on stderr."""
    program = importlib.import_module(f"emofm_jax.{argv[0]}")
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = program.main(argv)
    return code, error.getvalue()


def well(argv: list[str]) -> None:
    """Runs what nothing disturbs."""
    code, error = run(argv)
    if code:
        raise RuntimeError(f"{argv}: {code}: {error}")


def anew(system: Faulty | None = None) -> None:
    """Begins another program, on a machine that has no copies; its operations go to a file system."""
    storage.forget()
    with contextlib.suppress(OSError):
        shutil.rmtree(files.user_cache() / "remote")
    remote.place.cache_clear()
    remote.system = SYSTEM if system is None else lambda name: (system, SYSTEM(name)[1])


@functools.lru_cache
def SYSTEM(name: str) -> tuple[Any, str]:
    """The store without faults, and the key of a name in it."""
    return (STORE, name.removeprefix("s3://")) if STORE else S3(name)


STORE: Any = None  # by default the server's
S3 = remote.system


def numbers(path: Path) -> dict[str, object]:
    """What a run, shards, an export or a file hold, but for times and names of places."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    binary = [*path.rglob("*.safetensors"), *path.rglob("*.npz"), *path.rglob("*.parquet")]
    found: dict[str, Any] = {p.relative_to(path).as_posix(): p.read_bytes() for p in binary}
    for name, content in found.items():
        if name.endswith(".safetensors"):  # without its head: each export has a name of its own
            found[name] = content[8 + int.from_bytes(content[:8], "little") :]
    for name in ("metrics.json", "calibration.json"):
        if (path / name).exists():
            body = files.read_json(path / name)
            found[name] = {key: body.get(key) for key in ("valid", "test", "platt", "a", "b")}
    return found


def there(name: str) -> dict[str, object] | None:
    """What another machine reads at a place, compared with its digests; None if there is nothing."""
    anew()
    path = storage.reading(name)
    storage.need(path)
    if not path.exists():
        return None
    if path.is_dir() and (path / "config.json").exists():
        well(["verify", name])
    return numbers(path)


def put_back(begins_with: str) -> None:
    """Leaves at the place of the trials what a case begins with, and nothing else."""
    system, key = SYSTEM(TRIAL)
    from pyarrow import fs

    select = fs.FileSelector(key, recursive=True, allow_not_found=True)
    for info in system.get_file_info(select):
        if info.type == fs.FileType.File:
            system.delete_file(info.path)
    if begins_with:
        source = f"{SYSTEM(IN)[1]}/{begins_with}"
        for info in system.get_file_info(fs.FileSelector(source, recursive=True)):
            if info.type == fs.FileType.File:
                system.copy_file(info.path, info.path.replace(source, f"{key}/{begins_with}", 1))


def attack(
    case: Case, place: Path, wanted: dict[str, object], reads: int
) -> Iterator[tuple[str, int, str]]:
    """Yields (kind, operation, outcome) of each fault; what begins with "!" fell short."""
    argv, name = flags_of(case, place, IN, TRIAL), f"{TRIAL}/{case.makes}"
    put_back(case.begins_with)
    before = there(name)
    put_back(case.begins_with)
    system = Faulty(SYSTEM(TRIAL)[0])
    anew(system)
    well(argv)
    numbers_of = [n for n in range(1, system.calls + 1) if n in system.changing or n % reads == 0]
    for kind, (done, killed) in KINDS.items():
        for at in numbers_of:
            put_back(case.begins_with)
            system = Faulty(SYSTEM(TRIAL)[0], at, done, killed)
            anew(system)
            try:
                outcome = answer(*run(argv))
            except Killed:
                outcome = "killed"
            if system.calls < at:
                outcome = "ended before"
            yield kind, at, outcome
            try:
                found = there(name)
                if case.program != "train" and found not in (before, wanted):
                    yield kind, at, "! neither what was there nor what was to be there is read"
                anew()
                well(argv)
                if there(name) != wanted:
                    yield kind, at, "! the same command makes other numbers"
            except Exception as error:
                yield kind, at, f"! {type(error).__name__}: {error}"


def attack_stages(
    place: Path, wanted: dict[str, object], reads: int
) -> Iterator[tuple[str, int, str]]:
    """What `attack` does, for each stage of prepare, which leaves no directory that is read alone."""
    put_back("")
    all_of = [[*flags_of(CASES[0], place, IN, TRIAL), *f"--stage={s}".split()] for s in STAGES]
    for number, argv in enumerate(all_of):
        before, system = contents(), Faulty(SYSTEM(TRIAL)[0])
        anew(system)
        well([*argv, "--workers=1"])
        after = contents()
        count = system.calls + 1
        numbers_of = [n for n in range(1, count) if n in system.changing or n % reads == 0]
        for kind, (done, killed) in KINDS.items():
            for at in numbers_of:
                put_back("")
                put_contents(before)
                anew(Faulty(SYSTEM(TRIAL)[0], at, done, killed))
                try:
                    outcome = answer(*run([*argv, "--workers=1"]))
                except Killed:
                    outcome = "killed"
                yield f"{kind} ({STAGES[number].split()[0]})", at, outcome
                try:
                    is_cleared = {name.split("/")[0] for name in contents()} == {"data"}
                    for rest in [] if is_cleared else all_of[number:]:
                        anew()
                        well([*rest, "--workers=1"])
                    if there(f"{TRIAL}/data") != wanted:
                        yield kind, at, "! the same commands make other shards"
                    if {name.split("/")[0] for name in contents()} != {"data"}:
                        yield kind, at, f"! something is left: {min(contents())}"
                except Exception as error:
                    yield kind, at, f"! {type(error).__name__}: {error}"
        put_back("")
        put_contents(after)


def contents() -> dict[str, bytes]:
    """All objects at the place of the trials."""
    of = remote.Place(TRIAL, *SYSTEM(TRIAL))
    found = {}
    for name in remote.names(of):
        with remote.opened(of, name, name) as stream:
            found[name] = stream.read()
    return found


def put_contents(found: dict[str, bytes]) -> None:
    """Puts what `contents` gave."""
    for name, body in found.items():
        remote.put(remote.Place(TRIAL, *SYSTEM(TRIAL)), name, name, [body])


def answer(code: int, error: str) -> str:
    """What a program that was not killed makes of a fault, in words."""
    lines = error.splitlines()
    if "Traceback" in error:
        return f"! {error}"
    if code == 2 and sum(line.startswith("error: ") for line in lines) == 1:
        return "one line, exit code 2"
    if code == 0 and any("what is not needed any more stays there" in line for line in lines):
        return "ended well, with a warning"
    return f"! exit code {code}: {error}"


def main() -> int:
    """Runs it all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a program")
    parser.add_argument("--reads", type=int, default=1, help="each so many of those that only read")
    parser.add_argument("--server", action="store_true", help="a server, in place of the memory")
    options = parser.parse_args()
    globals()["STORE"] = None if options.server else object_store.Store()
    fallen, table, began = [], collections.Counter(), time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        files.user_cache = lambda: place / "cache"
        storage._THREADS = 1  # operation n is the same one each time
        with s3_server.serve(place / "log") if options.server else contextlib.nullcontext():
            anew()
            wanted = make_inputs(place)
            for case in CASES:
                if options.only in ("", case.program):
                    for kind, at, outcome in attack(case, place, wanted[case], options.reads):
                        if outcome.startswith("!"):
                            fallen.append(f"{case.program}, {kind} at operation {at}: {outcome}")
                            print(fallen[-1], flush=True)
                        else:
                            table[case.program, kind, outcome] += 1
                    print(f"{case.program}: {table.total()} faults until now", flush=True)
            if options.only in ("", "stages"):
                for kind, at, outcome in attack_stages(place, wanted[CASES[0]], options.reads):
                    if outcome.startswith("!"):
                        fallen.append(f"stages, {kind} at operation {at}: {outcome}")
                        print(fallen[-1], flush=True)
                    else:
                        table["stages", kind, outcome] += 1
                print(f"stages: {table.total()} faults until now", flush=True)
            anew()
    for (program, kind, outcome), number in table.items():
        print(f"| {program} | {kind} | {outcome} | {number} |")
    seconds = time.process_time() - began
    print(f"{table.total()} faults, {len(fallen)} fell short; {seconds:.0f} s of the processor")
    return int(bool(fallen))


def make_inputs(place: Path) -> dict[Case, dict[str, object]]:
    """Makes what the cases read, locally and at IN; returns the numbers of local paths."""
    (place / "mine.py").write_text(s3_server.EXPERIMENT.format(prepare=PREPARE) + POINTS)
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,click"]
    for user, item in zip(rng.integers(0, 9, 200), rng.integers(0, 7, 200)):
        lines.append(f"u{user},i{item},{int(rng.random() < 0.2 + 0.08 * item)}")
    body = "\n".join(lines).encode()
    (place / "local" / "raw").mkdir(parents=True)
    (place / "local" / "raw" / "a.csv").write_bytes(body)
    at = remote.place(f"{IN}/raw/a.csv")
    remote.put(at, "", at.name, [body])
    for case in (*CASES[:2], SWEEP):
        well(flags_of(case, place, IN, IN))
    local, wanted = str(place / "local"), {}
    well(flags_of(CASES[0], place, local, local))
    well(flags_of(SWEEP, place, local, local))
    for case in CASES:
        well(flags_of(case, place, local, local))
        wanted[case] = numbers(place / "local" / case.makes)
    return wanted


if __name__ == "__main__":
    sys.exit(main())

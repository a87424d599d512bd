"""Is anything lost, torn or silently another number? Kills programs, lets their file operations fail, damages files.

    python benchmarks/torture.py --kills=300 --faults=300 --damage --fuzz=300 [--seed=0] [--only=GLOB] [--keep=DIR]
    python benchmarks/torture.py --each [--errors=4] [--seed=0] [--only=GLOB] [--without=REGEX]

Real processes of all programs, on tiny data; with --small they read and write it in pieces of a few
rows, so that it has many blocks, row groups and shards. Each case begins with a copy of a directory
that was made without disturbance. A process may use 2 GiB and 30 seconds of the processor, and take 120.

    kill      SIGKILL at the nth file operation, by a layer below the process (torture.c, preloaded):
              a write is killed in its middle. First one of each distinct operation (what is done,
              and to which file, but for numbers in names), then any. The same command again must
              end well, and leave the files that it leaves undisturbed, byte for byte but for times.
    fault     the nth operation fails, once or from then on, with ENOSPC, EDQUOT, EIO or EROFS;
              distinct ones first, each in both ways. With --each: every distinct one, in both ways,
              the four errors in turn, or --errors=4 of them each (reads have EIO alone); --without
              leaves out operations, as --without=/runs/ those in runs of a sweep. Exit code 2 and one
              line that names a file (0 where only a log is lost, with a warning); then the same
              command as above, once for each state that faults leave.
    damage    each file cut in two, emptied, with a flipped bit, or another run's: exit code 2 and one line, a warning,
              or what an undamaged directory gives.
    fuzz      random and broken raw files, and Parquet files of any types: exit code 0, every row read or counted as
              rejected, or 2 and one line. Other values in schemas, configs, checkpoints, exports, fields of experiments
              (--only=prepare-raw, prepare-parquet, fuzz-schema ..): exit code 0, or 2 and one line.

Prints a table, cases by outcome, and what to give to --only and --seed for each that fell short. The exit code is 1 if
one did. Needs gcc and Linux.
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import fnmatch
import gc
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MIB = 2048  # that a process on tiny data may hold
BUSY = "another program works there now"
SECONDS = 120  # after which a process counts as hanging
PROCESSOR_SECONDS = 30  # that it may compute; others may use the machine, too
PROGRAMS = ("prepare", "train", "evaluate", "predict", "export", "sweep", "report")
PROGRAMS += ("compare", "backtest", "verify")
# Numbers that no two runs have in common, and digests of files that hold them.
TIMES = {
    "rows_per_s",
    "input_wait",
    "seconds",
    "waited",
    "rows",
    "peak_memory_mib",
    "xxh3",
    "log_bytes",
}
# What --small makes of the sizes of pieces, in rows or bytes.
SMALL = {
    "data.formats.lines": {"BLOCK_BYTES": 2048, "MAX_LINES": 64, "CACHED_BYTES": 256},
    "data.formats.tabular": {"_PARQUET_ROWS": 32},
    "data.parquet": {"_BUFFER": 256},
    "data.shards": {"ROW_GROUP_ROWS": 64, "SHARD_ROWS": 200},
    "data.stages": {"_JOB_BYTES": 4096},
    "data.vocabulary": {"_MERGE_ROWS": 16},
    "training.checkpoint_files": {"_CHUNK_BYTES": 1024, "_CHUNK_ROWS": 16},
    "training.predictions": {"_WRITE_ROWS": 64},
    "scoring.row_files": {"BATCH_ROWS": 32},
}
ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

EXPERIMENT = """
from emofm_jax import config

def get_config(arg=None):
    c = config.default()
    c.name = "tiny"
    c.prepare.format, c.prepare.source = "tabular", "raw"
    c.prepare.files.train, c.prepare.files.valid, c.prepare.files.test = "train.csv", "valid.csv", "test.csv"
    c.prepare.label = "label"
    c.prepare.groups = (("user", ("user",)), ("item", ("item", "tags", "price")))
    c.prepare.slots = {"tags": {"kind": "multi", "max_length": 3}, "price": {"kind": "numeric"}}
    c.prepare.max_rejected = 100000
    c.data.dir, c.data.batch_size, c.data.eval_batch_size = "data", 64, 64
    c.model.name, c.model.embedding_dim, c.model.hidden = "dnn", 4, (8,)
    c.train.epochs, c.train.log_every_steps, c.train.save_every_steps = 2, 2, 3
    if arg == "days":
        c.prepare.source, c.data.dir = "days", "data"
        c.prepare.split, c.prepare.day_column = "day", "day"
        c.prepare.slot.encoding, c.prepare.slot.rows = "hash", 64
        c.train.epochs = 1
    if arg == "libsvm":
        c.prepare.format, c.prepare.label = "libsvm", ""
        for split in ("train", "valid", "test"):
            c.prepare.files[split] = f"{split}.svm"
    return c

policies, first_days = {"frozen": {}, "warm": {}}, 2

def sweep():
    yield "wide", {"model.hidden": (16,)}
    yield "narrow", {"model.hidden": (4,)}
"""


PREDICT = "predict --workdir=run --input=raw/test.csv --output=out.csv"
BACKTEST = "backtest --config=exp.py:days --workdir=lived"
SWEEP_OF_TWO = "sweep --config=exp.py --workdir=swept --nocheckpoints --jobs=2"


class Case(NamedTuple):
    """A command, and the directory that it begins in.

    `child`: the operations that count are those of the first process that it starts.
    """

    name: str
    template: str
    command: str
    child: bool = False


CASES = (
    Case("prepare", "raw", "prepare --config=exp.py"),
    Case("prepare-again", "other", "prepare --config=exp.py"),
    Case("train", "data", "train --config=exp.py --workdir=run"),
    Case("train-on", "begun", "train --config=exp.py --workdir=run"),
    Case("evaluate", "run", "evaluate --workdir=run --calibrate=platt"),
    Case("importance", "run", "evaluate --workdir=run --split=valid --importance"),
    Case("predict", "run", "predict --workdir=run --input=raw/test.csv --output=out.parquet"),
    Case("predict-csv", "run", "predict --workdir=run --input=raw/test.csv --output=out.csv"),
    Case("export", "run", "export --workdir=run --output=made"),
    Case("export-again", "exported", "export --workdir=run --output=made"),
    Case("sweep", "data", "sweep --config=exp.py --workdir=swept --nocheckpoints"),
    # Of several processes the operations of the first one count; all die with it, wherever they are.
    Case("jobs", "data", SWEEP_OF_TWO),
    Case("one-job", "data", SWEEP_OF_TWO, child=True),
    Case("report", "run", "report --workdir=run"),
    Case("report-sweep", "swept", "report --workdir=swept"),
    Case("base", "run", "prepare --config=exp.py --config.data.dir=next --base=run"),
    Case(
        "init-from",
        "grown",
        "train --config=exp.py --config.data.dir=next --init_from=run --workdir=went",
    ),
    Case(
        "compare",
        "exported",
        "compare --workdirs=run,made --input=raw/test.csv --output=compared",
    ),
    Case("backtest", "raw", BACKTEST),
    Case("verify", "exported", "verify run"),
    Case("verify-sweep", "swept", "verify swept"),
)
# How the directories are made, each from another.
TEMPLATES = {
    "data": ("raw", ["prepare --config=exp.py"]),
    "other": ("raw", ["prepare --config=exp.py --config.prepare.slot.min_count=2"]),
    "begun": ("data", ["train --config=exp.py --workdir=run --config.train.max_steps=8"]),
    "run": ("data", ["train --config=exp.py --workdir=run"]),
    "second": (
        "data",
        [
            "train --config=exp.py --workdir=run --config.seed=1",
            "export --workdir=run --output=made",
        ],
    ),
    "exported": ("run", []),  # with the export of the second
    "swept": ("data", ["sweep --config=exp.py --workdir=swept"]),
    "grown": ("run", ["prepare --config=exp.py --config.data.dir=next --base=run"]),
    "lived": ("raw", [BACKTEST]),
    "second-lived": ("raw", [f"{BACKTEST} --config.optim.network.learning_rate=0.1"]),
    "second-swept": ("data", ["sweep --config=exp.py --workdir=swept --config.seed=1"]),
}


class Done(NamedTuple):
    """How a process ended: exit code (None: it hung), stdout, stderr, file operations, most memory.

    `seconds` are those of the processor.
    """

    code: int | None
    out: str
    err: str
    operations: list[str]
    mib: int
    seconds: float


class Zygote:
    """A process that has loaded the programs and forks for each case: a start costs nothing then."""

    def __init__(self, place: Path, programs: tuple[str, ...], small: bool = False):
        self._place, library = place, place / "torture.so"
        source = Path(__file__).with_suffix(".c")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        cache = {
            "XDG_CACHE_HOME": str(place / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        }
        cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | cache | {"LD_PRELOAD": str(library), "PYTHONPATH": path}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-W", "ignore", __file__, f"--zygote={','.join(programs)}"]
        command += ["--small"] * small
        self._process: Any = subprocess.Popen(command, env=environment, **pipes)

    def run(
        self,
        cwd: Path,
        command: str,
        at: int = 0,
        number: int = 0,
        sticky: bool = False,
        reads: bool = False,
        child: bool = False,
    ) -> Done:
        """Runs a program in a directory; its `at`th file operation fails with an error, or kills it (0).

        Args:
          child: it is an operation of the first process that the program starts.
        """
        files = {name: str(self._place / name) for name in ("out", "err", "operations")}
        arm = [os.path.realpath(cwd), at, number, sticky, reads]
        self._process.stdin.write(
            json.dumps({"command": command.split(), "arm": arm, "child": child, **files}) + "\n"
        )
        self._process.stdin.flush()
        code, mib, seconds = json.loads(self._process.stdout.readline())
        out, err, operations = (Path(files[name]).read_text(errors="replace") for name in files)
        return Done(code, out, err, operations.splitlines(), mib, seconds)

    def close(self) -> None:
        """Ends it."""
        self._process.stdin.close()
        self._process.wait()


def zygote(names: list[str], small: bool) -> None:
    """Forks one of the programs for each line of stdin, and answers with its exit code."""
    import importlib

    if names != ["prepare"]:  # which needs no jax
        from emofm_jax.scoring import artefact, scorer, write_artefact  # noqa: F401
        from emofm_jax.training import build, loop, memory  # noqa: F401

    programs = {name: importlib.import_module(f"emofm_jax.{name}") for name in names}
    for module, sizes in SMALL.items() if small else ():
        if loaded := sys.modules.get(f"emofm_jax.{module}"):
            assert vars(loaded).keys() >= sizes.keys(), module
            vars(loaded).update(sizes)
    gc.freeze()  # a child that looked through what was loaded would copy all its pages
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            os.setsid()
            # Killed soon after what it may compute; with descendants, `one_line` adds up.
            resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS + 1,) * 2)
            null = os.open(os.devnull, os.O_RDONLY)
            flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
            for number, file in (
                (0, null),
                *((n, os.open(task[k], flags)) for n, k in ((1, "out"), (2, "err"))),
            ):
                os.dup2(file, number)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            directory, *rest = task["arm"]
            os.chdir(directory)
            sys.argv = [task["command"][0], *task["command"][1:]]
            arm(directory, rest, task["operations"], task["child"])
            sys.exit(programs[task["command"][0]].main(sys.argv))
        print(json.dumps(_wait(child)), file=answers, flush=True)


def arm(directory: str, how: list[int], log: str, child: bool) -> None:
    """Arms the layer below this process, or below the first one that it starts."""
    if child:
        Path(log).unlink(missing_ok=True)  # the first one to make it is armed
        at = " ".join(str(int(x)) for x in how)
        os.environ |= {"TORTURE_CHILD": at, "TORTURE_ROOT": directory, "TORTURE_LOG": log}
        return
    rest = (ctypes.c_long(how[0]), *map(int, how[1:]))
    ctypes.CDLL(None).torture_arm(directory.encode(), *rest, log.encode())


def _wait(child: int) -> tuple[int | None, int, float]:
    """How a process ended: exit code, -signal, or None where it had to be ended; MiB; seconds.

    MiB are the most that it held, seconds those of the processor. Nothing of its group stays.
    """
    end, code, used = time.monotonic() + SECONDS, None, None
    while time.monotonic() < end:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if code is None:
        used = os.wait4(child, 0)[2]
    return code, used.ru_maxrss >> 10, used.ru_utime + used.ru_stime


def make_raw(place: Path, seed: int = 0) -> None:
    """Writes tiny raw files and the experiment."""
    rng = random.Random(seed)
    (place / "raw").mkdir(parents=True)
    (place / "exp.py").write_text(EXPERIMENT)
    for split, rows in (("train", 600), ("valid", 150), ("test", 150)):
        lines = ["label,user,item,tags,price"]
        for _ in range(rows):
            user, item = rng.randrange(20), rng.randrange(30)
            label = int(rng.random() < 0.2 + 0.6 * ((user + item) % 2))
            tags = "^".join(rng.sample("abcdef", rng.randrange(3)))
            lines.append(f"{label},u{user},i{item},{tags},{rng.random():.3f}")
        (place / "raw" / f"{split}.csv").write_text("\n".join(lines) + "\n")
        (place / "raw" / f"{split}.svm").write_text("".join(map(as_libsvm, lines[1:])))
    (place / "days").mkdir()
    for day in range(4):
        rows = (line + f",2024-02-0{day + 1}" for line in lines[1 + 30 * day : 31 + 30 * day])
        text = "\n".join((f"{lines[0]},day", *rows))
        (place / "days" / f"{day}.csv").write_text(text + "\n")


def as_libsvm(line: str) -> str:
    """A row of the csv as one of libsvm."""
    label, user, item, tags, price = line.split(",")
    bag = "".join(f" tags:{ord(tag)}:1" for tag in tags.replace("^", ""))
    return f"{label} user:{user[1:]}:1 item:{item[1:]}:1{bag} price:0:{price}\n"


def make_templates(zygote: Zygote, place: Path, wanted: set[str]) -> dict[str, Path]:
    """Makes the directories that cases begin in."""
    made = {"raw": place / "raw"}
    make_raw(made["raw"])

    def make(name: str) -> Path:
        if name not in made:
            source, commands = TEMPLATES[name]
            made[name] = place / name
            shutil.copytree(make(source), made[name])
            for command in commands:
                done = zygote.run(made[name], command)
                assert done.code == 0, done
            if name == "exported":
                shutil.copytree(make("second") / "made", made[name] / "made")
        return made[name]

    for name in sorted(wanted):
        make(name)
    return made


def tree(directory: Path) -> dict[str, Any]:
    """{file: what it holds, without what no two runs have in common}."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    found = {
        str(path.relative_to(directory)): content(path)
        for path in files
        if "tfevents" not in path.name
    }
    empty = (path for path in directory.rglob("*") if path.is_dir() and not any(path.iterdir()))
    return found | {f"{path.relative_to(directory)}/": None for path in empty}


def content(path: Path) -> Any:
    """Of a file, without times."""
    if path.name in (
        "report.html",
        "report.md",
        "train.log",
        "environment.json",
        "checksums.sha256",
        "results.csv",
    ):
        return "times"
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def timeless(body: Any) -> Any:
    """JSON without times."""
    if isinstance(body, dict):
        return {key: timeless(value) for key, value in body.items() if key not in TIMES}
    return [timeless(x) for x in body] if isinstance(body, list) else body


def bare(found: dict[str, Any], without: tuple[str, ...]) -> dict[str, Any]:
    """A tree without files of some endings, or without an entry of these: `/metrics.json: train`."""
    kept = {}
    for name, x in found.items():
        if isinstance(x, dict):
            x = {key: value for key, value in x.items() if not f"{name}: {key}".endswith(without)}
        if not name.endswith(without):
            kept[name] = x
    return kept


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Names of files that are not the same in two trees."""
    names = sorted(
        name for name in one.keys() | other.keys() if one.get(name, 0) != other.get(name, 0)
    )
    return ", ".join(
        ("" if n in other else "left over: ") + ("" if n in one else "missing: ") + n
        for n in names[:4]
    )


def one_line(done: Done, place: str = "") -> str:
    """What is wrong with how a mistake was told, perhaps of a place; empty if nothing is."""
    if done.code is None:
        return "hangs"
    if done.mib > MIB:
        return f"{done.mib} MiB"
    if done.seconds > PROCESSOR_SECONDS:
        return f"{done.seconds:.0f} seconds of the processor"
    if "Traceback" in done.err or "Exception ignored" in done.err or done.code not in (0, 2):
        at = max(done.err.find("Traceback"), done.err.find("Exception ignored"), 0)
        said = " | ".join((done.err[at:] or done.out).split("\n"))
        return f"exit code {done.code}: {said if len(said) < 900 else f'{said[:300]} .. {said[-600:]}'}"
    errors = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
    if done.code == 2 and (len(errors) != 1 or not errors[0].startswith("error: ")):
        return f"no single line: {' | '.join(errors)[:300]}"
    text = errors[0].removeprefix("error: ") if errors else ""
    where = re.split(r": |\(", re.sub("^policy '.*?', day .*?: ", "", text))[0]
    if (
        done.code == 2
        and where != place
        and not re.search(
            r"[\w.]+[/.]\w+|^--\w+=|^step \d+$|^(data|run|made|swept|raw|next|went|compared|lived|days)\b",
            where,
        )
    ):
        return f"no file named: {errors[0]}"
    return ""


class Attack:
    """Cases, and what became of them."""

    def __init__(self, zygote: Zygote, place: Path, seed: int):
        self.zygote, self.place, self.seed = zygote, place, seed
        self.table: collections.Counter = collections.Counter()
        self.went_on: dict[tuple, str] = {}  # what `again` said of a case and the state that it met
        self.fallen: list[str] = []

    def note(self, kind: str, name: str, problem: str, well: str = "well") -> None:
        """Counts a case."""
        self.table[kind, name.split(" ")[0], "FELL SHORT" if problem else well] += 1
        if problem:
            self.fallen.append(f"{kind} {name}: {problem}")
            print(f"FELL SHORT: {self.fallen[-1]}", flush=True)

    def copy(self, template: Path) -> Path:
        """A fresh copy of a directory, always in the same place: paths are part of what is written."""
        case = self.place / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(template, case, symlinks=True)
        return case

    def undisturbed(
        self, case: Case, template: Path
    ) -> tuple[dict[str, Any], list[str], list[str]]:
        """What a command leaves, and its operations: those that change files, and those that read."""
        place = self.copy(template)
        done = self.zygote.run(place, case.command, child=case.child)
        assert done.code == 0, done
        left = tree(place)
        reads = self.zygote.run(self.copy(template), case.command, reads=True, child=case.child)
        return left, done.operations, reads.operations

    def again(
        self, case: Case, place: Path, wanted: dict[str, Any], without: tuple[str, ...] = ()
    ) -> str:
        """What is wrong after the same command, undisturbed, but for what `bare` takes out."""
        end = time.monotonic() + SECONDS
        done = self.zygote.run(place, case.command)
        # Other processes of a killed sweep notice it, save their runs, and end.
        while BUSY in done.err and "--jobs" in case.command and time.monotonic() < end:
            time.sleep(1)
            done = self.zygote.run(place, case.command)
        if done.code != 0:
            return f"the same command again: exit code {done.code}: {done.err.strip()[-300:]}"
        left = tree(place)
        # A run that another's end has stopped has a line more, of the steps until then.
        logs = [path.read_text() for path in place.rglob("train.log")]
        without += ("/log.jsonl",) * any("stopped by SIGTERM" in text for text in logs)
        return difference(bare(left, without), bare(wanted, without))

    def kill(self, case: Case, template: Path, wanted: dict[str, Any], at: int) -> None:
        """Kills a command at an operation."""
        place = self.copy(template)
        done = self.zygote.run(place, case.command, at, child=case.child)
        name = f"{case.name} --at={at} ({done.operations[-1] if done.operations else ''})"
        if case.child and done.code == 1:  # a run whose process died has failed
            case = case._replace(command=f"{case.command} --retry")
        elif done.code != -signal.SIGKILL:  # of two threads, another was first
            return self.note("kill", name, one_line(done), "not reached")
        return self.note("kill", name, self.again(case, place, wanted))

    def fault(
        self,
        case: Case,
        template: Path,
        wanted: dict[str, Any],
        at: int,
        number: int,
        sticky: bool,
        reads: bool,
    ) -> None:
        """Lets an operation fail, and perhaps all after it."""
        place = self.copy(template)
        done = self.zygote.run(place, case.command, at, number, sticky, reads, case.child)
        what = next((line for line in done.operations if "! " in line), "?")
        how = f"{errno.errorcode[number]} {'from then on' if sticky else 'once'}"
        name = f"{case.name} --at={at} {how} ({what})"
        problem = one_line(done)
        # What cannot be removed, or looked into for that, the next start removes.
        kept = re.search(r"! (unlink|rmdir) |! open .*\.partial/emofm_jax\.(new|old)$", what)
        if not problem and not kept and not (sticky and number in (errno.EROFS, errno.EIO)):
            problem = ", ".join(
                sorted(n for n in tree_names(place) if n.endswith(".partial") or ".tmp" in n)
            )
            problem = problem and f"left over: {problem}"
        lost: tuple[str, ...] = ()
        if "the run goes on without" in done.err:
            lost = ("log.jsonl",)
        if re.search(
            r"taking step \d+ instead", done.err
        ):  # and its evaluation is lost: same states
            lost = ("/log.jsonl", "/state.json", "/metrics.json: train")
        state = (case.name, lost, state_of(place))
        if not problem and state not in self.went_on:
            self.went_on[state] = self.again(case, place, wanted, lost)
        problem = problem or self.went_on[state]
        well = "not reached" if what == "?" else "went on" if done.code == 0 else "one line"
        self.note("fault", name, problem, well)


def state_of(directory: Path) -> bytes:
    """A digest of all names and contents, but for numbers that no two runs have in common."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        digest.update(f"{kind_of(f'0 {path.relative_to(directory)}')} {path.is_dir()}\n".encode())
        if path.is_file():
            digest.update(repr(whole(path)).encode())
    return digest.digest()


def whole(path: Path) -> Any:
    """What a file holds without times, or, where it is torn or all times, its bytes without numbers."""
    with contextlib.suppress(ValueError):
        if (found := content(path)) != "times":
            return found
    return re.sub(rb"[0-9a-f]+", b"N", path.read_bytes())


def tree_names(directory: Path) -> list[str]:
    """Names of all files and directories."""
    return [str(path.relative_to(directory)) for path in directory.rglob("*")]


def attack(
    attack: Attack,
    cases: list[Case],
    templates: dict[str, Path],
    kills: int,
    faults: int,
    each: bool = False,
    errors: int = 1,
    without: str = "^$",
) -> None:
    """Kills and faults, spread over the cases and their operations, or each distinct fault."""
    rng = random.Random(attack.seed)
    for case in cases:
        template = templates[case.template]
        wanted, operations, reads = attack.undisturbed(case, template)
        numbers = [-(-n // len(cases)) for n in (kills, faults * 3 // 4, faults // 4)]
        if each:
            counted = ([x for x in of if not re.search(without, x)] for of in (operations, reads))
            numbers = [0, *(2 * distinct(of) for of in counted)]
        places = spread(rng, operations, numbers[0])
        for at, _ in places:
            attack.kill(case, template, wanted, at)
        failing = spread(rng, operations, numbers[1], (False, True), without)
        for at, sticky in failing:
            chosen = [rng.choice(ERRNOS)]
            if each:  # with --errors=1 each of four seeds takes another one for an operation
                kind = kind_of(operations[at - 1]).split("/case")[-1]
                first = zlib.crc32(kind.encode()) + sticky + attack.seed
                chosen = [ERRNOS[(first + n) % 4] for n in range(errors)]
            for number in chosen:
                attack.fault(case, template, wanted, at, number, sticky, False)
        reading = spread(rng, reads, numbers[2], (False, True), without)
        for at, sticky in reading:
            attack.fault(case, template, wanted, at, errno.EIO, sticky, True)
        kinds, of_reads = (f"{len(x)}, {distinct(x)} distinct" for x in (operations, reads))
        done = f"{len(places)} kills, {len(failing) * errors} and {len(reading)} faults"
        print(f"{case.name}: operations: {kinds}; reads: {of_reads}; {done}", flush=True)


def spread(
    rng: random.Random,
    operations: list[str],
    wanted: int,
    ways: tuple[bool, ...] = (False,),
    without: str = "^$",
) -> list[tuple[int, bool]]:
    """Numbers of operations, each in each way: first one of each distinct operation."""
    places = [at for at, what in enumerate(operations, 1) if not re.search(without, what)]
    rng.shuffle(places)
    first = {kind_of(operations[at - 1]): at for at in places}.values()
    cases = [[(at, way) for at in some for way in ways] for some in (first, {*places} - {*first})]
    for some in cases:
        rng.shuffle(some)
    return sorted(sum(cases, [])[:wanted])


def distinct(operations: list[str]) -> int:
    """How many operations differ in more than the numbers and temporary names in them."""
    return len(set(map(kind_of, operations)))


def kind_of(operation: str) -> str:
    """An operation without numbers and temporary names."""
    what = operation.split(" ", 1)[1].removesuffix(" (deleted)")
    return re.sub(r"\d+", "N", re.sub(r"\.tmp\w{6}|\.[0-9a-f]{8}(?=\.partial|/|$)", ".T", what))


# Kinds of directories: what is damaged in them, whose files are put in, and the commands that must notice.
DAMAGED = {
    "data": (
        "data",
        "data/**/*",
        "other",
        ["train --config=exp.py --workdir=run", "verify data"],
    ),
    "run": (
        "run",
        "run/**/*",
        "second",
        [
            "evaluate --workdir=run",
            "train --config=exp.py --workdir=run",
            "predict --workdir=run --input=raw/test.csv --output=out.csv",
            "report --workdir=run",
            "verify run",
        ],
    ),
    "begun": ("begun", "run/**/*", "second", ["train --config=exp.py --workdir=run"]),
    "export": (
        "exported",
        "made/**/*",
        "",
        ["predict --workdir=made --input=raw/test.csv --output=out.csv", "verify made"],
    ),
    "sweep": (
        "swept",
        "swept/**/*.json*",
        "second-swept",
        ["sweep --config=exp.py --workdir=swept", "report --workdir=swept", "verify swept"],
    ),
    "backtest": (
        "lived",
        "lived/**/*.json*",
        "second-lived",
        [BACKTEST, "verify lived"],
    ),
}
WAYS = ("truncated", "emptied", "flipped", "flipped again", "swapped")


def damage(attack: Attack, templates: dict[str, Path], only: str) -> None:
    """Damages each file of each kind of directory, in each way."""
    rng = random.Random(attack.seed)
    for kind, (template, pattern, other, commands) in DAMAGED.items():
        if not fnmatch.fnmatch(f"damage-{kind}", only):
            continue
        wanted = []
        for command in commands:
            done = attack.zygote.run(attack.copy(templates[template]), command)
            wanted.append((said(done.out), tree(attack.place / "case")))
        files = sorted(
            p for p in templates[template].glob(pattern) if p.is_file() and "tfevents" not in p.name
        )
        for file in files:
            for way in WAYS:
                name = str(file.relative_to(templates[template]))
                for command, undamaged in zip(commands, wanted):
                    place = attack.copy(templates[template])
                    source = templates[other] / name if other else None
                    if not hurt(place / name, way, source, rng):
                        continue
                    before = tree_bytes(place)
                    done = attack.zygote.run(place, command)
                    case = f"{kind} {name} {way}: {command.split()[0]}"
                    attack.note("damage", case, *judged(done, place, undamaged, name, before))


def hurt(path: Path, way: str, other: Path | None, rng: random.Random) -> bool:
    """Damages a file; returns whether it is another now."""
    content = bytearray(path.read_bytes())
    if way == "swapped":
        if other is None or not other.exists() or other.read_bytes() == content:
            return False
        path.write_bytes(other.read_bytes())
        return True
    if not content:
        return False
    if way == "truncated":
        content = content[: len(content) // 2]
    elif way == "emptied":
        content = bytearray()
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return True


def tree_bytes(directory: Path) -> dict[str, bytes]:
    """{file: its bytes}."""
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def said(text: str) -> list[str]:
    """The lines of stdout without times, and without the number of lines that `verify` counts.

    A file of lines that was cut at an end of one, or emptied, has no digest that tells.
    """
    return [
        re.sub(
            r" \((no line in results.jsonl|[\d,]+ lines( of \d+ days)?)\)$|, \d+ s$|(?<=\d) +\d+$",
            "",
            line,
        )
        for line in text.splitlines()
        if not re.search(r"rows/s|steps|memory|seconds|MiB", line)
    ]


def judged(
    done: Done, place: Path, undamaged: tuple, name: str, before: dict[str, bytes]
) -> tuple[str, str]:
    """What is wrong with how a damaged file was met (empty: nothing), and how it was."""
    if problem := one_line(done):
        return problem, ""
    if done.code == 2:
        return "", "one line"
    if "warning: " in done.err or "warning: " in done.out:
        return "", "a warning"
    out, left = undamaged
    found = {}
    for (
        file,
        was,
    ) in before.items():  # files that nobody has written since are as damaged as they were
        path = place / file
        if file == name or (path.exists() and path.read_bytes() == was):
            continue
        found[file] = content(path) if path.exists() else None
    found |= (
        {k: v for k, v in tree(place).items() if k not in before} if not unreadable(place) else {}
    )
    wrong = [
        f for f, x in found.items() if f != name and "tfevents" not in f and left.get(f, x) != x
    ]
    if wrong or said(done.out) != out:
        return f"silently another: {', '.join(wrong[:3]) or 'what is printed'}", ""
    return "", "the same"


def unreadable(place: Path) -> bool:
    """Whether a damaged JSON file is still there, which `tree` cannot read."""
    try:
        tree(place)
    except ValueError:
        return True
    return False


# Values that nobody expects, of JSON and of flags.
JUNK = (
    None,
    True,
    -1,
    0,
    1 << 70,
    1e39,
    float("nan"),
    "",
    "x",
    "../x",
    "\x1b[31m",
    "9" * 400,
    [],
    [[]],
    {},
    {"x": 1},
)
# What is broken, the directory that it is in, the files, and the commands that read them.
BROKEN = {
    "schema": (
        "run",
        "run/schema.json",
        ("evaluate --workdir=run", PREDICT, "train --config=exp.py --workdir=run"),
    ),
    "shards": (
        "data",
        "data/**/*",
        ("train --config=exp.py --workdir=run --config.train.max_steps=1",),
    ),
    "config": (
        "run",
        "run/config.json",
        ("evaluate --workdir=run", "report --workdir=run", PREDICT),
    ),
    "checkpoint": ("begun", "run/checkpoints/*/*", ("train --config=exp.py --workdir=run",)),
    "artefact": (
        "exported",
        "made/*.json",
        ("predict --workdir=made --input=raw/test.csv --output=out.csv",),
    ),
    "experiment": ("data", "", ("train --config=exp.py --workdir=run --config.train.max_steps=1",)),
}


def fuzz(attack: Attack, templates: dict[str, Path], number: int, only: str) -> None:
    """Broken files: each raw row is read, or counted as rejected; what else is read is well, or named."""
    named = ("prepare-raw", "prepare-parquet", *(f"fuzz-{kind}" for kind in BROKEN))
    kinds = [kind.split("-")[1] for kind in fnmatch.filter(named, only)]
    rng = random.Random(attack.seed)
    for index in range(number if kinds else 0):
        kind = kinds[index % len(kinds)]
        problem, code, command = {"raw": fuzz_raw, "parquet": fuzz_parquet}.get(kind, fuzz_other)(
            attack, templates, rng, kind
        )
        name = f"{kind} --seed={attack.seed} number {index} ({command})"
        attack.note("fuzz", name, problem, "one line" if code else "counted")


def fuzz_raw(attack: Attack, templates: dict[str, Path], rng: random.Random, _: str) -> tuple:
    """Rows of text: what is wrong, the exit code, the command."""
    place = attack.copy(templates["raw"])
    arg, end = rng.choice((("", "csv"), (":libsvm", "svm")))
    file = place / "raw" / f"{rng.choice(('train', 'valid', 'test'))}.{end}"
    file.write_bytes(broken(rng, file.read_bytes()))
    command = f"prepare --config=exp.py{arg}"
    done = attack.zygote.run(place, command)
    problem = one_line(done)
    if not problem and done.code == 0:
        problem = uncounted(place, end)
    return problem, done.code, command


def fuzz_parquet(attack: Attack, templates: dict[str, Path], rng: random.Random, _: str) -> tuple:
    """Columns of any type and values."""
    import pyarrow.parquet as pq

    place = attack.copy(templates["raw"])
    table = any_table(rng)
    pq.write_table(table, place / "raw" / "train.parquet")
    command = "prepare --config=exp.py --config.prepare.files.train=train.parquet"
    done = attack.zygote.run(place, command)
    problem = one_line(done)
    if not problem and done.code == 0:
        train = json.loads((place / "data" / "prepare.json").read_text())["splits"]["train"]
        counted = train["rows"] + sum(train["rejected"].values())
        problem = "" if counted == len(table) else f"{counted} of {len(table)} rows counted"
    types = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
    return problem, done.code, f"{command}; {types}"


def any_table(rng: random.Random) -> Any:
    """A table with the columns of the experiment, mostly, each of some type."""
    import pyarrow as pa

    rows = rng.randrange(1, 40)
    label = ([0, 1], pa.int8())
    kinds: list[tuple[list, Any]] = [
        *(
            (["a", "b", "", "\0", "nan", "1e39", "0"], kind)
            for kind in (pa.string(), pa.large_string(), pa.string_view())
        ),
        *(
            ([0, 1, 7, 100], kind)
            for kind in (
                pa.int8(),
                pa.uint64(),
                pa.float16(),
                pa.float64(),
                pa.decimal128(5, 2),
                pa.timestamp("ns", "UTC"),
                pa.date32(),
                pa.duration("us"),
                pa.time64("ns"),
            )
        ),
        ([b"a", b"\xff", b""], pa.binary()),
        ([True, False], pa.bool_()),
        ([None], pa.null()),
        *((["a", "b"], pa.dictionary(kind, pa.string())) for kind in (pa.int8(), pa.uint32())),
        *(
            ([[], ["1"], ["1", None, "2"]], kind)
            for kind in (pa.list_(pa.string()), pa.large_list(pa.string()))
        ),
        ([[1, 2], [0, 5]], pa.list_(pa.int64(), 2)),
        ([[[1]], []], pa.list_(pa.list_(pa.int8()))),
        ([{"id": 1, "weight": 0.5}], pa.struct([("id", pa.int64()), ("weight", pa.float32())])),
        ([[("a", 1.0)], []], pa.map_(pa.string(), pa.float64())),
    ]
    names = ["label", "user", "item", "tags", "price"]
    if rng.random() < 0.1:
        names[rng.randrange(5)] = rng.choice(["user", "", "x\n", "label", "\x1b[31m"])
    columns = []
    for place in range(5):
        some, kind = (
            rng.choice(kinds)
            if place and rng.random() < 0.5 or rng.random() < 0.1
            else (label if not place else kinds[0])
        )
        taken = [
            rng.choice([*some, None]) if rng.random() < 0.1 or not some else rng.choice(some)
            for _ in range(rows)
        ]
        columns.append(pa.array(taken, kind))
    return pa.table(columns, names=names)


def fuzz_other(attack: Attack, templates: dict[str, Path], rng: random.Random, kind: str) -> tuple:
    """A JSON file with other values, or any file with other bytes; a field of the experiment."""
    template, pattern, commands = BROKEN[kind]
    place, command, junk = attack.copy(templates[template]), rng.choice(commands), ""
    if kind == "experiment":
        junk = str(rng.choice(JUNK)).replace(" ", "")
        what = f"--config.{rng.choice(fields())}={junk}"
        command = f"{command} {what}"
    else:
        file = rng.choice(sorted(p for p in place.glob(pattern) if p.is_file()))
        what = f"{file.relative_to(place)}: {break_file(rng, file)}"
        sums = file.parent / "checksums.sha256"
        if sums.exists():
            lines = (
                f"{hashlib.sha256((file.parent / n).read_bytes()).hexdigest()}  {n}\n"
                for n in (x.split(None, 1)[1] for x in sums.read_text().splitlines())
            )
            sums.write_text("".join(lines))
    done = attack.zygote.run(place, command)
    return one_line(done, ascii(junk)[1:-1]), done.code, f"{command}; {what}"


def fields() -> list[str]:
    """Dotted names of the fields of a configuration that change what a short run does."""
    from emofm_jax import config, options

    long = ("train.epochs", "train.max_steps")
    return [name for name in options.flatten(config.default().to_dict()) if name not in long]


def break_file(rng: random.Random, file: Path) -> str:
    """Breaks a file; returns what was done."""
    if file.suffix != ".json":
        body = bytearray(file.read_bytes() or b"x")
        at = rng.randrange(len(body))
        body[at] ^= 1 << rng.randrange(8)
        file.write_bytes(body)
        return f"byte {at}"
    body = json.loads(file.read_text())
    if isinstance(body.get("xxh3"), str):
        body.pop("xxh3")  # whoever leaves it out says that the file is theirs
    at, parents, here = body, [], []
    while isinstance(at, dict | list) and at and (not here or rng.random() < 0.8):
        key = rng.choice(sorted(at)) if isinstance(at, dict) else rng.randrange(len(at))
        parents.append(at)
        here.append(key)
        at = at[key]
    junk = rng.choice(JUNK)
    if rng.random() < 0.2:
        parents[-1].pop(here[-1])
        junk = "gone"
    else:
        parents[-1][here[-1]] = junk
    file.write_text(json.dumps(body))
    return f"{'.'.join(map(str, here))} = {str(junk)[:20]!r}"


def broken(rng: random.Random, content: bytes) -> bytes:
    """A file with some bytes, lines or fields replaced, doubled, cut or moved."""
    lines = content.split(b"\n")
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(lines))
        junk = rng.choice(
            [
                b'"',
                b",",
                b"\0",
                b"\xff\xfe",
                b"1e39",
                b"-1",
                b"nan",
                b"\r",
                b"^^^",
                b"'" * 9,
                "π".encode(),
                b"9" * 400,
            ]
        )
        line, cut = lines[at], rng.randrange(len(lines[at]) + 1)
        lines[at] = rng.choice([line[:cut] + junk + line[cut:], line[:cut], junk, line + line, b""])
    content = b"\n".join(lines)
    return content[: rng.randrange(len(content))] if rng.random() < 0.1 else content


def uncounted(place: Path, end: str) -> str:
    """What prepare.json leaves out of the lines of the raw files."""
    body = json.loads((place / "data" / "prepare.json").read_text())
    counted = sum(s["rows"] + sum(s["rejected"].values()) for s in body["splits"].values())
    found = sorted((place / "raw").glob(f"*.{end}"))
    texts = [path.read_bytes().decode(errors="replace") for path in found]
    if end == "csv" and any('"' in text for text in texts):
        return ""  # a row may be several lines
    header = end == "csv"
    rows = sum(line.strip() != "" for x in texts for line in re.split("\r?\n", x)[header:])
    return "" if counted == rows else f"{counted} rows counted, the files have {rows} lines"


def main() -> int:
    """Attacks; returns 1 if something fell short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("kills", "faults", "fuzz", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--damage", action="store_true")
    parser.add_argument("--each", action="store_true", help="every distinct operation fails")
    parser.add_argument("--small", action="store_true", help="pieces of a few rows")
    parser.add_argument("--errors", type=int, default=1, help="--each: of the four, how many each")
    parser.add_argument(
        "--only", default="*", help="names of cases, as in train*, damage-run or fuzz-schema"
    )
    parser.add_argument("--without", default="^$", help="--each: operations that are left out")
    parser.add_argument("--keep", default="", help="directory to work in, which stays")
    parser.add_argument("--zygote", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.zygote:
        zygote(options.zygote.split(","), options.small)
        return 0

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, too
    with tempfile.TemporaryDirectory() as directory:
        place = Path(options.keep or directory).resolve()
        place.mkdir(parents=True, exist_ok=True)
        cases = (
            [case for case in CASES if fnmatch.fnmatch(case.name, options.only)]
            if options.kills + options.faults + options.each
            else []
        )
        kinds = [
            kind
            for name, kind in DAMAGED.items()
            if options.damage and fnmatch.fnmatch(f"damage-{name}", options.only)
        ]
        others = {
            template
            for kind, (template, *_) in BROKEN.items()
            if options.fuzz and fnmatch.fnmatch(f"fuzz-{kind}", options.only)
        }
        light = {case.name for case in cases} <= {"prepare", "prepare-again"}
        programs = ("prepare",) if light and not kinds and not others else PROGRAMS
        child = Zygote(place, programs, options.small)
        of = Attack(child, place, options.seed)
        wanted = {case.template for case in cases} | {
            name for kind in kinds for name in (kind[0], kind[2]) if name
        }
        templates = make_templates(child, place / "templates", wanted | others)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: the table of what was done
            attack(
                of,
                cases,
                templates,
                options.kills,
                options.faults,
                options.each,
                options.errors,
                options.without,
            )
            if options.damage:
                damage(of, templates, options.only)
            fuzz(of, templates, options.fuzz, options.only)
        child.close()
    print_table(of)
    return int(bool(of.fallen))


def print_table(attack: Attack) -> None:
    """Kinds by outcome."""
    outcomes = sorted({outcome for *_, outcome in attack.table})
    print(f"\n| kind | case | {' | '.join(outcomes)} |\n|---|---|{'---|' * len(outcomes)}")
    for kind, case in sorted({(kind, case) for kind, case, _ in attack.table}):
        print(
            f"| {kind} | {case} | {' | '.join(str(attack.table[kind, case, x]) for x in outcomes)} |"
        )
    print(f"\n{sum(attack.table.values())} cases, {len(attack.fallen)} fell short")
    for line in attack.fallen:
        print(line)


if __name__ == "__main__":
    sys.exit(main())

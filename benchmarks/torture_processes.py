"""Do two processes that are stopped or killed end with the bits of a run that was left alone?

    python benchmarks/torture_processes.py --stops=30 --kills=10 [--seed=0] [--model=hmm] [--keep=DIR]

Two processes of `train` share a table, an HMM with four types by default. One of them, drawn at random, gets a signal at
a random moment of the time that the run took when it was left alone: as it starts, compiles, takes steps, evaluates,
saves, or writes its results. Each third case begins without compiled programs, and is aimed at a compilation; each
third one is aimed at an evaluation: the signal comes as one begins, or up to 0.3 s later.

    stop      SIGTERM. Both end, at most one line of error each: 143 with the state saved; before the first step, and
              behind the last, where nobody waits for a signal, it ends one and the other ends with 75; 0 behind the end
    kill      SIGKILL. The other ends within 60 seconds, with one line and 75; 0 if it was through

One that has not come yet may still come: the other waits for it until --wait_seconds have passed (120 here), and says
so: exit code 75, or 2 where nobody has ever listened.

Then the same commands: both end well, with the arrays, metrics and predictions of the run that was left alone, to the
bit. Prints a line a case and a table; the exit code is 1 if one fell short. Linux, CPUs, gloo.
"""

import argparse
import collections
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from emofm_jax import prepare  # noqa: E402
from emofm_jax.data import files, shards  # noqa: E402

SECONDS = 60  # after which a process whose neighbour was killed has to have ended
WAIT = 120  # seconds until both must have come
PATIENCE = 300  # seconds for any end on a busy machine
GROUP = 1500  # rows: one process has more of them than the other
EXPERIMENT = """
from emofm_jax import config


def get_config(arg="hmm"):
    c = config.default()
    c.name, c.data.dir = "tiny", "data"
    c.prepare.format, c.prepare.gauc_key = "synthetic", "user_id"
    c.prepare.synthetic.rows = (12000, 4000, 4400)
    c.data.batch_size, c.data.eval_batch_size, c.data.shuffle_rows = 512, 512, 1000
    c.model.name, c.model.embedding_dim, c.model.hidden = arg, 4, (16, 8)
    c.model.stage1, c.model.stage2, c.model.am_hidden = (8,), (8,), (8,)
    c.model.mixer.d_att, c.model.mixer.num_heads = 8, 2
    c.train.epochs, c.train.log_every_steps, c.train.save_every_steps = 4, 5, 7
    c.train.eval_every_steps = 10
    return c
"""


class Ended(NamedTuple):
    """How a process ended: exit code, lines on stderr, seconds behind the signal."""

    code: int
    lines: list[str]
    seconds: float


# What a case may be aimed at, and after how many of it at most.
AIMS = {"compilation": 12, "evaluation": 8}


def process(words: list[str]) -> int:
    """One process of `train`, which makes a file of its own as a compilation or an evaluation begins.

    Args:
      words: the names of its files begin with the first, the others are those of the program.
    """
    import itertools
    import logging

    import jax

    from emofm_jax import train
    from emofm_jax.training import loop

    counts = {what: itertools.count() for what in AIMS}

    def begin(what: str) -> None:
        Path(f"{words[0]}.{what}.{next(counts[what])}").touch()

    class Compilations(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Compiling"):
                begin("compilation")

    jax.config.update("jax_log_compiles", True)
    logger = logging.getLogger("jax")
    logger.handlers, logger.propagate = [Compilations()], False
    evaluate = loop._evaluate

    def evaluated(*given: Any) -> Any:
        begin("evaluation")
        return evaluate(*given)

    loop._evaluate = evaluated
    return train.main(["train", *words[1:]])


def start(place: Path, name: str, model: str, cache: str, aimed: bool = False) -> list[Any]:
    """Starts the two processes of a run; where the case is aimed, they say what they begin."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(place / cache)}
    environment["PYTHONPATH"] = str(ROOT)
    program = [__file__, f"--process={name}.ID"] if aimed else ["-m", "emofm_jax.train"]
    command = [sys.executable, *program, f"--config=mine.py:{model}"]
    command += [f"--workdir={name}", f"--coordinator=localhost:{port}", "--num_processes=2"]
    command.append(f"--wait_seconds={WAIT}")
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [[x.replace(".ID", f".{i}") for x in command] + [f"--process_id={i}"] for i in (0, 1)]
    return [subprocess.Popen(one, cwd=place, env=environment, **pipes) for one in both]


def ended(process: Any, since: float, patience: float) -> Ended:
    """Waits for a process; one that does not end is killed."""
    try:
        _, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Ended(-1000, [f"does not end within {patience:.0f} s"], patience)
    return Ended(process.returncode, err.splitlines(), time.monotonic() - since)


def whole(place: Path, name: str, model: str, cache: str) -> tuple[list[Ended], float]:
    """Runs both undisturbed; how they ended, and how many seconds it took."""
    began = time.monotonic()
    found = [ended(one, began, PATIENCE) for one in start(place, name, model, cache)]
    return found, time.monotonic() - began


def bits(workdir: Path) -> dict[str, Any]:
    """What a run holds, but for times."""
    last = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    paths = [*last.glob("*.safetensors"), *(workdir / "predictions").glob("*.parquet")]
    found: dict[str, Any] = {str(p.relative_to(workdir)): p.read_bytes() for p in paths}
    body = files.read_json(workdir / "metrics.json")
    return found | {key: json.dumps(body.get(key), sort_keys=True) for key in ("valid", "test")}


def problems(kind: str, who: int, found: Sequence[Ended]) -> list[str]:
    """What is wrong with the ends of two processes, one of which got a signal."""
    wrong = []
    for number, (code, lines, seconds) in enumerate(found):
        is_hit = number == who
        allowed = {0, -signal.SIGKILL} if kind == "kill" else {0, 143, -signal.SIGTERM, 75}
        allowed = {0, 75} if kind == "kill" and not is_hit else allowed
        errors = [line for line in lines if line.startswith("error: ")]
        allowed |= {2} if any("nobody answers" in line for line in errors) else set()
        if code not in allowed:
            wrong.append(f"process {number} ended with {code}: {' / '.join(lines[-3:])}")
        if any("Traceback" in line for line in lines) or len(errors) != (code in (75, 2)):
            wrong.append(f"process {number}, {code}, said: {' / '.join(lines[-5:])}")
        said = ("not all processes came", "nobody answers")
        has_come = not any(words in line for words in said for line in errors)
        if kind == "kill" and seconds > SECONDS and has_come:
            wrong.append(f"process {number} took {seconds:.0f} s to end")
    return wrong


def attack(
    place: Path, options: argparse.Namespace, kind: str, number: int, takes: float
) -> tuple[str, list[str]]:
    """One case: how both ended, in words, and what fell short."""
    rng = random.Random(f"{options.seed} {kind} {number}")
    name, cache = f"{kind}-{number}", f"cold-{kind}-{number}" if number % 3 == 0 else "cache"
    who, moment = rng.randrange(2), rng.uniform(0, takes)
    aim = ("compilation", "evaluation", "")[number % 3]
    both = start(place, name, options.model, cache, bool(aim))
    if aim:
        moment, begun = rng.uniform(0, 0.3), rng.randrange(AIMS[aim])
        file = place / f"{name}.{who}.{aim}.{begun}"
        while not file.exists() and both[who].poll() is None:
            time.sleep(0.002)
        aim = f"{aim} {begun} and " if file.exists() else "its end and "
    time.sleep(moment)
    both[who].send_signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
    since = time.monotonic()
    # The one that was hit first: what it waits for shows in the other, too.
    found = {i: ended(both[i], since, PATIENCE) for i in (who, 1 - who)}
    pair = [found[0], found[1]]
    saved = sorted(int(p.name[5:]) for p in (place / name / "checkpoints").glob("step_*"))
    codes = ", ".join(str(one.code) for one in pair)
    slowest = max(one.seconds for one in pair)
    said = f"{kind} of process {who} after {aim}{moment:.1f} s ({cache.split('-')[0]}): {codes}"
    said += f" in {slowest:.1f} s, saved {saved[-1] if saved else 'nothing'}"

    wrong = problems(kind, who, pair)
    again, _ = whole(place, name, options.model, cache)
    if [one.code for one in again] != [0, 0]:
        wrong.append(f"again: {[(one.code, one.lines[-3:]) for one in again]}")
    elif bits(place / name) != bits(place / "alone"):
        wrong.append("again: other bits than the run that was left alone")
    return said, wrong


def main() -> int:
    """Runs it all; returns the exit code."""
    if len(sys.argv) > 1 and sys.argv[1].startswith("--process="):
        return process([sys.argv[1].partition("=")[2], *sys.argv[2:]])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("--stops", 30), ("--kills", 10), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--model", default="hmm")
    parser.add_argument("--keep", default="", help="directory of all runs, which stays")
    options = parser.parse_args()
    table, fallen = collections.Counter[str](), 0
    with tempfile.TemporaryDirectory() as directory:
        place = Path(options.keep or directory)
        place.mkdir(exist_ok=True, parents=True)
        (place / "mine.py").write_text(EXPERIMENT)
        shards.ROW_GROUP_ROWS = GROUP
        os.chdir(place)
        if prepare.main(["prepare", f"--config=mine.py:{options.model}"]):
            return 1
        whole(place, "first", options.model, "cache")  # which compiles
        found, takes = whole(place, "alone", options.model, "cache")
        if any(one.code for one in found):
            print(found)
            return 1
        print(f"left alone: {takes:.1f} s", flush=True)
        for kind, times in (("stop", options.stops), ("kill", options.kills)):
            for number in range(times):
                said, wrong = attack(place, options, kind, number, takes)
                print("; ".join([f"{number + 1}: {said}", *(f"! {x}" for x in wrong)]), flush=True)
                fallen += bool(wrong)
                table[f"{kind}: exit codes {said.rpartition('): ')[2].partition(' in ')[0]}"] += 1
    for outcome, count in sorted(table.items()):
        print(f"| {outcome} | {count} |")
    print(f"{options.stops + options.kills} cases, {fallen} fell short")
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())

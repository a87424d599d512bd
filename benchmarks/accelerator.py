"""Everything that should be known of an accelerator, in one command of at most nine minutes.

    python benchmarks/accelerator.py --out=DIR [--minutes=9] [--only=step,torch] [--tiny]

Parts, in this order; what the time does not suffice for is named and left out:

    machine   devices, versions; rates of products (f32, bf16) and of copies, measured here: the limits
    tests     the tests of layers, models, step and scorer, on this device
    step      a lazy Adam step of an MLP (400 x 3, 26 slots of width 16): table of 1e5, 1e7 and as many rows as fit,
              B of 512 to 65,536, f32 and bf16; its share of both limits
    chunks    rows of the table updated some at a time, against all at once
    torch     the same step in PyTorch (dense gradients at 1e5 rows, sparse ones at 1e7), if it is installed
    scorer    latency of 1 and 64 rows, throughput of 65,536, of DNN and HMM
    train     quickstart, end to end: test AUC, rows/s, the share of the time that waited for input; Frappe, too, if
              --frappe names its raw files

Writes DIR/accelerator.json after each part and DIR/accelerator.md, the table of docs/performance.md, at the end. On a
machine without the package's dependencies it says which wheels to carry. --tiny is to see that it runs, on a CPU too.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Modules that the package imports, and the wheels that have them.
NEEDED = {
    "absl": "absl-py",
    "chex": "chex",
    "flax": "flax",
    "jax": "jax",
    "ml_collections": "ml_collections",
    "numpy": "numpy",
    "optax": "optax",
    "pyarrow": "pyarrow",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "tensorboardX": "tensorboardX",
    "tqdm": "tqdm",
    "xxhash": "xxhash",
}
SLOTS, WIDTH, HIDDEN = 26, 16, (400, 400, 400)
STEP_BYTES = 4 * 3 * 2  # of a number of a moved row: weight and two moments, read and written
TESTS = ("test_layers.py", "test_mixers.py", "test_models.py", "test_step.py", "test_scorer.py")


class Budget:
    """Seconds that are left."""

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()


def median_seconds(call, turns: int, warm: int = 2) -> float:
    """Median time of `call`, which returns when its work is done."""
    times = []
    for turn in range(-warm, turns):
        start = time.perf_counter()
        call()
        if turn >= 0:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def machine(options, budget: Budget) -> dict:
    """What it is, and its limits."""
    import jax
    import jax.numpy as jnp

    size, elements = (512, 1 << 20) if options.tiny else (8192, 1 << 28)
    device = jax.local_devices()[0]
    found: dict[str, Any] = {
        "device": f"{jax.local_device_count()} x {device.device_kind}",
        "platform": device.platform,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
    }
    product = jax.jit(jnp.dot)
    for name in ("float32", "bfloat16"):
        a = jax.random.normal(jax.random.key(0), (size, size)).astype(name)
        seconds = median_seconds(lambda a=a: product(a, a).block_until_ready(), 5)
        found[f"tflops_{name}"] = 2e-12 * size**3 / seconds
    x = jnp.arange(elements, dtype=jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = median_seconds(lambda: copy(x).block_until_ready(), 5)
    found["gb_per_s"] = 8e-9 * elements / seconds
    return found


def tests(options, budget: Budget) -> dict:
    """The tests that matter, on this device."""
    files = [str(ROOT / "tests" / name) for name in TESTS[: 1 if options.tiny else None]]
    files = [file for file in files if Path(file).exists()]
    seconds = min(150.0, budget.left / 3)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"files": list(TESTS), "result": f"not finished in {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"files": list(TESTS), "result": lines[-1], "failed": failed[:40]}


def step(options, budget: Budget) -> dict:
    """Steps by table, batch and precision."""
    sizes = (10**4,) if options.tiny else (10**5, 10**7, *_largest())
    batches = (256,) if options.tiny else (512, 4096, 16384, 65536)
    cases = []
    for rows in sizes:
        for batch_size in batches:
            for dtype in ("float32", "bfloat16"):
                if budget.left < 60 or (rows > 10**7 and dtype == "bfloat16"):
                    continue
                cases.append(_step(rows, batch_size, dtype, 5 if options.tiny else 30))
    return {"cases": cases}


def _largest() -> list[int]:
    """Rows of a table that fills two thirds of the device, moments and scratch included."""
    import jax

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        return []
    rows = int(0.66 * limit / (4 * (3 * WIDTH + 1)))
    return [min(rows, 2**31 - 2**20)] if rows > 2 * 10**7 else []


@functools.cache
def _batches(rows: int, batch_size: int) -> tuple:
    import step as step_benchmark

    schema = step_benchmark.make_schema(rows, SLOTS)
    kind = "zipf" if rows <= 10**7 else "uniform"
    return schema, step_benchmark.make_batches(schema, kind, 4, batch_size, 1)


def _make(rows: int, dtype: str, chunk: int | None = None):
    """(state, step) of the MLP with lazy Adam on one device."""
    import jax

    from emofm_jax import config
    from emofm_jax.models import build as model_lib
    from emofm_jax.training import optim, state
    from emofm_jax.training import step as step_lib

    schema = _batches(rows, 512)[0]
    defaults = config.default()
    own = {"name": "dnn", "embedding_dim": WIDTH, "hidden": HIDDEN}
    module = model_lib.make_model(schema, defaults.model.to_dict() | own, compute_dtype=dtype)
    optimizers = {k: optim.make_optimizer(defaults.optim[k].to_dict(), 1) for k in state.SECTIONS}
    devices = jax.local_devices()[:1]
    init = state.make_init(module, schema, optimizers, init_scale=0.01, devices=devices)
    how = step_lib.Options(chunk=chunk)
    made = step_lib.make_train_step(module, schema, optimizers, how, devices)
    return init(jax.random.key(0)), made


def _step(rows: int, batch_size: int, dtype: str, turns: int, chunk: int | None = None) -> dict:
    """One case: milliseconds of a step, and what they are of the limits."""
    import jax

    from emofm_jax.training import state as state_lib

    where = {"rows": rows, "batch": batch_size, "dtype": dtype} | (
        {} if chunk is None else {"chunk": chunk}
    )
    try:
        _, host = _batches(rows, batch_size)
        state, train_step = _make(rows, dtype, chunk)
        placed = [state_lib.put_batch(batch, jax.local_devices()[:1]) for batch in host]
        times, distinct = [], 0.0
        for turn in range(-3, turns):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(train_step(state, placed[turn % len(placed)]))
            if turn >= 0:
                times.append(time.perf_counter() - start)
            distinct = float(state_lib.fetch(metrics["num_rows"])[0])
    except Exception as error:  # out of memory, say: the other cases go on
        return where | {"error": f"{type(error).__name__}: {error}"[:300]}
    seconds = statistics.median(times)
    widths = [SLOTS * WIDTH, *HIDDEN, 1]
    flops = 6.0 * batch_size * sum(a * b for a, b in zip(widths, widths[1:]))
    moved = distinct * WIDTH * STEP_BYTES + 3 * batch_size * SLOTS * WIDTH * 4
    return where | {
        "ms": 1e3 * seconds,
        "rows_per_s": batch_size / seconds,
        "tflops": 1e-12 * flops / seconds,
        "gb_per_s": 1e-9 * moved / seconds,
    }


def chunks(options, budget: Budget) -> dict:
    """Rows updated some at a time, or in one pass."""
    rows, batch_size = (10**4, 256) if options.tiny else (10**7, 16384)
    whole = batch_size * SLOTS
    sizes = (256, whole) if options.tiny else (2048, 8192, 32768, 131072, whole)
    cases = []
    for chunk in sizes:
        if budget.left > 60:
            cases.append(_step(rows, batch_size, "float32", 3 if options.tiny else 20, chunk))
    return {"cases": cases}


def torch_step(options, budget: Budget) -> dict:
    """The same step in PyTorch, eager and compiled."""
    if importlib.util.find_spec("torch") is None:
        return {"error": "PyTorch is not installed"}
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = ((10**4, False),) if options.tiny else ((10**5, False), (10**7, True))
    cases = []
    for rows, sparse in sizes:
        for batch_size in (256,) if options.tiny else (4096, 65536):
            for compiled in (False,) if options.tiny else (False, True):
                if budget.left > 60:
                    cases.append(_torch_case(torch, device, rows, sparse, batch_size, compiled))
    return {"torch": torch.__version__, "device": device, "cases": cases}


def _torch_case(torch, device, rows, sparse, batch_size, compiled) -> dict:
    where = {"rows": rows, "batch": batch_size, "sparse": sparse, "compiled": compiled}
    try:
        _, host = _batches(rows, batch_size)
        table = torch.nn.Embedding(rows, WIDTH, sparse=sparse, device=device)
        widths, layers = [SLOTS * WIDTH, *HIDDEN], []
        for a, b in zip(widths, widths[1:]):
            layers += [torch.nn.Linear(a, b, device=device), torch.nn.ReLU()]
        network = torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 1, device=device))
        forward = torch.compile(network) if compiled else network
        of_table = torch.optim.SparseAdam if sparse else torch.optim.Adam
        optimizers = [of_table(table.parameters()), torch.optim.Adam(network.parameters())]
        ids = [torch.from_numpy(batch.ids[0]).long().to(device) for batch in host]
        labels = [torch.from_numpy(batch.label[0]).to(device) for batch in host]
        turn = iter(range(10**9))

        def call() -> None:
            i = next(turn) % len(ids)
            for optimizer in optimizers:
                optimizer.zero_grad()
            logit = forward(table(ids[i]).flatten(1))[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(logit, labels[i]).backward()
            for optimizer in optimizers:
                optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()

        seconds = median_seconds(call, 20, warm=4)
    except Exception as error:
        return where | {"error": f"{type(error).__name__}: {error}"[:300]}
    return where | {"ms": 1e3 * seconds, "rows_per_s": batch_size / seconds}


def scorer(options, budget: Budget) -> dict:
    """The compiled call of a scorer on host arrays, of fresh weights."""
    sizes = (1, 64) if options.tiny else (1, 64, 4096, 65536)
    cases = []
    for name in ("dnn", "hmm"):
        for batch_size in sizes:
            if budget.left > 30:
                cases.append(_scorer_case(name, batch_size, 20 if options.tiny else 100))
    return {"cases": cases}


def _scorer_case(name: str, batch_size: int, turns: int) -> dict:
    import jax

    from emofm_jax import config
    from emofm_jax.data import features as features_lib
    from emofm_jax.data.schema import Schema, Slot
    from emofm_jax.models import build as model_lib
    from emofm_jax.scoring.network import Network
    from emofm_jax.scoring.scorer import Scorer

    slots = tuple(
        Slot(f"C{i}", f"g{i // 7}", encoding="hash", rows=10**5 // SLOTS) for i in range(SLOTS)
    )
    counts = {"rows_per_type": (900, 90, 10), "clicks_per_type": (90, 9, 1)}
    schema = Schema("latency", slots, types=("a", "b"), **counts)
    widths = {"stage1": (64,), "stage2": (64,), "hidden": HIDDEN}
    options = config.default().model.to_dict() | widths | {"name": name, "embedding_dim": WIDTH}
    network = Network(schema, options, "float32")
    variables = model_lib.init(network.module, jax.random.key(0), schema)
    width = model_lib.table_width(network.module)
    params = {
        "embedding": jax.random.normal(jax.random.key(1), (schema.num_rows, width)),
        "network": variables["params"],
        "stats": variables.get("batch_stats", {}),
    }
    functions = network.fn, network.embed, network.fn_from_embeddings
    made = Scorer(schema, params, *functions, Path("."), (name,))
    given = features_lib.example(schema, batch_size)
    seconds = median_seconds(lambda: jax.device_get(made(given)["p"]), turns)
    return {
        "model": name,
        "batch": batch_size,
        "us": 1e6 * seconds,
        "rows_per_s": batch_size / seconds,
    }


def train(options, budget: Budget) -> dict:
    """Programs, end to end, as a user runs them."""
    found = {}
    runs = {"quickstart": ["--config=quickstart"]}
    if options.tiny:
        runs["quickstart"] += [
            "--config.prepare.synthetic.rows=(3000, 500, 500)",
            "--config.train.max_steps=4",
        ]
    if options.frappe:
        runs["frappe"] = ["--config=frappe:dnn", f"--config.prepare.source={options.frappe}"]
    for name, flags in runs.items():
        if budget.left < 45 and not options.tiny:
            found[name] = {"error": "no time was left"}
            continue
        found[name] = _train(flags, budget.left - 10)
    return found


def _train(flags: list[str], seconds: float) -> dict:
    with tempfile.TemporaryDirectory() as place:
        data = [*flags, f"--config.data.dir={place}/data"]
        python = [sys.executable, "-m"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        call = functools.partial(
            subprocess.run, cwd=place, capture_output=True, text=True, env=environment
        )
        start = time.perf_counter()
        try:
            if "--config=quickstart" not in flags:
                call([*python, "emofm_jax.prepare", *data], timeout=seconds, check=True)
            run = [*python, "emofm_jax.train", *data, f"--workdir={place}/run"]
            done = call(run, timeout=max(seconds - (time.perf_counter() - start), 1))
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            return {"error": str(error)[-300:]}
        if done.returncode:
            return {"error": done.stderr[-300:]}
        metrics = json.loads((Path(place) / "run" / "metrics.json").read_text())
        part, training = metrics["test"], metrics["train"]
        return {
            "seconds": time.perf_counter() - start,
            "auc": part["auc"],
            "logloss": part["logloss"],
            "rows_per_s": training["rows_per_s"],
            "input_wait": training["input_wait"],
        }


PARTS = {
    "machine": machine,
    "tests": tests,
    "step": step,
    "chunks": chunks,
    "torch": torch_step,
    "scorer": scorer,
    "train": train,
}


def as_markdown(found: dict) -> str:
    """The tables of docs/performance.md."""
    limits = found.get("machine", {})
    lines = [f"{limits.get('device', '?')}, jax {limits.get('jax', '?')}.", ""]
    for name in ("tflops_float32", "tflops_bfloat16", "gb_per_s"):
        if name in limits:
            lines.append(f"- {name.replace('_', ' ')}: {limits[name]:,.1f}")
    for part in ("step", "chunks", "torch", "scorer"):
        cases = found.get(part, {}).get("cases", [])
        if not cases:
            continue
        heads = list(dict.fromkeys(key for case in cases for key in case))
        lines += ["", f"## {part}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for case in cases:
            lines.append(f"| {' | '.join(_cell(case.get(key, '')) for key in heads)} |")
    for name, run in found.get("train", {}).items():
        told = ", ".join(f"{key} {_cell(value)}" for key, value in run.items())
        lines += ["", f"{name}: {told}"]
    if "tests" in found:
        lines += ["", f"tests: {found['tests'].get('result', found['tests'])}"]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "/").replace("\n", " ")


def main() -> int:
    """Measures; returns 2 where wheels are missing, 1 if a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="directory for the figures")
    parser.add_argument("--minutes", type=float, default=9.0, help="at most")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--frappe", default="", help="directory of Frappe's raw files")
    parser.add_argument("--tiny", action="store_true", help="to see that it runs")
    options = parser.parse_args()
    budget, wanted = Budget(options.minutes), options.only.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        print(f"error: --only={unknown[0]}: no such part; choose of {', '.join(PARTS)}")
        return 2
    missing = [wheel for name, wheel in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: these wheels are missing here, carry them: {' '.join(missing)}")
        return 2

    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    out, found, failed = Path(options.out), {}, []
    out.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if name not in wanted:
            continue
        if budget.left < 20:
            found[name] = {"error": "no time was left"}
            continue
        start = time.monotonic()
        try:
            found[name] = part(options, budget)
        except Exception:
            found[name] = {"error": traceback.format_exc()[-2000:]}
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s, {budget.left:.0f} s left", flush=True)
        (out / "accelerator.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "accelerator.md").write_text(as_markdown(found))
    print(as_markdown(found))
    print(f"written: {out / 'accelerator.json'}, {out / 'accelerator.md'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

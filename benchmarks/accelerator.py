"""Everything that should be known of an accelerator, in one command of at most nine minutes.

    python benchmarks/accelerator.py --out=DIR [--minutes=9] [--only=step,torch] [--tiny]

Parts, in this order; what the time does not suffice for is named and left out:

    machine   devices, versions; rates of products (f32, bf16) and of copies, measured here: the limits
    step      a lazy Adam step of an MLP (400 x 3, 26 slots of width 16): table of 1e5, 1e7 and as many rows as fit,
              B of 512 to 65,536, f32 and bf16; its share of both limits. And of HMM, at 1e5 rows
    chunks    rows of the table updated some at a time, against all in one pass (0)
    train     quickstart and, if --frappe names its raw files, Frappe, end to end: test AUC, rows/s, the share of the
              time that waited for input; the program against the bare step (throughput.py)
    tests     the tests of layers, models, step and scorer, on this device, products in full f32
    scorer    latency of 1 row, throughput of 4,096 and 65,536, of DNN and HMM; the same in PyTorch
    torch     the same steps in PyTorch (dense gradients at 1e5 rows, sparse ones at 1e7), if it is installed

A step's time is that of a run of them, each begun when the one before the last has ended, as training does.
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
SLOTS, WIDTH, HIDDEN, GROUPS = 26, 16, (400, 400, 400), 4
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


def run_seconds(call, turns: int = 10) -> float:
    """Time of `call`, which may return before its work is done: many of them are begun, then awaited."""
    import jax

    def run() -> None:
        for _ in range(turns):
            last = call()
        jax.block_until_ready(last)

    return median_seconds(run, 3, warm=1) / turns


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
        seconds = run_seconds(lambda a=a: product(a, a))
        found[f"tflops_{name}"] = 2e-12 * size**3 / seconds
    x = jnp.arange(elements, dtype=jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = run_seconds(lambda: copy(x))
    found["gb_per_s"] = 8e-9 * elements / seconds
    return found


def step(options, budget: Budget) -> dict:
    """Steps by table, batch and precision."""
    sizes = (10**4,) if options.tiny else (10**5, 10**7, *_largest())
    batches = (256,) if options.tiny else (512, 4096, 16384, 65536)
    turns, cases = 5 if options.tiny else 60, []
    for rows in sizes:
        for batch_size in batches:
            for dtype in ("float32", "bfloat16"):
                is_bfloat16 = dtype == "bfloat16"
                if budget.left < 60 or is_bfloat16 and (rows > 10**7 or batch_size < 4096):
                    continue
                cases.append(_step("dnn", rows, batch_size, dtype, turns))
    for batch_size in (256,) if options.tiny else (512, 4096):
        if budget.left > 60:
            cases.append(_step("hmm", sizes[0], batch_size, "float32", turns))
    return {"cases": [case | _shares(case, options.limits) for case in cases]}


def _shares(case: dict, limits: dict) -> dict:
    """What a step's products and the table's bytes are of the limits that `machine` found."""
    found = {}
    for share, rate, limit in (
        ("of_products", "tflops", f"tflops_{case['dtype']}"),
        ("of_memory", "gb_per_s", "gb_per_s"),
    ):
        if rate in case and limit in limits:
            found[share] = case[rate] / limits[limit]
    return found


def _largest() -> list[int]:
    """Rows of a table that fills two thirds of the device, moments and scratch included."""
    import jax

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        return []
    rows = int(0.66 * limit / (4 * (3 * WIDTH + 1)))
    return [min(rows, 2**31 - 2**20)] if rows > 2 * 10**7 else []


@functools.cache
def make_batches(name: str, rows: int, batch_size: int) -> tuple:
    """(schema, batches on the host): 26 slots; for HMM 28, in four groups, and rows of three types."""
    import numpy as np
    import step as step_benchmark

    from emofm_jax.data.schema import Schema, Slot

    if name == "hmm":
        each = rows // GROUPS // 7
        slots = [Slot(f"C{i}", f"g{i // 7}", encoding="hash", rows=each) for i in range(28)]
        counts = {"rows_per_type": (900, 90, 10), "clicks_per_type": (90, 9, 1)}
        schema = Schema("hmm", tuple(slots), types=("a", "b", "c"), **counts)
    else:
        schema = step_benchmark.make_schema(rows, SLOTS)
    kind = "zipf" if rows <= 10**7 else "uniform"
    made = step_benchmark.make_batches(schema, kind, 4, batch_size, 1)
    if name == "hmm":
        types = np.random.default_rng(1).integers(0, 3, (len(made), 1, batch_size), np.int32)
        made = [batch._replace(ftype=of_row) for batch, of_row in zip(made, types)]
    return schema, made


def model_options(name: str) -> dict:
    """Of the network at the sizes that are measured: HMM's are quickstart's."""
    from emofm_jax import config
    from experiments import quickstart

    if name == "hmm":
        return quickstart.get_config("hmm").model.to_dict() | {"embedding_dim": WIDTH}
    own = {"name": name, "embedding_dim": WIDTH, "hidden": HIDDEN}
    return config.default().model.to_dict() | own


def _make(name: str, rows: int, dtype: str, chunk: int | None = None):
    """(state, step) with lazy Adam on one device."""
    import jax

    from emofm_jax import config
    from emofm_jax.models import build as model_lib
    from emofm_jax.training import optim, state
    from emofm_jax.training import step as step_lib

    schema = make_batches(name, rows, 512)[0]
    module = model_lib.make_model(schema, model_options(name), compute_dtype=dtype)
    defaults = config.default()
    optimizers = {k: optim.make_optimizer(defaults.optim[k].to_dict(), 1) for k in state.SECTIONS}
    devices = jax.local_devices()[:1]
    init = state.make_init(module, schema, optimizers, init_scale=0.01, devices=devices)
    how = step_lib.Options(chunk=chunk)
    made = step_lib.make_train_step(module, schema, optimizers, how, devices)
    return init(jax.random.key(0)), made


def _step(
    name: str, rows: int, batch_size: int, dtype: str, turns: int, chunk: int | None = None
) -> dict:
    """One case: milliseconds of a step, and what they are of the limits."""
    import jax

    from emofm_jax.training import state as state_lib

    where = {"model": name, "rows": rows, "batch": batch_size, "dtype": dtype}
    where |= {} if chunk is None else {"chunk": chunk}
    try:
        start = time.perf_counter()
        _, host = make_batches(name, rows, batch_size)
        state, train_step = _make(name, rows, dtype, chunk)
        placed = [state_lib.put_batch(batch, jax.local_devices()[:1]) for batch in host]
        state, before = jax.block_until_ready(train_step(state, placed[0]))
        compiled = time.perf_counter() - start
        for turn in range(-5, turns):
            if turn == 0:
                start = time.perf_counter()
            state, metrics = train_step(state, placed[turn % len(placed)])
            jax.block_until_ready(before.scalars)
            before = metrics
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / turns
        distinct = float(state_lib.fetch(metrics)["num_rows"][0])
    except Exception as error:  # out of memory, say: the other cases go on
        return where | {"error": f"{type(error).__name__}: {error}"[:300]}
    found = where | {"ms": 1e3 * seconds, "rows_per_s": batch_size / seconds, "first_s": compiled}
    if name == "hmm":
        return found
    widths = [SLOTS * WIDTH, *HIDDEN, 1]
    flops = 6.0 * batch_size * sum(a * b for a, b in zip(widths, widths[1:]))
    moved = distinct * WIDTH * STEP_BYTES + 3 * batch_size * SLOTS * WIDTH * 4
    return found | {"tflops": 1e-12 * flops / seconds, "gb_per_s": 1e-9 * moved / seconds}


def chunks(options, budget: Budget) -> dict:
    """Rows updated some at a time, or in one pass."""
    rows, batch_size = (10**4, 256) if options.tiny else (10**7, 16384)
    sizes = (256, 0) if options.tiny else (2048, 8192, 32768, 131072, 0)
    cases = []
    for chunk in sizes:
        if budget.left > 60:
            turns = 3 if options.tiny else 40
            cases.append(_step("dnn", rows, batch_size, "float32", turns, chunk))
    return {"cases": cases}


def torch(options, budget: Budget) -> dict:
    """The same steps in PyTorch, eager and compiled."""
    if importlib.util.find_spec("torch") is None:
        return {"error": "PyTorch is not installed"}
    import accelerator_torch

    dnn = (("dnn", 10**4, 256, False),)
    hmm = (("hmm", 10**4, 256, False),)
    if not options.tiny:
        dnn = [("dnn", 10**5, b, False) for b in (512, 4096, 65536)]
        dnn += [("dnn", 10**7, b, False) for b in (4096, 65536)]
        hmm = [("hmm", 10**5, b, False) for b in (512, 4096)]
        hmm += [("dnn", 10**5, b, True) for b in (4096, 65536)] + [("hmm", 10**5, 4096, True)]
    needed = lambda case: 60 if case[-1] else 20  # seconds: compiling takes most of them
    cases = [accelerator_torch.step(*case) for case in (*dnn, *hmm) if budget.left > needed(case)]
    return {"version": accelerator_torch.VERSION, "cases": cases}


def scorer(options, budget: Budget) -> dict:
    """The compiled call of a scorer on host arrays, of fresh weights, and PyTorch's eager one."""
    cases, has_torch = [], importlib.util.find_spec("torch") is not None
    for name in ("dnn", "hmm"):
        for batch_size in (1, 64) if options.tiny else (1, 4096, 65536):
            if budget.left > 45:
                turns = 20 if options.tiny else 100
                cases += _scorer_cases(name, batch_size, turns, has_torch)
    return {"cases": cases}


def _scorer_cases(name: str, batch_size: int, turns: int, has_torch: bool) -> list[dict]:
    import jax

    from emofm_jax.data import features as features_lib
    from emofm_jax.models import build as model_lib
    from emofm_jax.scoring.network import Network
    from emofm_jax.scoring.scorer import Scorer

    schema, _ = make_batches(name, 10**5, 512)
    network = Network(schema, model_options(name), "float32")
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
    calls = {"jax": lambda: jax.device_get(made(given)["p"])}
    if has_torch:
        import accelerator_torch

        calls["torch"] = accelerator_torch.scorer(name, made, given)
    cases = []
    for library, call in calls.items():
        seconds = median_seconds(call, turns)
        rates = {"us": 1e6 * seconds, "rows_per_s": batch_size / seconds}
        cases.append({"model": name, "batch": batch_size, "library": library} | rates)
    return cases


def train(options, budget: Budget) -> dict:
    """Programs, end to end, as a user runs them."""
    found = {}
    runs = {"quickstart": ["--config=quickstart:hmm"]}
    if options.frappe:
        runs["frappe"] = ["--config=frappe:dnn", f"--config.prepare.source={options.frappe}"]
    tiny = ["--config.prepare.synthetic.rows=(3000, 500, 500)", "--config.train.max_steps=4"]
    for name, flags in runs.items():
        if budget.left < 60 and not options.tiny:
            found[name] = {"error": "no time was left"}
            continue
        with tempfile.TemporaryDirectory() as place:
            flags = [*flags, *(tiny if options.tiny else ()), f"--config.data.dir={place}/data"]
            try:
                found[name] = _train(flags, Path(place), budget, 3 if options.tiny else 500)
            except subprocess.TimeoutExpired as error:
                found[name] = {"error": str(error)[-300:]}
            except subprocess.CalledProcessError as error:
                found[name] = {"error": f"{error}: {error.stderr[-300:]}"}
    return found


def _train(flags: list[str], place: Path, budget: Budget, steps: int) -> dict:
    """Prepares, trains, compares the program with the bare step."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}

    def call(*command: str) -> float:
        start, seconds = time.perf_counter(), max(budget.left - 20, 1)
        how = {"capture_output": True, "text": True, "check": True, "timeout": seconds}
        subprocess.run([sys.executable, *command], cwd=place, env=environment, **how)
        return time.perf_counter() - start

    found: dict[str, Any] = {"prepare_s": call("-m", "emofm_jax.prepare", *flags)}
    found["train_s"] = call("-m", "emofm_jax.train", *flags, f"--workdir={place}/run")
    metrics = json.loads((place / "run" / "metrics.json").read_text())
    found |= {name: metrics["test"][name] for name in ("auc", "logloss")}
    found |= {name: metrics["train"][name] for name in ("rows_per_s", "input_wait")}
    bare = str(ROOT / "benchmarks" / "throughput.py")
    how = [f"--steps={steps}", "--turns=2", f"--output={place}/ratio.json"]
    try:
        call(bare, *flags, *how)
    except subprocess.TimeoutExpired:
        return found | {"ratio_to_bare_step": "no time was left"}
    return found | {"ratio_to_bare_step": json.loads((place / "ratio.json").read_text())["ratio"]}


def tests(options, budget: Budget) -> dict:
    """The tests that matter, on this device."""
    files = [str(ROOT / "tests" / name) for name in TESTS[: 1 if options.tiny else None]]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    command += ["-n", str(min(os.cpu_count() or 1, 12))]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        # Tolerances are of f32, and products of f32 are TF32's by default on NVIDIA's.
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip(),
    }
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **how) as running:
        try:
            text, _ = running.communicate(timeout=max(min(100, budget.left - 15), 10))
        except subprocess.TimeoutExpired:
            running.kill()
            text, _ = running.communicate()
            text += "\nnot finished"
    lines = text.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    told = [line for line in lines if line.startswith("E   ")]
    return {"files": list(TESTS), "result": lines[-1], "failed": failed[:40], "errors": told[:40]}


PARTS = {
    "machine": machine,
    "step": step,
    "chunks": chunks,
    "train": train,
    "tests": tests,
    "scorer": scorer,
    "torch": torch,
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
        if error := found.get(part, {}).get("error"):
            lines += ["", f"{part}: {_cell(error)}"]
        if not cases:
            continue
        heads = list(dict.fromkeys(key for case in cases for key in case))
        lines += ["", f"## {part}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for case in cases:
            lines.append(f"| {' | '.join(_cell(case.get(key, '')) for key in heads)} |")
    for name, run in found.get("train", {}).items():
        run = run if isinstance(run, dict) else {"error": run}
        told = ", ".join(f"{key} {_cell(value)}" for key, value in run.items())
        lines += ["", f"{name}: {told}"]
    if "tests" in found:
        lines += ["", f"tests: {found['tests'].get('result', found['tests'])}"]
        lines += [f"- {line}" for line in found["tests"].get("failed", [])]
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
    options.frappe = options.frappe and str(Path(options.frappe).resolve())
    budget, wanted, options.limits = Budget(options.minutes), options.only.split(","), {}
    if unknown := [name for name in wanted if name not in PARTS]:
        print(f"error: --only={unknown[0]}: no such part; choose of {', '.join(PARTS)}")
        return 2
    missing = [wheel for name, wheel in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: these wheels are missing here, carry them: {' '.join(missing)}")
        return 2

    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    # The programs that it starts, and PyTorch, take memory of the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    out, found, failed = Path(options.out), {}, []
    out.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        if name not in wanted:
            continue
        if budget.left < 30:
            found[name] = {"error": "no time was left"}
            continue
        start = time.monotonic()
        try:
            found[name] = part(options, budget)
        except Exception:
            found[name] = {"error": traceback.format_exc()[-2000:]}
            failed.append(name)
        if name == "machine":
            options.limits = found[name]
        print(f"{name}: {time.monotonic() - start:.0f} s, {budget.left:.0f} s left", flush=True)
        (out / "accelerator.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "accelerator.md").write_text(as_markdown(found))
    print(as_markdown(found))
    print(f"written: {out / 'accelerator.json'}, {out / 'accelerator.md'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

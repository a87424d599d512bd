"""Compiling is a third of the tests' time: programs are kept on disk, and compiled without optimizations."""

import contextlib
import fcntl
import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile

gc.disable()  # until all is collected, for imports make a million objects that stay

# What is compiled at once is kept, too: eager operations, one by one, are most of what tests compile.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# XLA's own caches would lie in PROGRAMS: their path is part of each program's key, and another in each session.
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
# Operations have no lines of source, which take a tenth of the time that lowering takes.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# There is a worker for each core: a second thread of numpy's products would only wait, and take a core for it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_CACHE = tempfile.TemporaryDirectory(prefix="emofm_jax_cache_")
PROGRAMS = os.path.join(_CACHE.name, "programs")


def find_store():
    """Where what is compiled stays for the next session: of this processor, in the user's cache, 1 GiB at most.

    "" where a user chose a place for this session (`JAX_COMPILATION_CACHE_DIR`), where there is none to write to, and
    in a worker, which has PROGRAMS of the process that started it.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return ""
    from emofm_jax.training import compilation_cache  # loads no jax

    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ["XDG_CACHE_HOME"] = os.path.join(user, "emofm_jax_tests")
    compilation_cache.enable()
    os.environ["XDG_CACHE_HOME"] = _CACHE.name  # all else is made anew
    return os.environ.pop("JAX_COMPILATION_CACHE_DIR", "")


def share(source, target):
    """Gives the programs of a directory to another one, whole or not at all."""
    for name in set(os.listdir(source)) - set(os.listdir(target)):
        given, taken = os.path.join(source, name), os.path.join(target, name)
        try:
            os.link(given, taken)
        except (FileExistsError, FileNotFoundError):  # another session was faster
            continue
        except OSError:  # another disk
            shutil.copy(given, f"{taken}.{os.getpid()}")
            os.replace(f"{taken}.{os.getpid()}", taken)


STORE = find_store()
if STORE:
    os.mkdir(PROGRAMS)
    share(STORE, PROGRAMS)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", PROGRAMS)
os.environ.setdefault("XDG_CACHE_HOME", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run, in about twice the time.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1" and (
    importlib.metadata.version("jaxlib").startswith("0.10.")
):
    # XLA's older way to compile a loop takes a third of the time; later versions have no other to choose. And
    # programs as small as these are compiled in less time by one thread than cut into parts for several.
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()

# Bytecode of what is collected is kept, else each worker would rewrite the assertions of all tests. That of experiment
# files, which tests write anew within a second, is not: whatever the environment says.
sys.dont_write_bytecode = False

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

ROOT = Path(__file__).parent
# The longest files, longest first: a process that began one of them last would keep the others waiting.
LONGEST = (
    "sweep train scorer emofm members export baselines torture emofmv2 models synthetic step mixers "
    "release_0_1 experiments cookbook layers options report evaluate parity rows"
)
COMPILED: list[str] = []  # an event of jax for each program that was compiled


def pytest_ignore_collect(collection_path, config):
    """With `-m fast` a file without such a test is not imported: that alone may load jax."""
    if config.option.markexpr != "fast" or collection_path.suffix != ".py":
        return None
    return True if "pytest.mark.fast" not in collection_path.read_text("utf-8") else None


def pytest_configure(config):
    """Without this xdist begins with the files of the most tests (only later versions ask)."""
    config.option.loadscopereorder = False
    gone = [name for name in LONGEST.split() if not (ROOT / f"test_{name}.py").is_file()]
    assert not gone, f"LONGEST names files that are not there: {gone}"


def pytest_collection_modifyitems(config, items):
    """The longest files first; `-m fast` is without what is marked `slow` in a file that is marked `fast`."""
    order = {f"test_{name}": place for place, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if config.option.markexpr == "fast":
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_collection_finish():
    """What was imported stays, and is not looked through again and again for garbage."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # for the processes that tests start
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_runtestloop():
    """In the process that starts the workers, too, which itself collects no test."""
    gc.enable()


def pytest_sessionfinish():
    """A session that is killed leaves nothing, for a program might be cut."""
    if STORE:
        with contextlib.suppress(OSError):  # a full disk
            share(PROGRAMS, STORE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that is marked `fast` must not compile: `pytest -m fast` is what one runs at every change."""
    if item.get_closest_marker("fast") is None or "jax" not in sys.modules:
        return (yield)
    if not COMPILED:
        from jax import monitoring

        note = lambda event, *_, **__: (
            COMPILED.append(event) if "backend_compile" in event else None
        )
        monitoring.register_event_duration_secs_listener(note)
        COMPILED.append("counting from here on")
    before = len(COMPILED)
    result = yield
    assert len(COMPILED) == before, "the test compiles a jax program: it is not to be marked `fast`"
    return result


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Trained runs: `wm` (typed) and `dnn` (without types) on one made-up data set; `mine` of docs/data.md.

    Beside them `data` (shards of the first two) and `mine_data`. Tests read them and write elsewhere. They are
    trained once: the worker that asks first has the lock, the others wait for it. HMM takes as long as all of them:
    test_release_0_1.py trains and scores with it.
    """
    shared = os.environ.get("EMOFM_JAX_TEST_RUNS")  # that benchmarks/mutations.py keeps
    if shared is None:
        shared = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a directory in one of the session
            shared = shared.parent
    home = Path(shared) / "runs"
    with open(home.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            train_runs(home)
            (home / "complete").touch()
    return home


def train_runs(home):
    """Writes everything that `runs` promises to `home`."""
    from emofm_jax import prepare, train

    flags_of = {"wm": ("--config.seed=1",), "dnn": ("--config.train.monitor=auc",)}
    for name, more in flags_of.items():
        flags = [f"--config={ROOT / 'tiny.py'}:{name}", f"--config.data.dir={home / 'data'}", *more]
        assert train.main(["train", *flags, f"--workdir={home / name}"]) == 0

    text = (ROOT.parent / "docs" / "data.md").read_text()
    experiment = text.split("```python\n")[1].split("```")[0]
    experiment = experiment.replace("data/mine", str(home / "mine_data"))
    source = ROOT.parent / "data" / "examples" / "clicks.csv"
    (home / "mine.py").write_text(experiment.replace("data/examples/clicks.csv", str(source)))
    small = {
        "model.name": "wm",
        "model.hidden": "(8,)",
        "model.embedding_dim": 4,
        "data.batch_size": 64,
    }
    flags = [f"--config.{field}={value}" for field, value in small.items()]
    config = f"--config={home / 'mine.py'}"
    assert prepare.main(["prepare", config]) == 0
    assert train.main(["train", config, f"--workdir={home / 'mine'}", *flags]) == 0


@pytest.fixture
def few_objects():
    """What was made before this test is passed over by `gc.collect`, which then takes no time."""
    gc.collect()
    gc.freeze()

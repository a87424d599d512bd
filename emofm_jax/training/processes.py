"""Several processes that train one model: how they start, agree, and notice that one has ended.

    start(coordinator, num_processes, process_id, wait_seconds)      first, before jax is used
    gather(value), check_same(facts)                                 all call them at the same place
    tell(key, text), hear(key, given_up)                             any thread, at any time

Without addresses jax asks SLURM, Open MPI or a TPU pod. Only process 0 writes. Of a process that
dies the others learn from a collective that fails, or from jax's heartbeats, whose C++ code aborts:
either way they end with one line and `errors.LOST`.
"""

import contextlib
import ctypes
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from emofm_jax import errors
from emofm_jax.errors import LostError, UserError

HEARTBEAT_SECONDS = 50  # a machine that has been silent for so long is gone
_OF_OTHERS = re.compile(r"gloo|nccl|coordination|heartbeat|connection reset|socket closed", re.I)
# Variables of an environment that jax.distributed knows, of which one says how many processes.
_MANY = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_ALIKE = "start all with the same command on machines that are alike"
_never = threading.Event()
_kept: list[Any] = []  # what C code holds a pointer to
# Which process this is, of how many; none before `start`. jax.process_index would start a backend,
# which asks the others: one that waits for it there could not say that another has ended.
_place: tuple[int, int] | None = None


def start(coordinator: str, num_processes: int, process_id: int, wait_seconds: int) -> None:
    """Joins the other processes; does nothing where there is one only, or after the first call.

    Args:
      coordinator: HOST:PORT, where process 0 listens; empty: as the environment has it.
      num_processes: of the run; 0 without a coordinator, 1: the environment is not asked.
      process_id: 0 .. num_processes - 1; -1 without a coordinator.
      wait_seconds: until all are there.

    Raises:
      UserError: an incomplete or impossible address, nobody at the coordinator, a port in use; the
        processes have not all as many devices of one kind.
    """
    global _place
    if _place or (num_processes == 1 and not coordinator):
        return
    address: dict[str, Any] = {}
    if coordinator or num_processes or process_id >= 0:
        _check(coordinator, num_processes, process_id)
        address = {"coordinator_address": coordinator, "num_processes": num_processes}
        address["process_id"] = process_id
        if process_id:
            _find(coordinator, wait_seconds)
        else:
            _check_free(coordinator)
    elif not _is_many():
        return

    where, remedy = "the environment's processes", "start all of them"
    if coordinator:
        where, remedy = f"--coordinator={coordinator}", f"{remedy}, each with its own --process_id"
    absent = f"{where}: not all processes came within {wait_seconds} seconds; {remedy}"
    _keep_aborts_short(lambda: str(lost()) if _place else absent)
    import jax

    with contextlib.suppress(AttributeError):  # our own handler of SIGTERM saves and stops
        jax.config.update("jax_enable_preemption_service", False)
    try:
        address["initialization_timeout"] = wait_seconds
        jax.distributed.initialize(**address, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: the processes cannot join ({why}); correct it") from None
    _place = _state().process_id, _state().num_processes
    _check_devices()


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    given = f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}"
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{given}: the coordinator is no HOST:PORT; give the address of process 0")
    if not 0 <= process_id < num_processes:
        if num_processes < 1:
            raise UserError(f"{given}: it is not said how many processes; give --num_processes")
        span = f"0 .. {num_processes - 1}"
        raise UserError(f"{given}: the number of a process is one of {span}; give --process_id")


def _is_many() -> bool:
    """Whether the environment starts several processes, in a way that jax can tell."""
    counts = (os.environ.get(name, "") for name in _MANY)
    hosts = (os.environ.get(name, "") for name in _HOSTS)
    return any(x.isdecimal() and int(x) > 1 for x in counts) or any("," in x for x in hosts)


def _find(coordinator: str, wait_seconds: int) -> None:
    """Waits until somebody listens at the coordinator: jax's own waiting ends in an abort."""
    host, _, port = coordinator.rpartition(":")
    end, why = time.monotonic() + wait_seconds, ""
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() > end:
            break
        time.sleep(0.2)

    remedy = "start process 0 there, or correct the address"
    tried = f"nobody answers ({why}) after {wait_seconds} seconds"
    raise UserError(f"--coordinator={coordinator}: {tried}; {remedy}")


def _check_free(coordinator: str) -> None:
    """Raises UserError if the port of process 0 is in use on this machine."""
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        why = f"port {port} cannot be used here ({error.strerror})"
        raise UserError(f"--coordinator={coordinator}: {why}; choose another") from None


def _check_devices() -> None:
    """Raises the same UserError everywhere if a process has other devices than process 0.

    Without a collective, for which all must have as many.
    """
    import jax

    tell(f"devices/{index()}", f"{jax.local_device_count()} x {jax.default_backend()}")
    found = [hear(f"devices/{i}", _never) for i in range(count())]
    if not is_first():
        tell(f"heard/{index()}", "all")
    else:  # who ends last, since it keeps what is told
        for i in range(1, count()):
            hear(f"heard/{i}", _never)
    _compare([{"the number of devices": x} for x in found], _ALIKE)


def _keep_aborts_short(line) -> None:
    """Gives one line and `errors.LOST` where jax's C++ code aborts, and takes its own lines away.

    Files 1 and 2 become one in memory, Python's streams keep the old ones: gloo prints, too. An
    abort that says nothing of other processes stays one, and its lines are printed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr, log = os.dup(1), os.dup(2), os.memfd_create("output of C++")
    os.dup2(log, 1)
    os.dup2(log, 2)
    how: dict[str, Any] = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
    ours: Any = os.fdopen(stdout, "w", buffering=1 if os.isatty(stdout) else -1, **how)
    sys.stdout = sys.stdout.on(ours) if hasattr(sys.stdout, "on") else ours  # cli.py
    sys.stderr = os.fdopen(stderr, "w", buffering=1, errors="replace")

    def aborted(_: int) -> None:
        said = os.pread(log, 1 << 20, 0)
        if not _OF_OTHERS.search(said.decode(errors="replace")):
            os.write(stderr, said)
            os._exit(134)
        os.write(stderr, f"error: {line()}\n".encode())
        os._exit(errors.LOST)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    ctypes.CDLL(None).signal(6, handler)  # SIGABRT; Python's own handlers would run too late
    _kept.extend([handler, log])


def lost() -> LostError:
    """The error of a process whose neighbour has ended."""
    return LostError(
        f"process {index()} of {count()}: another process of the run has ended, see what that one "
        "says; start all of them again: the same command goes on from the last checkpoint"
    )


def explained(error: Exception) -> Exception:
    """An error as the user is to read it: `lost()` for one of a collective."""
    if count() > 1 and type(error).__name__ in ("ValueError", "JaxRuntimeError", "XlaRuntimeError"):
        return lost() if _OF_OTHERS.search(str(error)) else error
    return error


def leave(code: int) -> int:
    """Returns the exit code of a program; ends it here if it failed while others may wait for it.

    jax would wait for them, too, when Python ends.
    """
    if code and count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def count() -> int:
    """How many processes train together."""
    return _place[1] if _place else 1


def index() -> int:
    """Which of them this is; 0 writes."""
    return _place[0] if _place else 0


def is_first() -> bool:
    """Whether this is the process that writes."""
    return index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; what JSON can hold. A barrier, too."""
    if count() == 1:
        return [value]
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    with jax.transfer_guard("allow"), jax.enable_x64(False):
        sizes = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: len(text)] = np.frombuffer(text, np.uint8)
        found = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(found, sizes)]


def check_same(facts: Mapping[str, Any], remedy: str) -> None:
    """Raises the same UserError everywhere if one process has another value than process 0."""
    _compare(gather(dict(facts)), remedy)


def _compare(facts: Sequence[Mapping[str, Any]], remedy: str) -> None:
    """Raises UserError if a process has another value than process 0."""
    first, *others = facts
    for number, theirs in enumerate(others, 1):
        for name in [*first, *(name for name in theirs if name not in first)]:
            if first.get(name) != theirs.get(name):
                a, b = (json.dumps(x) for x in (theirs.get(name), first.get(name)))
                raise UserError(
                    f"process {number}: {name} is {a} there and {b} in process 0; {remedy}"
                )


def tell(key: str, text: str) -> None:
    """Lets the other processes hear a text, which is not empty, under a key that is new."""
    _notes().key_value_set(f"emofm_jax/{key}", text)


def hear(key: str, given_up: threading.Event) -> str:
    """What a process tells under a key, as soon as it does.

    Raises:
      LostError: it never will, since a process has ended, or the wait is given up.
    """
    while not given_up.is_set():
        try:
            return _notes().blocking_key_value_get(f"emofm_jax/{key}", 500)  # milliseconds
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                break
    raise lost()


def _notes() -> Any:
    """The key-value store of the processes."""
    return _state().client


def _state() -> Any:
    """What jax knows of the processes before it has a backend: it has no public name."""
    from jax._src import distributed

    return distributed.global_state

"""Scalars for TensorBoard, written in the program's own thread.

tensorboardX's writer does it in another: where the disk is full that ends with a traceback, and its
queue holds up the program for ever. Here it costs the events.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from emofm_jax import errors
from emofm_jax.data import files

_FLUSH_SECONDS = 30.0


class Board:
    """An event file of a run.

    Args:
      directory: where the file is made.
      purge_step: what earlier files hold of this step and later ones counts no more.
    """

    def __init__(self, directory: Path, purge_step: int):
        self._directory, self._flushed = directory, 0.0
        self._file: Any = None  # event_file_writer.EventsWriter
        self._do(lambda: self._open(purge_step))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes numbers by their names; after an error nothing."""

        def add() -> None:
            for name, value in scalars.items():
                self._add(event_pb2.Event(step=step, summary=summary.scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()

        self._do(add)

    def close(self) -> None:
        """Flushes and closes the file."""
        self._do(lambda: self._file and self._file.close())

    def _open(self, purge_step: int) -> None:
        self._file = event_file_writer.EventsWriter(str(self._directory / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(event_pb2.Event(step=purge_step, session_log=start))
        self._flush()

    def _add(self, event: Any) -> None:
        if self._file is not None:
            event.wall_time = time.time()
            self._file.write_event(event)

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
            self._flushed = time.monotonic()

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            events = self._directory / "events.out.tfevents"
            files.warn(f"{errors.of_file(events, error)}; the run goes on without TensorBoard")
            file, self._file = self._file, None
            if file is not None:
                with contextlib.suppress(OSError):
                    file._py_recordio_writer.close()

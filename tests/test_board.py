"""Scalars for TensorBoard: what is written can be read, and what cannot be written costs nobody a run."""

import io
import struct

import pytest
from tensorboardX.proto import event_pb2

from emofm_jax.training.board import Board

pytestmark = pytest.mark.fast


def read(path):
    """The events of a file: each is a length, its checksum, the event, its checksum."""
    content, events = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        events.append(event_pb2.Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return events


def test_numbers_come_back_by_name_and_step(tmp_path):
    board = Board(tmp_path, purge_step=7)
    board.write({"train/auc": 0.5, "train/logloss": 0.25}, 8)
    board.close()
    (path,) = tmp_path.iterdir()
    version, start, *numbers = read(path)
    assert path.name.startswith("events.out.tfevents.") and version.file_version == "brain.Event:2"
    assert start.step == 7 and start.session_log.status == event_pb2.SessionLog.START
    found = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in numbers]
    assert found == [(8, "train/auc", 0.5), (8, "train/logloss", 0.25)]


def test_a_full_disk_costs_the_events_and_is_said_once(tmp_path, capsys):
    board = Board(tmp_path, purge_step=1)

    class Full:
        def write_event(self, event):
            raise OSError(28, "No space left on device")

        _py_recordio_writer = io.BytesIO()

    board._file = Full()
    for step in range(30):  # more than any queue holds
        board.write({"train/auc": 0.5}, step)
    board.close()
    nowhere = Board(tmp_path / "none", purge_step=1)
    nowhere.write({"train/auc": 0.5}, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": cannot be written (")[2][:20] for line in lines] == [
        "No space left on dev",
        "No such file or dire",
    ]
    assert all(line.endswith("the run goes on without TensorBoard") for line in lines)

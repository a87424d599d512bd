"""Parquet files: a flipped bit in a page is an error, and errors name the file."""

import gc
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax.data import parquet
from emofm_jax.errors import FileError, UserError

pytestmark = pytest.mark.fast

LISTS = pa.array([[i, i + 1] for i in range(500)], pa.list_(pa.int32()))
TABLE = pa.table(
    {
        "bag": LISTS,
        "id": list(range(500)),
        "p": [i / 7 for i in range(500)],
        "name": [f"n{i % 9}" for i in range(500)],
    }
)


def test_what_was_written_comes_back(tmp_path):
    parquet.write(TABLE, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").equals(TABLE)
    assert parquet.read(tmp_path / "x.parquet", ["p", "none"], "") == TABLE.select(["p"])
    assert parquet.read(tmp_path / "x.parquet", None, "") == TABLE


@pytest.mark.slow
def test_a_flipped_bit_never_gives_other_values(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write(TABLE, path)
    good, caught = path.read_bytes(), 0
    for place in range(4, len(good) - 8, 5):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert parquet.read(path, None, "make it again").equals(TABLE)
        except UserError as error:
            assert str(error).startswith(f"{path}: not readable as Parquet") and str(
                error
            ).endswith("; make it again")
            caught += 1
    assert caught > 100


def test_a_file_without_checksums_is_read(tmp_path):
    pq.write_table(TABLE, tmp_path / "x.parquet")
    assert parquet.read(tmp_path / "x.parquet", None, "").equals(TABLE)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a full disk")
def test_a_full_disk_is_one_error_that_names_the_file(capfd):
    rng = np.random.default_rng(0)  # what zstd cannot make small is written at once
    big = pa.table({"x": rng.random(1 << 17)})
    with (
        pytest.raises(
            FileError, match="^/dev/full: cannot be written .No space left on device.; free space"
        ),
        parquet.Writer("/dev/full", big.schema) as writer,
    ):
        writer.write(big)
    with pytest.raises(FileError, match="none/x: cannot be written .No such file"):
        parquet.write(TABLE, "none/x")
    assert capfd.readouterr().err == ""


def test_a_disk_that_fails_within_a_file_is_told_and_not_what_follows_from_it(tmp_path):
    def fail(*_, **__):
        raise OSError(28, "x")

    with (
        pytest.raises(FileError, match="x: cannot be written .No space left on device"),
        parquet.Writer(tmp_path / "x", TABLE.schema) as writer,
    ):
        writer._file.write_table = fail
        writer.write(TABLE)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="Linux lists what is open")
def test_a_file_that_cannot_be_closed_is_one_error_and_nothing_beside_it(tmp_path, capfd):
    path = tmp_path / "x"
    with (
        pytest.raises(FileError, match="x: cannot be written .Bad file descriptor"),
        parquet.Writer(path, TABLE.schema) as writer,
    ):
        writer.write(TABLE)
        (opened,) = (fd for fd in os.listdir("/proc/self/fd") if is_of(fd, path))
        os.close(int(opened))
    del writer
    gc.collect()
    assert capfd.readouterr().err == ""


def is_of(descriptor, path):
    """Whether a descriptor, as text, is one of a file."""
    return os.path.realpath(f"/proc/self/fd/{descriptor}") == os.path.realpath(path)

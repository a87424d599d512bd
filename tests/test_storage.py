"""Places at s3://: nothing half-published is read, and a mistake is one line.

The store is in memory (benchmarks/object_store.py); tests/test_s3.py has a server.
"""

import gc

import pytest

import emofm_jax
from benchmarks.faulty import Faulty, Killed
from benchmarks.object_store import Store
from emofm_jax import report, sweep
from emofm_jax.data import files, remote, storage
from emofm_jax.errors import FileError, UserError

pytestmark = pytest.mark.fast


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The only store, with the bucket `bucket`; the copies are in a cache of its own."""
    found = Store()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    use(found, monkeypatch)
    yield found
    monkeypatch.undo()
    use(found, monkeypatch)  # forgets what it has
    storage.forget()
    remote.place.cache_clear()


def use(system, monkeypatch):
    """Lets all places lie in a file system, and a program begin that has no copies."""
    storage.forget()
    remote.place.cache_clear()
    monkeypatch.setattr(remote, "system", lambda name: (system, name.removeprefix("s3://")))


def write(at, content):
    """Writes what a copy is to hold, {name: text}, and nothing else."""
    for path in [path for path in at.rglob("*") if path.is_file()]:
        path.unlink()
    for name, text in content.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)


def publish(content, at=None):
    at = at or storage.writing("s3://bucket/x")
    write(at, content)
    storage.publish(at)
    return at


def read(name="s3://bucket/x"):
    """What a program reads at a place: {name: text}."""
    at = storage.reading(name)
    storage.need(at)
    return {p.relative_to(at).as_posix(): p.read_text() for p in at.rglob("*") if p.is_file()}


def test_what_is_read_was_published_at_once_whatever_a_writer_does(store):
    at = storage.writing("s3://bucket/x")
    write(at, {"one.json": "1", "two/b.txt": "b", ".c.partial": "half"})
    assert not storage.reading("s3://bucket/x").exists()
    storage.publish(at)
    before = storage.reading("s3://bucket/x")
    assert read() == {"one.json": "1", "two/b.txt": "b"}

    publish({"one.json": "2"}, at)
    assert read() == {"one.json": "2"}
    assert (before / "one.json").read_text() == "1"
    # What the one before named stays for who reads it, until the next but one.
    assert any(name.endswith("b.txt") for name in store.objects)
    publish({"one.json": "3"}, at)
    assert not any(name.endswith("b.txt") for name in store.objects)


def test_what_has_not_changed_is_not_put_again(store):
    at = publish({"a": "long", "b": "1"})
    (old,) = [name for name in store.objects if name.endswith("/a")]
    publish({"a": "long", "b": "2"}, at)
    assert [name for name in store.objects if name.endswith("/a")] == [old]
    pointer = store.objects["bucket/x/published.json"]
    storage.publish(at)
    assert store.objects["bucket/x/published.json"] == pointer
    assert read() == {"a": "long", "b": "2"}


def test_of_two_that_write_the_second_is_told(store):
    one, other = storage.writing("s3://bucket/x"), storage.writing("s3://bucket/x")
    publish({"a": "one"}, one)
    with pytest.raises(UserError, match="another program has published there since this one began"):
        publish({"a": "other"}, other)
    assert read() == {"a": "one"}


def test_arrays_are_fetched_when_they_are_needed_and_stay_if_they_never_were(store):
    arrays = "checkpoints/step_1/state.safetensors"
    publish({"checkpoints/step_1/state.json": "s", arrays: "arrays", "a": "old"})
    again = storage.writing("s3://bucket/x")
    assert not (again / arrays).exists()
    (again / "a").write_text("new")
    storage.publish(again)
    assert read() == {"checkpoints/step_1/state.json": "s", arrays: "arrays", "a": "new"}
    assert read("s3://bucket/x/checkpoints") == {
        "step_1/state.json": "s",
        "step_1/state.safetensors": "arrays",
    }

    publish({"a": "new"}, again)  # the checkpoint was removed: its arrays go, too
    assert read() == {"a": "new"}


def test_damage_is_one_error(store):
    publish({"a.txt": "good"})
    (name,) = [name for name in store.objects if name.endswith("a.txt")]
    for content, line in (
        (b"evil", "x/a.txt: damaged .4 bytes with the digest"),
        (None, "not there any more"),
    ):
        store.objects[name] = content
        if content is None:
            del store.objects[name]
        storage.forget()
        with pytest.raises(UserError, match=line):
            storage.reading("s3://bucket/x")
    pointer = store.objects["bucket/x/published.json"]
    for content in (b"", pointer[:-30], pointer.replace(b"a.txt", b"b.txt"), b"{}"):
        store.objects["bucket/x/published.json"] = content
        for use_it in (storage.reading, storage.writing):
            with pytest.raises(UserError, match="x/published.json: damaged"):
                use_it("s3://bucket/x")


@pytest.mark.parametrize(
    "name, entry, line",
    [
        ("../evil", {}, "'../evil' does not lie below it"),
        ("a", {"object": "../../others/a"}, "'../../others/a' does not lie below it"),
        ("a", {"size": "4"}, "'a' is not of an object, a size and a digest"),
    ],
)
def test_an_index_that_leads_elsewhere_is_damaged(store, name, entry, line):
    publish({"a": "good"})
    place = remote.place("s3://bucket/x")
    index = remote.read_index(place)
    remote.write_index(place, index._replace(files={name: index.files["a"]._replace(**entry)}))
    for use_it in (storage.reading, storage.writing):
        storage.forget()
        with pytest.raises(UserError) as error:
            use_it("s3://bucket/x")
        assert f"x/published.json: damaged ({line}); restore it, or remove" in str(error.value)


def test_what_others_write_now_stays_as_it_was_published(store):
    at = publish({"all": "1", "runs/a/log": "1", "runs/b/log": "1", "runs/b/old": "1"})
    write(at, {"all": "2", "runs/a/log": "2", "runs/b/log": "half", "runs/c/log": "half"})
    storage.publish(at, without=[at / "runs/b", at / "runs/c"])
    assert read() == {"all": "2", "runs/a/log": "2", "runs/b/log": "1", "runs/b/old": "1"}
    storage.publish(at)
    assert read() == {"all": "2", "runs/a/log": "2", "runs/b/log": "half", "runs/c/log": "half"}


def test_a_part_of_another_process_is_published_with_the_rest(store, monkeypatch):
    rows, state = "checkpoints/step_2/rows_1.safetensors", "checkpoints/step_2/state.json"
    at = publish({"config.json": "c"})
    beside = storage.following("s3://bucket/x")
    (beside / "checkpoints").mkdir()
    (beside / "checkpoints/.rows").write_text("rows")
    file = storage.part(beside / "checkpoints/.rows", beside / rows, remote.token())
    kept, whole = dict(store.objects), {"config.json": "c", state: "s", rows: "rows"}
    assert read() == {"config.json": "c"}  # it is there, and nothing names it
    write(at, {"config.json": "c", state: "s"})
    storage.adopt(at / rows, file)
    storage.publish(at)
    assert read() == whole and storage.reading("s3://bucket/x") != beside

    storage.follow(beside)
    assert (beside / state).exists() and not (beside / rows).exists()
    storage.need(beside / "checkpoints/step_2")
    assert (beside / rows).read_text() == "rows"
    publish({"config.json": "d", state: "s"}, at)  # what this one does not have stays
    assert read() == whole | {"config.json": "d"}
    storage.follow(beside)
    assert (beside / "config.json").read_text() == "d"

    publish({"config.json": "d"}, at)  # but for what was beside it
    storage.follow(beside)
    assert read() == {"config.json": "d"} and not (beside / "checkpoints").exists()

    # Of a process that has not published, nothing is there.
    store.objects = kept
    assert read() == {"config.json": "c"}
    for text in "abc":
        publish({"config.json": text})
    assert file.object not in {name.removeprefix("bucket/x/") for name in store.objects}


def test_rows_are_fetched_when_they_are_needed(store, monkeypatch):
    store.objects |= {"bucket/raw/a.csv": b"first", "bucket/raw/b.csv": b"second"}
    at = storage.reading("s3://bucket/raw", later=True)
    assert [(at / name).stat().st_size for name in ("a.csv", "b.csv")] == [5, 6]
    assert storage.peek(at / "a.csv", 0, 3) == b"fir" and storage.peek(at / "a.csv", 3, 9) == b"st"
    monkeypatch.setattr(storage, "_CHUNK_BYTES", 2)  # what is passed over is read a piece at a time
    assert storage.peek(at / "a.csv", 3, 1) == b"s" and storage.peek(at / "a.csv", 9, 1) == b""
    assert (at / "a.csv").read_bytes() == bytes(5)
    storage.need(at / "a.csv")
    assert (at / "a.csv").read_bytes() == b"first" and (at / "b.csv").read_bytes() == bytes(6)
    assert read("s3://bucket/raw") == {"a.csv": "first", "b.csv": "second"}


def test_what_was_damaged_is_put_again(store):
    publish({"a": "good", "b": "old"})
    storage.forget()
    (name,) = [name for name in store.objects if name.endswith("/a")]
    store.objects[name] = b"evil"
    with pytest.raises(UserError, match="damaged .* or remove s3://bucket/x/published.json and"):
        storage.writing("s3://bucket/x")
    del store.objects["bucket/x/published.json"]  # as the line says
    publish({"schema.json": "anew", "a": "good"}, storage.writing("s3://bucket/x"))
    assert read() == {"schema.json": "anew", "a": "good"}


def test_what_is_made_again_heals_an_object_that_was_not_read(store):
    rows = "train/part-00000.parquet"
    publish({"schema.json": "s", rows: "rows"})
    (name,) = [name for name in store.objects if name.endswith(rows)]
    del store.objects[name]
    storage.forget()
    publish({"schema.json": "s", rows: "rows"})
    assert read() == {"schema.json": "s", rows: "rows"}


def test_a_scorer_speaks_of_the_place_and_not_of_the_copy(store):
    publish({"a": "1"})
    for name in ("s3://bucket/x", "s3://bucket/x/a", ["s3://bucket/none"]):
        with pytest.raises(UserError) as error:
            emofm_jax.load_scorer(name)
        assert str(error.value).startswith(f"{name if isinstance(name, str) else name[0]}: ")


def test_objects_of_others_stay_theirs(store):
    store.objects["bucket/theirs/letter.txt"] = b"dear"
    with pytest.raises(UserError, match="it holds objects of others .letter.txt.; name a place wh"):
        storage.writing("s3://bucket/theirs")
    with pytest.raises(UserError, match="letter.txt: it is an object, no directory; name another"):
        storage.writing("s3://bucket/theirs/letter.txt")
    store.objects["bucket/odd//a.csv"] = b"1"
    with pytest.raises(UserError, match="no file can have such a name; rename the object"):
        storage.reading("s3://bucket/odd")
    with pytest.raises(UserError, match="no object has such a name; only . stands for other lett"):
        storage.reading("s3://bucket/theirs/*.csv")
    publish({"a": "1"})
    for name, line in (
        ("s3://bucket/x/scores.csv", "it lies within s3://bucket/x, which is published as a whole"),
        ("s3://bucket", "it is a bucket; name an object in it"),
    ):
        with pytest.raises(UserError, match=line), storage.file(name) as path:
            path.write_text("scores")
    assert {*store.objects} >= {"bucket/theirs/letter.txt", "bucket/odd//a.csv"}


def test_a_key_is_what_is_typed(monkeypatch):
    for typed, key in (
        ("a b/100%/\u00fc", "a b/100%/\u00fc"),
        ("a%20b/c#d", "a b/c#d"),
        ("day=1/x+y", "day=1/x+y"),
    ):
        assert remote.system(f"s3://bucket/{typed}?region=eu-west-1")[1] == f"bucket/{key}"


def test_plain_objects_and_stars(store):
    for name in ("a.csv", "b.csv", "c.txt", "deep/d.csv"):
        store.objects[f"bucket/raw/{name}"] = name.encode()
    assert read("s3://bucket/raw/*.csv") == {"a.csv": "a.csv", "b.csv": "b.csv"}
    assert read("s3://bucket/*/deep/*") == {"raw/deep/d.csv": "deep/d.csv"}
    assert storage.reading("s3://bucket/raw/c.txt").read_text() == "c.txt"
    assert {*read("s3://bucket/raw")} == {"a.csv", "b.csv", "c.txt", "deep/d.csv"}
    assert not storage.reading("s3://bucket/nothing").exists()


def test_a_file_is_put_when_it_is_whole(store, tmp_path):
    with storage.file("s3://bucket/scores.parquet") as path:
        path.write_text("scores")
    assert store.objects["bucket/scores.parquet"] == b"scores"
    with storage.file(tmp_path / "local") as path:
        assert path == tmp_path / "local"

    # What could not be put to its end is not what was put to its end.
    def chunks():
        yield b"sco"
        raise OSError("the disk of the copy")

    at = remote.place("s3://bucket/scores.parquet")
    with pytest.raises(OSError, match="the disk"):
        remote.put(at, "", at.name, chunks())
    gc.collect()
    assert store.objects["bucket/scores.parquet"] == b"scores"


OLD = {"1": "old", "2": "old", "gone": "old"}


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_whatever_operation_fails_all_or_nothing_is_published(store, monkeypatch, done, killed):
    """And the same program, started again, publishes it all."""
    monkeypatch.setattr(storage, "_THREADS", 1)
    publish(OLD)
    kept, failed, system = dict(store.objects), 0, None
    while system is None or system.calls >= system.at:
        store.objects = dict(kept)
        number = 1 if system is None else system.at + 1
        system, new = Faulty(store, number, done, killed), {"1": "new", "2": f"new {number}"}
        use(system, monkeypatch)
        try:
            publish(new)
            problem = ""
        except Killed:
            problem = "killed"
        except UserError as error:
            problem = str(error)
            assert "NETWORK_CONNECTION" in problem and "start the command again" in problem
        gc.collect()
        use(store, monkeypatch)
        assert read() == new or (problem and read() == OLD)
        publish(new)
        assert read() == new
        failed += bool(problem)
    assert failed > 12 and not problem


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("done", [False, True])
def test_a_program_that_failed_to_publish_may_do_so_again(store, monkeypatch, done):
    """As a sweep does that is told to stop while it publishes."""
    monkeypatch.setattr(storage, "_THREADS", 1)
    publish(OLD)
    kept, failed, number, problem = dict(store.objects), 0, 0, True
    while problem:
        store.objects, problem, number = dict(kept), False, number + 1
        use(system := Faulty(store, done=done), monkeypatch)
        at, new = storage.writing("s3://bucket/x"), {"1": "new", "2": f"new {number}"}
        system.at = system.calls + number
        try:
            publish(new, at)
        except UserError:
            problem = True
        storage.publish(at)
        gc.collect()
        use(store, monkeypatch)
        assert read() == new
        failed += problem
    assert failed > 6


def test_a_report_of_a_sweep_under_way_does_not_end_it(store):
    sweep_of = publish({"sweep.json": "{}", "results.jsonl": "1"})
    for number in "23":
        another = storage.writing("s3://bucket/x")
        for name in ("report.html", "report.md"):
            (another / name).write_text(f"of {number}")
        storage.publish(another)
        (sweep_of / "results.jsonl").write_text(number)
        storage.publish(sweep_of)
        wanted = {"sweep.json": "{}", "results.jsonl": number}
        assert read() == wanted | {"report.html": f"of {number}", "report.md": f"of {number}"}
    another = storage.writing("s3://bucket/x")
    (another / "report.html").write_text("theirs")
    storage.publish(another)
    for name in ("report.html", "results.jsonl"):  # as a backtest does
        (sweep_of / name).write_text("ours")
    storage.publish(sweep_of)
    assert read()["report.html"] == "ours"
    (another / "report.html").write_text("theirs again")
    with pytest.raises(UserError, match="another program has published there since this one began"):
        storage.publish(another)


def test_a_file_that_comes_back_is_put_again(store):
    at = publish({"a": "1", "b": "1"})
    for number in range(4):  # the object that it was goes
        publish({"b": f"{number}"}, at)
    publish({"a": "1", "b": "1"}, at)
    assert read() == {"a": "1", "b": "1"}


def test_no_rights_and_no_network_are_one_line(store, monkeypatch, capsys):
    def denied(*_, **__):
        raise OSError(
            "AWS Error ACCESS_DENIED during HeadObject operation (Request ID: 7): No (HTTP status 403)"
        )

    def unreachable(*_, **__):
        raise OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7")

    def failing(*_, **__):
        raise OSError("AWS Error INTERNAL_FAILURE during GetObject operation: (HTTP status 500)")

    def elsewhere(*_, **__):
        raise OSError("AWS Error UNKNOWN (HTTP status 301) during GetObject operation: No")

    lines = {denied: "give this user the right (AWS_PROFILE", unreachable: "look at the network"}
    lines |= {failing: "start the command again later", elsewhere: "name its region, as in s3://"}
    publish({"config.json": "{}"})
    for method, asked in (("open_input_stream", "read"), ("open_output_stream", "written")):
        for problem, line in lines.items():
            use(store, monkeypatch)
            with monkeypatch.context() as patch:
                patch.setattr(store, method, problem, raising=False)
                assert report.main(["report", "--workdir=s3://bucket/x"]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and line in error and "Request ID" not in error
            assert error.startswith("error: s3://bucket/x") and f"cannot be {asked}" in error


@pytest.mark.parametrize(
    "name, line",
    [
        (
            "s3://no-such-bucket/data",
            "there is no bucket 'no-such-bucket'; make the bucket, or name another",
        ),
        ("ftp://host/data", "ftp:// is not known; name a local path, or s3://"),
        ("s3://key:hidden@bucket/data", "s3://...@bucket/data: the keys in this name would come"),
        ("s3://key:hidden/hidden@bucket/data", "s3://...@bucket/data: the keys in this name would"),
        (
            "s3://key:of@hidden@bucket",
            "s3://...@bucket: the keys in this name would come into logs",
        ),
        ("s3://key:hidden", "s3://...: no bucket has a colon in its name"),
        ("s3://bucket/../data", "it is no bucket and key; name s3://BUCKET/KEY"),
        ("s3://", "it is no bucket and key"),
        ("s3:/bucket/data", "the colon of a place; name s3://bucket/data (as a"),
        ("gs:bucket", "the colon of a place; name gs://bucket (as a text"),
    ],
)
def test_mistakes_in_a_name_are_one_line(store, capsys, name, line):
    assert report.main(["report", f"--workdir={name}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and line in error
    assert "hidden" not in error


def test_keys_in_a_name_are_not_printed_where_no_place_is_opened(store, capsys):
    name = "s3://key:hidden@bucket"
    assert sweep.main(["sweep", "--config=claims", f"--workdir={name}", "--list"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: s3://...@bucket: the keys in this") and "hidden" not in error
    with pytest.raises(UserError, match=r"s3://\.\.\.@bucket: the keys in this name"):
        storage.beside(name, ".", ".stages")


def test_what_lies_within_is_published_with_it(store):
    publish({"a/b": "1"})
    with pytest.raises(
        UserError, match="it lies within s3://bucket/x, which is published as a whole"
    ):
        storage.writing("s3://bucket/x/a")
    for use_it in (storage.reading, storage.writing):
        with pytest.raises(
            UserError, match="s3://bucket: s3://bucket/x in it is published as a whole; name that"
        ):
            use_it("s3://bucket")


def test_a_run_within_a_sweep_is_published_alone_until_the_sweep_takes_it(store):
    run, nested = "s3://bucket/x/runs/a/seed-0", "bucket/x/runs/a/seed-0/published.json"
    log = "runs/a/seed-0/log"
    x = {"sweep.json": "s", log: "1", "runs/b/seed-0/log": "1"}
    sweep, alone = publish(x), storage.writing(run, is_run=True)
    assert (alone / "log").read_text() == "1"
    for text in "23":
        publish({"log": text, "new": "n"}, alone)
        assert read(run) == {"log": text, "new": "n"}
        assert read() == x | {log: text, "runs/a/seed-0/new": "n"}

    # What the sweep publishes of others changes nothing; what it publishes of the run is newer.
    publish(x | {"runs/b/seed-0/log": "9"}, sweep)
    assert read()[log] == "3"
    publish(x | {log: "4"}, sweep)
    assert read()[log] == read(run)["log"] == "4"
    publish(x | {log: "4", "runs/a/seed-0/checkpoints/step_1/state.json": "1"}, sweep)
    publish({"log": "5"}, storage.writing(run, is_run=True))
    assert read() == x | {log: "5"}

    assert nested in store.objects
    sweep = storage.writing("s3://bucket/x", has_runs=True)
    assert not (sweep / "runs/a/seed-0/checkpoints").exists()  # else a checkpoint without files
    storage.publish(sweep)
    assert read() == x | {log: "5"} and nested not in store.objects

    # It names objects of the run, which stay, whoever goes on with that.
    alone = storage.writing(run, is_run=True)
    for text in "678":
        publish({"log": text}, alone)
    del store.objects[nested]
    assert b"5" in store.objects.values() and read() == x | {log: "5"}
    for text in "67":
        publish(x | {log: text}, sweep)
    assert b"5" not in store.objects.values()


def test_what_is_no_run_of_a_sweep_is_not_published_within_it(store):
    publish({"sweep.json": "s", "runs/a/seed-0/log": "1"})
    for name in ("s3://bucket/x/other", "s3://bucket/x/runs"):
        with pytest.raises(UserError, match="it lies within s3://bucket/x, which is published as"):
            storage.writing(name, is_run=True)
    with pytest.raises(UserError, match="it lies within s3://bucket/x, which is published as"):
        storage.writing("s3://bucket/x/runs/a/seed-0")


def test_a_local_path_is_what_it_was(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "system", None)  # nothing of it is used
    for look in (storage.reading, storage.writing):
        assert look(tmp_path / "x") == tmp_path / "x" and look("a:/b") == look("a:/b")
    storage.need(tmp_path), storage.publish(tmp_path)
    assert files.said(f"{tmp_path}") == f"{tmp_path}"


def test_copies_are_fetched_once_and_removed(store, tmp_path):
    publish({"a": "1"})
    one = storage.reading("s3://bucket/x")
    assert storage.reading("s3://bucket/x") == one
    publish({"a": "2"})
    other = storage.reading("s3://bucket/x")
    assert other != one and one.exists()
    storage.forget()
    assert storage.reading("s3://bucket/x") == other  # it is still there, and is not fetched again
    assert not one.exists()
    assert not [path for path in (tmp_path / "cache").rglob("own.*")]
    with pytest.raises(FileError, match="damaged"):
        (other / "a").unlink()
        storage.forget()
        (name,) = [n for n, body in store.objects.items() if body == b"2"]
        store.objects[name] = b"3"
        storage.reading("s3://bucket/x")

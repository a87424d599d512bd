"""How every program starts and ends: flags, experiment files with mistakes in them, pipes that close, files refused."""

import importlib
import io
import os
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emofm_jax import cli, errors, prepare
from emofm_jax import config as config_lib
from emofm_jax.errors import UserError

pytestmark = pytest.mark.fast

GOOD = """from emofm_jax import config
def get_config(arg="none"):
    c = config.default()
    c.name = arg
    return c
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function (body of the experiment file, flags...) -> exit code and the seed and name that a program saw."""
    monkeypatch.chdir(tmp_path)
    seen = []

    def main(flags):
        seen.append((flags.config.seed, flags.config.name))

    def run(body, *flags, config="x.py"):
        (tmp_path / "x.py").write_text(body)
        seen.clear()
        code = cli.run(main, cli.define_config, ["program", *flags, f"--config={config}"])
        return code, *seen

    return run


def test_overrides_count_wherever_they_stand_and_the_last_one_wins(start):
    assert start(GOOD) == (0, (0, "none"))
    assert start(GOOD, "--config.seed=3", config="x.py:deep") == (0, (3, "deep"))
    assert start(GOOD, "--config.prepare.slots={'a': {'kind': 'multi'}}")[0] == 0
    assert start(
        GOOD, "--config.seed=3", "--config.name=a", "--config.seed=3", "-config.seed=5"
    ) == (0, (5, "a"))
    assert start(GOOD, "--config.seed=x", "--config.seed=5") == (0, (5, "none"))


def test_a_tuple_that_is_given_twice_is_the_last_one_and_not_both():
    seen = []
    flags = ["--config=quickstart", "--config.model.hidden=(3, 4)", "--config.model.hidden=(5,)"]
    main = lambda flags: seen.append(flags.config.model.hidden)
    assert cli.run(main, cli.define_config, ["program", *flags]) == 0 and seen == [(5,)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "import no_such_package",
            "x.py:1: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("def get_config(:", "x.py:1: SyntaxError: invalid syntax"),
        (
            "import pathlib, sys\npathlib.Path('broken.py').write_text('x = 1\\nx / 0')\n"
            "sys.path.insert(0, '.')\nimport broken",
            "broken.py:2): ZeroDivisionError: division by zero",
        ),
        ("x = 1", "it has no get_config()"),
        ("def get_config(): return zzz", "x.py:1: NameError: name 'zzz' is not defined"),
        ("def get_config(): return 1 / 0", "x.py:1: ZeroDivisionError: division by zero"),
        ("def get_config(): assert False", "x.py:1: AssertionError"),
        ("def get_config(): return {}", "must return emofm_jax.config.default() with changes"),
        (
            GOOD.replace("c.name", "c.nam"),
            "x.py:4: AttributeError: there is no field 'nam'; did you mean 'name'?",
        ),
        (
            GOOD.replace("c.name = arg", "c.prepare.groups = None"),
            "groups: None is no tuple; leave",
        ),
        (
            GOOD.replace("c.name = arg", "c.model.hidden = 400"),
            "x.py:4: TypeError: hidden = 400 is no tuple, as (512, 256, 128) is",
        ),
    ],
)
def test_a_mistake_in_the_experiment_file(start, capsys, line, message):
    assert start(line) == (2,)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.modle.name=hm", "there is no field 'modle'; did you mean 'model'?"),
        ("--config.model.nam=hm", "there is no field 'nam'; did you mean 'name'?"),
        ("--config.zzz=1", "there is no field 'zzz'"),
        ("--config.seed.x=1", "there is no field 'x'"),
        ("--config.model.stage1.x=1", "there is no field 'x'"),
        ("--config.model=wm", "model is a section; name a field of it, as in --config.model."),
        ("--config.seed=1.5", "invalid literal for int() with base 10: '1.5'"),
        ("--confg.seed=1", "--confg.seed: there is no such flag"),
        ("word", "'word': a word that is no flag"),
    ],
)
def test_a_mistake_on_the_command_line(start, capsys, flag, message):
    assert start(GOOD, flag) == (2,)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


PROGRAMS = "backtest compare evaluate export predict prepare report sweep train verify"


@pytest.mark.parametrize("name", [*PROGRAMS.split(" ")])
def test_the_help_of_each_program_fits_two_screens(name, capsys):
    program = importlib.import_module(f"emofm_jax.{name}")
    assert program.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert program.__doc__.strip() in text and text.count("\n") <= 60


def test_help_fits_two_screens_and_helpfull_says_what_every_field_is(capsys):
    assert cli.run(lambda flags: None, cli.define_config, ["program", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 60
    assert all(path.rpartition(".")[2] in text for path in config_lib.options())

    assert cli.run(lambda flags: None, cli.define_config, ["program", "--helpfull"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for path, option in config_lib.options().items():
        assert f" {path} = {option.default!r} {' '.join(option.describe().split())}" in text, path


def test_an_error_of_the_system_is_one_line_too(capsys):
    def main(flags):
        raise OSError(28, "No space left\non device", "shards/part-00000.parquet")

    assert cli.run(main, lambda flags, argv: None, ["program"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: shards/part-00000.parquet: cannot be read or written (No space left on"
    )


def test_a_reader_that_goes_away_is_no_error():
    program = [sys.executable, "-m", "emofm_jax.prepare", "--help"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


LOADS = """
import importlib, os, signal, sys
sys.argv, sys.orig_argv = [{argv0!r}], ["python", "-m", {module!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
import emofm_jax
kept = signal.getsignal(signal.SIGINT) is signal.default_int_handler
print("kept" if kept else "ends", flush=True)
if {run}:
    from emofm_jax import cli
    cli.run(lambda flags: os.kill(os.getpid(), signal.SIGINT), lambda flags, argv: None, ["p"])
elif not kept:
    os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("argv0", "module", "run", "found"),
    [
        ("-m", "emofm_jax.prepare", False, ("ends\n", "error: interrupted\n", 130)),
        ("/bin/emofm-train", "", False, ("ends\n", "error: interrupted\n", 130)),
        ("-m", "emofm_jax.prepare", True, ("ends\n", "error: interrupted\n", 0)),  # by Python's way
        ("-m", "emofm_jax.data.engines", False, ("kept\n", "", 0)),
        ("-m", "pytest", False, ("kept\n", "", 0)),
        ("emofm-server", "", False, ("kept\n", "", 0)),
        ("mine.py", "", False, ("kept\n", "", 0)),
    ],
)
def test_an_interrupt_while_a_program_loads_is_one_line(argv0, module, run, found):
    code = LOADS.format(argv0=argv0, module=module, run=run)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == found


COLLECTS = """
import gc, os, signal, sys, time
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", "emofm_jax.train"]
signal.signal(signal.SIGINT, signal.default_int_handler)
from emofm_jax import cli

def main(flags):
    gc.callbacks.append(lambda phase, _: phase == "stop" and os.kill(os.getpid(), signal.SIGINT))
    gc.collect()
    gc.callbacks.clear()
    time.sleep(30)

sys.exit(cli.run(main, lambda flags, argv: None, ["p"]))
"""


def test_an_interrupt_while_garbage_is_collected_is_not_lost():
    program = [sys.executable, "-c", COLLECTS]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("error: interrupted\n", 130)


@pytest.mark.parametrize("name", ["quickstart", "quickstart:wm"])
def test_our_experiments_have_names(start, name):
    code, (_, found) = start(GOOD, config=name)
    assert (code, found) == (0, "quickstart")


def test_a_file_comes_before_a_name(start, tmp_path):
    (tmp_path / "quickstart").write_text(GOOD.replace("c.name = arg", "c.name = 'mine'"))
    assert start(GOOD, config="quickstart") == (0, (0, "mine"))


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("quickstart.py", "did you mean quickstart?"),
        ("y.py", "did you mean x.py?"),
    ],
)
def test_no_such_experiment(start, capsys, config, hint):
    assert start(GOOD, config=config) == (2,)
    assert capsys.readouterr().err == f"error: --config={config}: no such file; {hint}\n"


def test_ours_are_listed(start, capsys):
    assert start(GOOD, config="zzz:wm") == (2,)
    head, _, listed = capsys.readouterr().err.partition(" no such file; ours are ")
    assert head == "error: --config=zzz:wm:"
    ours = "ablation, claims, cti, equal_terms, frappe, frappe_baselines, hillstrom, kuairand, "
    ours += "kuairand_daily, members, mixers, quickstart, scaling, shift, winners"
    assert {*ours.split(", ")} <= {*listed.strip().split(", ")}  # and those of who works here


def test_the_name_is_the_files_of_this_directory(monkeypatch, capsys):
    monkeypatch.chdir(Path(cli.__file__).parents[1])
    assert prepare.main(["prepare", "--help"]) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert "or the name of one of ours (" in found and " mixers, " in found


def shell(command, cwd, **environment):
    """Runs a command of sh, in which $P is this Python; stdout, stderr, exit code."""
    environment = os.environ | {"P": sys.executable} | environment
    found = subprocess.run(
        ["sh", "-c", command], cwd=cwd, env=environment, capture_output=True, check=False
    )
    return found.stdout, found.stderr.decode(), found.returncode


@pytest.fixture
def unicode_rows(tmp_path):
    """An experiment file whose slot is called größe, in a directory with a comma, a blank, ä and a colon."""
    where = tmp_path / "a, ä:1=2"
    where.mkdir()
    rows = "".join(f"{i % 2},{i % 3}\n" for i in range(60))
    (where / "rows.csv").write_text(f"label,größe\n{rows}", encoding="utf-8")
    body = GOOD.replace("c.name = arg", 'c.prepare.groups = (("g", ("größe",)),)')
    more = "    c.prepare.split, c.prepare.source = 'share', str(DIR / 'rows.csv')\n    c.data.dir = str(DIR / 'd')\n"
    head = "import pathlib\nDIR = pathlib.Path(__file__).parent\n"
    body = head + body.replace("    return c", f"{more}    return c")
    (where / "x.py").write_text(body, encoding="utf-8")
    return where


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_can_be_printed_to(unicode_rows, monkeypatch, capsys, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # as of PYTHONIOENCODING
    monkeypatch.setattr(sys, "stdout", out)
    assert prepare.main(["prepare", f"--config={unicode_rows}/x.py:arg"]) == 0
    assert capsys.readouterr().err == ""
    assert "größe".encode(encoding, "replace") in out.buffer.getvalue()


@pytest.mark.slow
def test_closed_streams_are_no_error_and_no_data_file_gets_what_is_printed(unicode_rows):
    command = f'$P -m emofm_jax.prepare "--config={unicode_rows}/x.py"'
    assert shell(f"{command} >&- 2>&- <&-", unicode_rows) == (b"", "", 0)
    first = {file.name: file.read_bytes() for file in (unicode_rows / "d" / "train").iterdir()}
    assert shell(command, unicode_rows)[1:] == ("", 0)
    assert first == {f.name: f.read_bytes() for f in (unicode_rows / "d" / "train").iterdir()}

    out, error, code = shell(f"{command} --config.seed=x >&-", unicode_rows)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert shell(f"{command} --config.seed=x 2>&-", unicode_rows) == (b"", "", 2)
    full = "error: stdout: cannot be written (No space left on device); free space, then start "
    full += "the same command again\n"
    assert shell(f"{command} >/dev/full", unicode_rows) == (b"", full, 2)
    assert shell(f"({command} --config.seed=x; echo $? >code) 2>&1 | true", unicode_rows)[1] == ""
    assert (unicode_rows / "code").read_text() == "2\n"


def test_streams_of_others_are_left_as_they_are(monkeypatch):
    ours = io.StringIO()
    monkeypatch.setattr(sys, "stdout", ours)
    assert cli.run(lambda flags: print("größe"), lambda flags, argv: None, ["program"]) == 0
    assert sys.stdout is ours and ours.getvalue() == "größe\n"


@pytest.mark.slow
def test_names_of_strangers_do_not_reach_the_terminal(unicode_rows):
    body = (unicode_rows / "x.py").read_text(encoding="utf-8")
    name = "\\x1b[31ma\\nThe shards"
    (unicode_rows / "x.py").write_text(body.replace("größe", name), encoding="utf-8")
    table = pa.table(
        {n: x.split(",") for n, x in [("label", "0,1"), ("\x1b[31ma\nThe shards", "u,v")]}
    )
    pq.write_table(pa.concat_tables([table] * 30), unicode_rows / "rows.csv")
    out, error, code = shell(
        f'$P -m emofm_jax.prepare "--config={unicode_rows}/x.py"', unicode_rows
    )
    assert (error, code) == ("", 0)
    assert b"\n\\x1b[31ma\\nThe shards categorical" in out and b"\x1b" not in out


@pytest.mark.slow
def test_a_platform_that_is_not_there_is_one_line():
    run = Path(__file__).parent / "fixtures" / "release_0_1" / "artefact"
    command = f"$P -m emofm_jax.export --workdir={run} --output=none"
    out, error, code = shell(command, run.parent, JAX_PLATFORMS="tpu")
    assert code == 2 and error.startswith("error: JAX_PLATFORMS=tpu: jax finds no such device")
    assert error.count("\n") == 1 and error.endswith("such as cpu\n") and not out


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("a=4,b=0.0", "a=4,b=0.0"),
        ("a=4,b=0.0,c", ["a=4,b=0.0", "c"]),
        ("c,a=4,b=0.0", ["c", "a=4,b=0.0"]),
        ("a=4,b=0.0,a=8,b=0.0", ["a=4,b=0.0", "a=8,b=0.0"]),
        ("c,d", ["c", "d"]),  # d is not there: its error names it
        ("c,", "c,"),
    ],
)
def test_a_comma_may_be_part_of_a_directory(tmp_path, monkeypatch, given, wanted):
    monkeypatch.chdir(tmp_path)
    for name in ("a=4,b=0.0", "a=8,b=0.0", "c", "c,"):
        (tmp_path / name).mkdir()
    assert cli.workdirs(types.SimpleNamespace(workdir=given)) == wanted


def test_a_comma_without_a_run_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir=c,: it names no run beside a comma"):
        cli.workdirs(types.SimpleNamespace(workdir="c,"))


def test_a_name_cannot_steer_a_terminal_or_forge_a_line():
    error = errors.UserError("x\x1b[2J\x07.csv:\nerror: forged\u202e; π")
    assert errors.said(error) == "x\\x1b[2J\\x07.csv: error: forged\\u202e; π"
    assert errors.said(OSError(28, "x", "a/b")).startswith(
        "a/b: cannot be read or written (No space"
    )
    assert errors.said(ValueError("x")) == ""
    with pytest.raises(UnicodeEncodeError) as caught:
        os.fsdecode(b"raw/\xff.csv").encode()
    assert errors.said(caught.value) == "raw/\\udcff.csv: this name is not UTF-8; rename it"

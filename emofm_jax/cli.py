"""How every program starts: flags -> validated config -> main.

A user's mistake is one line on stderr and exit code 2.

def _define(flags, argv):
    cli.define_config(flags, argv)
    absl_flags.DEFINE_string("workdir", "", "Where ...", flag_values=flags)

def main(flags): ...          # flags.config, flags.workdir

sys.exit(cli.run(main, _define))
"""

import contextlib
import difflib
import inspect
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from emofm_jax import config as config_lib
from emofm_jax import errors
from emofm_jax.data import storage
from emofm_jax.errors import UserError
from emofm_jax.sweeping import experiment as experiment_lib
from emofm_jax.training import compilation_cache

_HELP = ("--help", "-help", "-h", "--helpfull")
_CONFIG = "--config"
# Flags of one path or several, which are not empty where they are given.
_PATHS = ("workdir", "output", "input", "suggest", "base", "init_from", "data")


def run(
    main: Callable,
    define: Callable,
    argv: Sequence[str] | None = None,
    more_help: Callable[[], str] | None = None,
) -> int:
    """Parses flags, calls `main(flags)` and returns the exit code.

    Args:
      main: the program; reads flags as attributes. The docstring of its module is its `--help`.
      define: `define(flag_values, argv)` declares the program's flags.
      argv: program name and arguments; by default `sys.argv`, which is otherwise not read: tests
        call this in-process.
      more_help: makes a further section of `--helpfull`.

    Returns:
      0, or 1 if `main` returns False; 2 after `error: ...` on stderr for a UserError, or for a file
      that the system or a library refuses (a full disk, say); 75 where another process of the run
      has ended; 130 after an interrupt; 141 where nobody reads what is printed (`| head`).
    """
    errors.raise_interrupts()
    _open_streams()
    with storage.named(), _spelled():
        return _run(main, define, _joined(list(sys.argv if argv is None else argv)), more_help)


def _run(
    main: Callable, define: Callable, argv: list[str], more_help: Callable[[], str] | None
) -> int:
    flags = absl_flags.FlagValues()
    well = None
    try:
        if any(arg in _HELP for arg in argv[1:]):
            define(flags, argv)
            print(_help(main, flags, "--helpfull" in argv, more_help))
        else:
            compilation_cache.enable()  # first: the options of models may load jax
            well = main(_parse(flags, define, argv))
        sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _drop(stream)
        return 141
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except Exception as error:
        if not (line := errors.said(error)):
            raise
        _complain(line)
        return getattr(error, "exit_code", 2)
    return int(well is False)


def _open_streams() -> None:
    """Makes it safe to print: any letter, and where a stream was closed before the start."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream: Any = getattr(sys, name)
        if stream is None:
            # The lowest free number: that of the closed stream, which no data file may get.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
        elif hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


class _Spelled:
    """A stream of text in which names of strangers cannot steer a terminal."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text, its escape codes spelled out."""
        self._do(lambda: self._stream.write(_by_line(text)))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        self._do(self._stream.flush)

    def on(self, stream: Any) -> "_Spelled":
        """Another stream of which the same holds."""
        return _Spelled(stream)

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BrokenPipeError:
            raise
        except OSError as error:
            _drop(self._stream)
            raise errors.of_file("stdout", error) from None


@contextlib.contextmanager
def _spelled() -> Iterator[None]:
    """Within the block what is printed is spelled out; a stream of others is left alone."""
    out: Any = sys.stdout
    if out is not sys.__stdout__ or type(out) is not io.TextIOWrapper:
        yield
        return
    sys.stdout = spelled = _Spelled(out)
    try:
        yield
    finally:
        if sys.stdout is spelled:  # a program of several processes prints elsewhere for good
            sys.stdout = out


def _drop(stream: Any) -> None:
    """Lets what nobody gets go nowhere: else Python complains as it ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _by_line(text: str) -> str:
    """A text of lines that is printable."""
    return "\n".join(map(errors.printable, text.split("\n")))


def _complain(text: str) -> None:
    """The one line of an error; nobody may be there to read it."""
    with contextlib.suppress(OSError):
        print("error:", text, file=sys.stderr, flush=True)


def define_config(flags: absl_flags.FlagValues, argv: Sequence[str], but_for: str = "") -> None:
    """Declares `--config=FILE[:arg]` and its overrides `--config.SECTION.FIELD=VALUE`.

    Args:
      but_for: a flag with which the program needs no config, for its help.

    Raises:
      UserError: no such file, an error in it, an override of no field.
    """
    text = (
        f"Experiment file, or the name of one of ours ({', '.join(_experiments())}), with an "
        "optional argument: FILE[:arg]. --config.model.name=hm and the like override its fields."
    )
    if any(arg in _HELP for arg in argv[1:]):
        text += f" (required, but for {but_for})" if but_for else ""
        absl_flags.DEFINE_string("config", "" if but_for else None, text, flag_values=flags)
        return

    path, arg = _experiment(argv)
    config = experiment_lib.read_config(path, arg)
    for override in argv[1:]:
        _check_override(config, override)
    rest = [arg for arg in argv if _name(arg) != _CONFIG]  # with it overrides would be for later
    config_flags.DEFINE_config_dict("config", config, text, flags, sys_argv=rest)
    flag: Any = flags["config"]
    flag.experiment = path, arg


def experiment(flags: absl_flags.FlagValues) -> tuple[Path, str | None]:
    """The file of --config, and what stood behind its colon (None: no colon)."""
    flag: Any = flags["config"]
    return flag.experiment


def config_of(argv: Sequence[str]) -> ConfigDict:
    """The config that a command line names, validated; raises UserError as a program does."""
    flags = absl_flags.FlagValues()
    return _parse(flags, define_config, list(argv)).config


def is_given(argv: Sequence[str], flag: str) -> bool:
    """Whether a flag is on the command line, and no help is asked for."""
    given = any(_name(arg) == f"--{flag}" for arg in argv[1:])
    return given and not any(arg in _HELP for arg in argv[1:])


def define_runs(flags: absl_flags.FlagValues) -> None:
    """Declares what programs of many runs have: `--jobs` and `--retry`."""
    jobs = "Processes that train at a time, each a run."
    absl_flags.DEFINE_integer("jobs", 1, jobs, flag_values=flags)
    retry = "Whether runs that failed are tried again."
    absl_flags.DEFINE_bool("retry", False, retry, flag_values=flags)


def check_runs(flags: absl_flags.FlagValues) -> None:
    """Raises UserError without a process that trains."""
    if flags.jobs < 1:
        raise UserError(f"--jobs={flags.jobs}: it must be at least 1, the number of processes")


def define_scorer(flags: absl_flags.FlagValues) -> None:
    """Declares which runs score, and how: what the programs that use a scorer have in common."""
    where = "Directory of a run, a checkpoint or an export; several with commas: an ensemble."
    absl_flags.DEFINE_string("workdir", None, where, flag_values=flags)
    define_calibrated(flags)
    combine = "What an ensemble averages: logit or p."
    absl_flags.DEFINE_string("combine", "logit", combine, flag_values=flags)


def define_calibrated(flags: absl_flags.FlagValues) -> None:
    """Declares --calibrated."""
    calibrated = "Whether scores go through the calibration that `evaluate --calibrate` stored."
    absl_flags.DEFINE_bool("calibrated", False, calibrated, flag_values=flags)


def workdirs(flags: absl_flags.FlagValues) -> str | list[str]:
    """The run of --workdir, or the runs."""
    names = paths("workdir", flags.workdir, "run")
    return names if len(names) > 1 else names[0]


def paths(flag: str, given: str, what: str) -> list[str]:
    """Paths with commas between them, where a comma may be part of a path, too."""
    pieces, names = given.split(","), []
    if "" in pieces and not Path(given).exists():
        raise UserError(f"--{flag}={given}: it names no {what} beside a comma; correct it")

    while pieces:
        # The most pieces that are a path together, else the first alone: it has an error.
        joined = {n: ",".join(pieces[:n]) for n in range(len(pieces), 0, -1)}
        most = next((n for n, name in joined.items() if Path(name).exists()), 1)
        names.append(joined[most])
        del pieces[:most]
    return names


def overrides(flags: absl_flags.FlagValues) -> dict:
    """{dotted path: value} of the fields of the config that the command line sets."""
    return config_flags.get_override_values(flags["config"])


def _parse(
    flags: absl_flags.FlagValues, define: Callable, argv: list[str]
) -> absl_flags.FlagValues:
    """Reads the flags and the experiment file; every mistake becomes a UserError."""
    argv = _last_override(argv)
    define(flags, argv)
    try:
        rest = flags([arg for arg in argv if _name(arg) != _CONFIG or "config" not in flags])
    except absl_flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags), n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
        raise UserError(f"--{error.flagname}: there is no such flag; {hint}") from None
    except (absl_flags.Error, ValueError, TypeError) as error:
        raise UserError(f"{error}; correct it (--helpfull lists every option)") from None

    if len(rest) > 1:
        raise UserError(f"{rest[1]!r}: a word that is no flag; flags look like --name=value")
    for name in [n for n in flags if flags[n].present == 0 and flags[n].default is None]:
        raise UserError(f"--{name}: it is required; --help explains it")
    # A variable of a pipeline that is not set: without its base, ids of the day before would move.
    paths = [flags[name] for name in _PATHS if name in flags]
    for name in [flag.name for flag in paths if flag.present and flag.value == ""]:
        raise UserError(f"--{name}: it is empty; name a path, or leave it out")
    given = {f"--{flag.name}": flag.value for flag in paths if flag.present}
    if "config" in flags:
        config_lib.validate(flags.config)
        given["config.data.dir"] = flags.config.data.dir
    for name, value in given.items():
        _check_path(name, str(value))
    return flags


def _check_path(name: str, value: str) -> None:
    """Raises UserError of a path that no system has, or that a shell should have replaced."""
    if "\0" in value:
        raise UserError(f"{name}: it has a NUL in it; name a path")
    if re.match("~(/|$)", value) and not Path("~").exists():
        raise UserError(f"{name}={value}: no shell has replaced ~ here; write $HOME in its place")


def _joined(argv: list[str]) -> list[str]:
    """The arguments, `--config FILE` as `--config=FILE`."""
    joined: list[str] = []
    for arg in argv:
        if joined and joined[-1] == _CONFIG and not arg.startswith("-"):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def _name(arg: str) -> str:
    """--config of -config=FILE."""
    return "--" + arg.split("=", 1)[0].lstrip("-") if arg.startswith("-") else ""


def _last_override(argv: list[str]) -> list[str]:
    """The arguments, of an override that is given twice only the last."""
    last = {_name(arg): i for i, arg in enumerate(argv)}
    once = lambda i, arg: not _name(arg).startswith(f"{_CONFIG}.") or last[_name(arg)] == i
    return [arg for i, arg in enumerate(argv) if once(i, arg)]


def _check_override(config: ConfigDict, override: str) -> None:
    """Raises a UserError if an override is of a field that a config has not."""
    if not _name(override).startswith(f"{_CONFIG}."):
        return
    section, path = config, _name(override).removeprefix(f"{_CONFIG}.")
    for part in path.split("."):
        known = list(section) if isinstance(section, ConfigDict) else []
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "--helpfull lists every option"
            raise UserError(f"{override}: there is no field {part!r}; {hint}")
        section = section[part]

    if isinstance(section, ConfigDict) and path not in config_lib.options():
        example = f"--config.{path}.{next(iter(section))}=..."
        raise UserError(f"{override}: {path} is a section; name a field of it, as in {example}")


def _experiment(argv: Sequence[str]) -> tuple[Path, str | None]:
    """The experiment file that --config names, and its argument."""
    given = [arg.split("=", 1)[1] for arg in argv if _name(arg) == _CONFIG and "=" in arg]
    if not given or any(arg in (_CONFIG, "-config") for arg in argv):
        raise UserError(
            "--config: it is required; name an experiment file, as in "
            "--config=experiments/quickstart.py"
        )

    name, colon, arg = _file_and_argument(given[-1])
    ours, path = _experiments(), Path(name)
    if not path.is_file() and name in ours:
        path = ours[name]
    if not path.is_file():
        known = {n: n for n in ours} | {file.name: file for file in path.parent.glob("*.py")}
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else f"ours are {', '.join(ours)}"
        raise UserError(f"--config={given[-1]}: no such file; {hint}")
    return path, arg if colon else None


def _file_and_argument(text: str) -> tuple[str, str, str]:
    """FILE, ":" and arg of FILE:arg; a colon may be part of a directory's name."""
    parts = text.split(":")
    splits = [(":".join(parts[:n]), ":".join(parts[n:])) for n in range(1, len(parts) + 1)]
    name, arg = next((s for s in splits if Path(s[0]).is_file()), splits[0])
    return name, ":" if len(name) < len(text) else "", arg


def _experiments() -> dict[str, Path]:
    """{name: file} of our own experiments: in a wheel within the package, else beside it."""
    package = Path(__file__).parent
    directory = package / "experiments"
    if not directory.is_dir():
        directory = package.parent / "experiments"
    if directory.is_relative_to(Path.cwd()):
        directory = directory.relative_to(Path.cwd())  # as one would type it

    files = [
        file
        for file in sorted(directory.glob("*.py"))
        if "def get_config" in file.read_text("utf-8")
    ]
    return {file.stem: file for file in files}


def _help(
    main: Callable, flags: absl_flags.FlagValues, full: bool, more_help: Callable[[], str] | None
) -> str:
    lines = [(inspect.getmodule(main).__doc__ or "").strip(), "", "Flags:"]
    for name in sorted(flags):
        flag = flags[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        required = " (required)" if flag.default is None else ""
        lines += _wrap(f"--{name}: {flag.help}{default}{required}", 2)

    if full and more_help is not None:
        lines += ["", more_help()]
    if "config" in flags:
        lines += ["", *(_options() if full else _sections())]
    return "\n".join(lines)


def _sections() -> list[str]:
    """Names of all options, by section."""
    found: dict[str, list[str]] = {}
    for path in config_lib.options():
        section, _, field = path.rpartition(".")
        found.setdefault(section, []).append(field)

    of_table, of_network = "optim.embedding", "optim.network"  # which has no fields of its own
    found[of_table] = [field for field in found[of_table] if field not in found[of_network]]
    found = {f"{of_table}, {of_network}" if s == of_network else s: f for s, f in found.items()}
    lines = ["Options, as in --config.data.batch_size=512 (--helpfull says what each means):"]
    for section, fields in found.items():
        lines += _wrap(f"{section + ': ' if section else ''}{', '.join(fields)}", 2)
    return lines


def _options() -> list[str]:
    """What each option means."""
    lines = ["Options, with their defaults:"]
    for path, option in config_lib.options().items():
        lines += [f"  {path} = {option.default!r}", *_wrap(option.describe(), 6)]
    return lines


def _wrap(text: str, indent: int) -> list[str]:
    first = " " * indent
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=f"{first}  ")

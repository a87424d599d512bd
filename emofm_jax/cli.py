"""How every program starts: flags -> validated config -> main; a user's mistake is one line and exit code 2.

def _define(flags, argv):
    cli.define_config(flags, argv)
    absl_flags.DEFINE_string("workdir", "", "Where ...", flag_values=flags)

def main(flags): ...          # flags.config, flags.workdir

if __name__ == "__main__":
    sys.exit(cli.run(main, _define))
"""

import difflib
import inspect
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from emofm_jax import config as config_lib
from emofm_jax.errors import UserError
from emofm_jax.training import compilation_cache

_HELP = ("--help", "-help", "-h", "--helpfull")


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
      argv: program name and arguments; by default `sys.argv`, which is otherwise not read: tests call this
        in-process.
      more_help: makes a further section of `--help`.

    Returns:
      0; 2 after `error: ...` on stderr for a UserError, or for a file that the system refuses (a full disk, say);
      130 after an interrupt; 141 where nobody reads what is printed (`| head`).
    """
    argv = _last_override_first_config(list(sys.argv if argv is None else argv))
    argv = [_with_experiment_file(arg) for arg in argv]
    flags = absl_flags.FlagValues()
    try:
        if any(arg in _HELP for arg in argv[1:]):
            define(flags, argv)
            print(_help(main, flags, more_help))
        else:
            parsed = _parse(flags, define, argv)
            compilation_cache.enable()
            main(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python complains as it ends
        return 141
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def define_config(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
    """Declares `--config=FILE[:arg]` and its overrides `--config.SECTION.FIELD=VALUE`."""
    if not any(arg in _HELP for arg in argv[1:]):
        _check_config_argument(argv)
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"Experiment file, or the name of one of ours ({', '.join(_experiments())}), with an optional "
        "argument: FILE[:arg]. Every field can be overridden, as in --config.model.name=hm; "
        "emofm_jax/config.py lists them with their defaults.",
        lock_config=True,
        flag_values=flags,
        sys_argv=list(argv),
    )


def define_scorer(flags: absl_flags.FlagValues) -> None:
    """Declares which runs score, and how: what the programs that use a scorer have in common."""
    where = "Directory of the run, of one of its checkpoints or of an export; several with commas: an ensemble."
    absl_flags.DEFINE_string("workdir", None, where, flag_values=flags)
    calibrated = "Whether scores go through the calibration that `evaluate --calibrate` stored."
    absl_flags.DEFINE_bool("calibrated", False, calibrated, flag_values=flags)
    absl_flags.DEFINE_string(
        "combine", "logit", "What an ensemble averages: logit or p.", flag_values=flags
    )


def workdirs(flags: absl_flags.FlagValues) -> str | list[str]:
    """The run of --workdir, or the runs."""
    names = flags.workdir.split(",")
    if "" in names:
        raise UserError(
            f"--workdir={flags.workdir}: it names no run between, before or after a comma; correct it"
        )
    return names if len(names) > 1 else names[0]


def overrides(flags: absl_flags.FlagValues) -> dict:
    """{dotted path: value} of the fields of the config that the command line sets."""
    return config_flags.get_override_values(flags["config"])


def _parse(
    flags: absl_flags.FlagValues, define: Callable, argv: list[str]
) -> absl_flags.FlagValues:
    """Reads the flags and the experiment file; every mistake becomes a UserError."""
    try:
        define(flags, argv)
        rest = flags(argv)
        config = flags["config"].value if "config" in flags else None
    except absl_flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags), n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
        raise UserError(f"--{error.flagname}: there is no such flag; {hint}") from None
    except Exception as error:  # anything: an experiment file is a program of the user's
        raise UserError(_reword(error, argv)) from None
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r}: a word that is no flag; flags look like --name=value")
    for name in [n for n in flags if flags[n].present == 0 and flags[n].default is None]:
        raise UserError(f"--{name}: it is required; --help explains it")
    if "config" in flags:
        if not isinstance(config, ConfigDict) or config.keys() != config_lib.default().keys():
            raise UserError(
                "--config: its get_config must return emofm_jax.config.default() with changes; correct it"
            )
        config_lib.validate(config)
    return flags


def _last_override_first_config(argv: list[str]) -> list[str]:
    """Moves `--config=...` in front of its overrides, which fail before it; of an override given twice, the last."""
    first = [arg for arg in argv[1:] if re.match(r"--?config=", arg)]
    rest = [arg for arg in argv[1:] if arg not in first]
    last = {
        arg.split("=", 1)[0].lstrip("-"): i
        for i, arg in enumerate(rest)
        if re.match(r"--?config\.", arg)
    }
    return (
        argv[:1]
        + first
        + [arg for i, arg in enumerate(rest) if last.get(arg.split("=", 1)[0].lstrip("-"), i) == i]
    )


def _check_config_argument(argv: list[str]) -> None:
    given = [arg.split("=", 1)[1] for arg in argv if re.match(r"--?config=", arg)]
    if not given:
        raise UserError(
            "--config: it is required; name an experiment file, as in --config=experiments/quickstart.py"
        )
    path = Path(given[-1].split(":")[0])
    if not path.is_file():
        ours = {name: name for name in _experiments()}
        known = ours | {file.name: file for file in path.parent.glob("*.py")}
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else f"ours are {', '.join(ours)}"
        raise UserError(f"--config={given[-1]}: no such file; {hint}")


def _with_experiment_file(arg: str) -> str:
    """`--config=quickstart:wm` with the file of that name; any other argument, and a path, as it is."""
    flag, name, rest = re.fullmatch(r"(--?config=)?([^:]*)(.*)", arg, flags=re.DOTALL).groups()
    found = _experiments().get(name) if flag else None
    return f"{flag}{found}{rest}" if found and not Path(name).is_file() else arg


def _experiments() -> dict[str, Path]:
    """{name: file} of the package's own experiments: in a wheel within it, in a checkout beside it."""
    package = Path(__file__).parent
    directory = package / "experiments"
    if not directory.is_dir():
        directory = package.parent / "experiments"
    if directory.is_relative_to(Path.cwd()):
        directory = directory.relative_to(Path.cwd())  # as one would type it
    files = [
        file for file in sorted(directory.glob("*.py")) if "def get_config" in file.read_text()
    ]
    return {file.stem: file for file in files}


def _reword(error: Exception, argv: list[str]) -> str:
    """One line from an error of absl, ml_collections or of the experiment file itself."""
    config = next(
        (arg.split("=", 1)[1].split(":")[0] for arg in argv if re.match(r"--?config=", arg)), ""
    )
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}: "
    else:
        for frame in traceback.extract_tb(error.__traceback__):
            if config and Path(frame.filename).resolve() == Path(config).resolve():
                where = f"{config}:{frame.lineno}: "
    text = (
        str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        or type(error).__name__
    )
    text = text.replace("\\n", "\n").replace("\\'", "'")
    if "Traceback (most recent call last)" in text:  # absl wraps what an experiment file raised
        frames = re.findall(rf'File "{re.escape(config)}", line (\d+)', text)
        where, text = f"{config}:{frames[-1]}: " if frames else where, text.strip().splitlines()[-1]
    text = re.sub(r"Other fields present: .*?(?=Did you mean|$)", "", text, flags=re.DOTALL)
    text = " ".join(text.split())
    text = text.strip("'\"") if text[:1] in "'\"" else text
    if near := re.search(r"(\w+)\W.*Did you mean \"(\w+)\"", text.removeprefix("Key ")):
        text = f"there is no field {near[1]!r}; did you mean {near[2]!r}?"
    elif isinstance(error, AttributeError | KeyError) and text.isidentifier():
        text = f"there is no field {text!r}"
    if not where and isinstance(error, AttributeError | KeyError):
        where = "--config: "
    return (
        f"{where}{text}"
        if "; " in text
        else f"{where}{text}; correct it (emofm_jax/config.py lists every field)"
    )


def _help(main: Callable, flags: absl_flags.FlagValues, more_help: Callable[[], str] | None) -> str:
    lines = [inspect.getmodule(main).__doc__.strip(), "", "Flags:"]
    for name in sorted(flags):
        flag = flags[name]
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        required = " (required)" if flag.default is None else ""
        lines += textwrap.wrap(
            f"--{name}: {flag.help}{default}{required}",
            100,
            initial_indent="  ",
            subsequent_indent="    ",
        )
    if more_help is not None:
        lines += ["", more_help()]
    if "config" in flags:
        lines += ["", "Fields of --config, with their defaults:", *_fields()]
    return "\n".join(lines)


def _fields() -> list[str]:
    """A line per field of `config.default()`: its default, and the comment that stands beside it there."""
    source, lines = inspect.getsource(config_lib.default), []
    default = config_lib.flatten(config_lib.default())
    sections = {"c": "", **{v: f"{k}." for k, v in re.findall(r"c\.(\w+) = (\w) =", source)}}
    for owner, path, comment in re.findall(
        r"^ +(\w)(?:\[key\])?\.([\w.]+) = .*?  # (.*)$", source, flags=re.MULTILINE
    ):
        name = sections[owner] + path
        both = f"optim.network.{path}"  # two sections with the same fields
        value = default.get(name, default.get(both))
        if (
            value is None and f"{owner}.{path}." not in source
        ):  # a section that its own line says everything about
            default[name] = value = config_lib.get(config_lib.default(), name).to_dict()
        if value is not None:
            lines.append(
                f"  {name if name in default else f'optim.{{embedding,network}}.{path}'} = {value!r}"
            )
            lines += textwrap.wrap(
                comment, 100, initial_indent="      ", subsequent_indent="      "
            )
    return lines

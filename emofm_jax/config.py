"""Every option but those of the models, and the config of a run.

An experiment file states what differs from `default()`, or from `recommended()`:

    from emofm_jax import config

    def get_config(arg=""):
        c = config.recommended()
        c.data.dir = "data/mine"
        return c

`python -m emofm_jax.config` prints docs/options.md: every option with its default, meaning, range
and needs.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict, FieldReference

from emofm_jax import options as options_lib
from emofm_jax.data import files
from emofm_jax.data.schema import CHOICES
from emofm_jax.errors import UserError
from emofm_jax.options import END, FREE, Option
from emofm_jax.options import flatten as flatten
from emofm_jax.options import get as get

_SEED: dict[str, Any] = {"low": 0, "high": 2**32 - 1}
_RUN = {
    "name": Option(
        "experiment", "name of the data set and run, for tables and titles", resume=FREE
    ),
    "seed": Option(0, "seed of initialisation, dropout and the order of rows", **_SEED),
    "compute_dtype": Option("float32", "type of the network's products", ("float32", "bfloat16")),
}

# Raw data -> shards. docs/data.md explains each with an example.
_FORMATS, _SPLITS = ("tabular", "libsvm", "cti", "synthetic"), ("files", "share", "day")
_GLOBS = {"train": "train.*", "valid": "valid.*", "test": "test.*"}
_QUOTING = (
    "whether cells may stand in double quotes; multiline: over line ends, too, where each line "
    "looks like a row"
)
_PREPARE = {
    "format": Option("tabular", "format of the raw data; tabular is csv, tsv or Parquet", _FORMATS),
    "source": Option("", "directory or file of raw data", resume=FREE),
    "split": Option(
        "files", "what a split is made of: files, a share of rows by hash, days", _SPLITS
    ),
    "files": Option(_GLOBS, "split=files: globs inside `source`"),
    "shares": Option((0.8, 0.1, 0.1), "split=share: shares of train, valid, test", of=float),
    "day_column": Option("", "split=day: column that holds the day"),
    "day_length": Option(0, "split=day: its leading characters that are the day; 0 = all", low=0),
    "valid_days": Option((), "split=day: days of the validation split"),
    "test_days": Option((), "split=day: days of the test split"),
    "train_days": Option(
        (), "split=day: days of the train split, others are passed over; () = all that are left"
    ),
    "replay_days": Option(
        (), "split=day: days of the base that the train split has once more (prepare --base)"
    ),
    "expire_days": Option(
        0,
        "vocabulary: days without a value after which a new one may take its row (prepare --base); "
        "0 = never",
        low=0,
    ),
    "seed": Option(0, "seed of split=share and of the hashes", **_SEED),
    "max_rejected": Option(
        0, "bad rows that a split may have; they are counted", low=0, resume=FREE
    ),
    "separator": Option(",", "tabular text: what stands between columns"),
    "quoting": Option("double", f"tabular text: {_QUOTING}", ("double", "none", "multiline")),
    "header": Option(True, "tabular text: whether the first line names the columns"),
    "columns": Option((), "tabular text without a header: names of the columns, in order", of=str),
    "null_values": Option(("",), "tabular text: spellings of a missing value", of=str),
    "label": Option("label", "column of the label; 0 or 1, true or false, yes or no, -1 or 1"),
    "positive": Option((), "values of the label that mean a click, all others mean none; () = 1"),
    "ftype": Option("", "column of the interaction type; empty = untyped data"),
    "types": Option((), "names of the types; cti: follows from the columns", of=str),
    "row_id": Option("", "column that identifies a row in predictions; empty = its position"),
    "weight": Option("", "column of sample weights"),
    "negative_keep_rate": Option(
        1.0,
        "share of the training rows without a click that are kept; each then weighs 1 / it",
        low=1e-6,
        high=1,
    ),
    "keep_probability": Option(
        "", "column of the probability that a row was kept by a sampling before; it weighs 1 / it"
    ),
    "gauc_key": Option("", "column whose values group the rows for GAUC (usually the user)"),
    "ignore": Option((), "columns that are left out on purpose", of=str),
    "groups": Option((), '((group, members), ..); members: a name, "C1-C26", or a list of these'),
    "slots": Option({}, "{slot: {field of `slot`: value}}: the exceptions"),
    "slot.kind": Option(
        "categorical", "kind of a slot; multi is a bag, vector a list of numbers", CHOICES["kind"]
    ),
    "slot.encoding": Option(
        "vocabulary",
        "how a value becomes an id; identity: it is an integer 0 .. rows - 2",
        CHOICES["encoding"],
    ),
    "slot.rows": Option(
        0, "hash, identity: table rows; of a vocabulary they follow from the data", low=0
    ),
    "slot.min_count": Option(1, "vocabulary: rarer values are unknown", low=1),
    "slot.max_length": Option(10, "multi: ids that are kept", low=1),
    "slot.keep": Option("first", "multi: the end of a longer bag that is kept", CHOICES["keep"]),
    "slot.weighted": Option(
        False, "categorical, multi: an id is `id:weight`, a Parquet pair or map"
    ),
    "slot.pooling": Option("mean", "multi: how a bag becomes one vector", CHOICES["pooling"]),
    "slot.length": Option(0, "vector: how many numbers it has", low=0),
    "slot.separator": Option("^", "multi, vector: what stands between the values of a text cell"),
    "slot.null_values": Option(
        (), "spellings of a missing value of the slot; in a bag, of what fills it up", of=str
    ),
    "slot.transform": Option("none", "numeric: what is done to the number", CHOICES["transform"]),
    "slot.respell": Option(
        True, "whether text that is a number, truth value or time is the same value as it"
    ),
    "slot.share": Option("", "slot whose table rows this one uses"),
}

# Shards -> batches.
_SHUFFLED = {"shuffle": (True,)}
_DATA = {
    "dir": Option("", "directory of the shards", resume=FREE),
    "batch_size": Option(4096, "rows of a training step, over all devices", low=1),
    "eval_batch_size": Option(4096, "rows of an evaluation step, over all devices", low=1),
    "shuffle": Option(True, "a new order of rows each epoch; False = as they stand (time order)"),
    "shuffle_rows": Option(1 << 18, "rows of a shuffling window", low=1, needs=_SHUFFLED),
    "prefetch": Option(4, "batches that are made ahead", low=1, resume=FREE),
    "exchange_rows": Option(
        0,
        "several devices: table rows that one may ask of another in a step; 0 = what chance needs",
        low=0,
        resume=FREE,
    ),
}

# Parameters -> better parameters. One section for the embedding table, one for everything else.
SECTIONS = ("embedding", "network")
_SCHEDULES = ("constant", "cosine", "plateau")
_ADAGRAD = {"name": ("adagrad", "rowwise_adagrad")}
_ADAM, _ADAM_OR_ADAGRAD = (
    {"name": ("adam", "adamw")},
    {"name": ("adam", "adamw", *_ADAGRAD["name"])},
)
_OPTIMIZERS = ("adam", "adamw", "adagrad", "rowwise_adagrad", "sgd")
_SECTION = {
    "name": Option(
        "adam",
        "optimizer; rowwise_adagrad keeps one number a row, not one a parameter",
        _OPTIMIZERS,
    ),
    "learning_rate": Option(1e-3, "rate before warm-up and schedule", low=0),
    "schedule": Option(
        "constant", "what becomes of the rate; cosine: zero at the last step", _SCHEDULES
    ),
    "warmup_steps": Option(0, "steps of linear rise from zero, before any schedule", low=0),
    "l2": Option(0.0, "adds l2 * parameter to the gradient", low=0),
    "weight_decay": Option(0.0, "decoupled decay", low=0, needs={"name": ("adamw",)}),
    "beta1": Option(0.9, "decay of the mean", low=0, high=1 - 1e-9, needs=_ADAM),
    "beta2": Option(0.999, "decay of the mean square", low=0, high=1 - 1e-12, needs=_ADAM),
    "eps": Option(1e-8, "least divisor", low=1e-30, needs=_ADAM_OR_ADAGRAD),
    "momentum": Option(0.0, "momentum", low=0, high=1, needs={"name": ("sgd",)}),
    "initial_accumulator": Option(0.1, "sum of squares at the start", low=0, needs=_ADAGRAD),
}
_CLIPPED = {"clip": ("group", "global")}
_UPDATES = "rows of the table that move: the batch's (lazy) or all"
_CLIP = "whose gradient norm is clipped: of table and network apart (group), or together"
_OPTIM = {
    **{f"embedding.{name}": option for name, option in _SECTION.items()},
    "embedding.first_order_l2": Option(
        -1.0, "l2 of the table's columns of first-order weights; -1 = that of the others", low=-1
    ),
    "embedding.l2_rows": Option(
        0.0,
        "l2 that weighs less the more rows teach: this over the train split's rows is added to l2",
        low=0,
        needs={"updates": ("dense",)},
    ),
    "embedding.updates": Option("lazy", _UPDATES, ("lazy", "dense")),
    **{f"network.{name}": option for name, option in _SECTION.items()},
    "clip": Option("none", _CLIP, ("none", "group", "global")),
    "clip_norm": Option(10.0, "norm that no gradient exceeds", low=1e-12, needs=_CLIPPED),
}

# The loop.
_SCHEDULE = ".optim.embedding.schedule | .optim.network.schedule"
_PLATEAU = {_SCHEDULE: ("plateau",)}
_MONITORS = ("auc", "logloss", "auc - logloss")
_JUDGED = {f"monitor | {_SCHEDULE}": (*_MONITORS, "plateau")}
_TRAIN = {
    "epochs": Option(1, "passes over the train split", low=1, resume=END),
    "max_steps": Option(0, "stops earlier; 0 = no", low=0, resume=END),
    "eval_every_steps": Option(0, "steps between evaluations; 0 = an epoch", low=0),
    "monitor": Option(
        "", "figure by which the best state is kept; empty = the last is kept", ("", *_MONITORS)
    ),
    "patience": Option(0, "evaluations without gain before the run stops; 0 = never", low=0),
    "min_delta": Option(1e-6, "what counts as a gain", low=0, needs=_JUDGED),
    "plateau_factor": Option(
        0.1, "factor on the rate at an evaluation without gain", low=0, high=1, needs=_PLATEAU
    ),
    "plateau_min": Option(1e-6, "smallest factor in all", low=0, high=1, needs=_PLATEAU),
    "average_epochs": Option(
        0.0,
        "length in epochs of a moving average of all parameters, which is what is evaluated and "
        "scored; 0 = the parameters themselves. It passes over the whole table in every step",
        low=0,
    ),
    "sampling_correction": Option(
        "logit",
        "what undoes `negative_keep_rate` in the loss: log(1 / rate) on the logits, or the rows' "
        "weights",
        ("logit", "weight"),
        needs={".prepare.negative_keep_rate": options_lib.Numbers(below=1.0)},
    ),
    "intercept_rows": Option(
        0,
        "train rows on which an intercept is fitted after the last step, so that the sum of p is "
        "that of the clicks, which an average leaves too low; 0 = none",
        low=0,
        resume=END,
    ),
    "init_from": Option(
        "", "run whose parameters this one starts from, by value (train --init_from); empty = none"
    ),
    "init_moments": Option(
        False, "whether the moments of its optimizers come along; else they start anew"
    ),
    "log_every_steps": Option(100, "steps of a line of log.jsonl", low=1, resume=FREE),
    "save_every_steps": Option(2000, "steps between checkpoints", low=1, resume=FREE),
}

_RENAMED = {"optim.embedding.update": "optim.embedding.updates"}  # in runs of before 2026-11-26
# What runs did before there was a field, where that is not its default: {model: {field: value}},
# and of any model on sampled rows.
_BEFORE: dict[str, dict[str, Any]] = {"emofmv2": {"model.emofmv2.cross_to_head": False}}
_BEFORE_SAMPLED: dict[str, Any] = {"train.sampling_correction": "weight"}


class Section(ConfigDict):
    """A section of a config; asked for a field that it has not, it names the nearest one.

    A key may hold dots, as names of slots do: `c.prepare.slots = {"item.price": {...}}`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"allow_dotted_keys": True})

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(self._missing(key))
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if self.is_locked and key not in self:
            raise AttributeError(self._missing(key))
        value = options_lib.plain(value)
        _check_type(key, value)
        if isinstance(value, dict | ConfigDict) and not isinstance(value, Section):
            value = Section(value)

        try:
            super().__setitem__(key, value)
        except TypeError:
            kind = type(self[key]).__name__
            raise TypeError(f"{key} = {value!r} is no {kind}, as {self[key]!r} is") from None

    def __str__(self) -> str:
        """The YAML of any ConfigDict, by libyaml where it is: absl asks twice at every start."""
        return yaml.dump(self.to_dict(), Dumper=getattr(yaml, "CDumper", yaml.Dumper))

    def _missing(self, key):
        near = difflib.get_close_matches(str(key), list(self.keys()), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "--helpfull lists every option"
        return f"there is no field {key!r}; {hint}"


def _check_type(key: str, value: Any) -> None:
    """Raises TypeError on what no JSON can hold, such as a set or bytes."""
    if isinstance(value, list | tuple):
        for inner in value:
            _check_type(key, inner)
    elif not isinstance(value, str | int | float | None | dict | ConfigDict | FieldReference):
        kind, remedy = type(value).__name__, "give text, numbers, dates, or tuples of these"
        raise TypeError(f"{key}: {value!r:.80} is of type {kind}; {remedy}")


@functools.cache
def options() -> dict[str, Option]:
    """{dotted path: option} of everything that a config holds, in the order of `--helpfull`."""
    from emofm_jax.data.synthetic.population import Dials

    synthetic = {f"synthetic.{name}": o for name, o in options_lib.options_of(Dials).items()}
    sections = {
        "prepare": _PREPARE | synthetic,
        "data": _DATA,
        "model": _of_models(),
        "optim": _OPTIM,
        "train": _TRAIN,
    }
    paths = {f"{s}.{name}": o for s, members in sections.items() for name, o in members.items()}
    return _RUN | paths


def _of_models() -> dict[str, Option]:
    """`models.options()`, as it is kept on disk where it can be: the models' files load jax."""
    if "emofm_jax.models" in sys.modules:
        return sys.modules["emofm_jax.models"].options()
    name = None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        name = _kept_name()
        return options_lib.from_json(json.loads(files.read_cache(name)))

    from emofm_jax import models  # loads jax

    found = models.options()
    with contextlib.suppress(UserError, OSError, TypeError, KeyError):  # no place; not for JSON
        text = json.dumps(options_lib.to_json(found))
        if _kept_name() == name and options_lib.from_json(json.loads(text)) == found:
            files.write_cache(name, text)
    return found


def _kept_name() -> str:
    """Changes with every source file of the package, so what is kept under it is never stale.

    Raises:
      OSError: the package is no directory of source files.
    """
    package, found = Path(__file__).parent, hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return f"options-{found.hexdigest()[:32]}.json"


def default() -> ConfigDict:
    """All options, locked: a misspelt field is an error, in an experiment file too."""
    config = Section()
    for path, option in options().items():
        *parents, name = path.split(".")
        section = config
        for parent in parents:
            if parent not in section:
                section[parent] = Section()
            section = section[parent]
        section[name] = (
            Section(option.default) if isinstance(option.default, dict) else option.default
        )
    return config.lock()


# Our model and its recipe: one for data of any size, because `l2_rows` weighs less the more rows
# there are. Chosen on the validation rows of five data sets (docs/results/recipe.md).
_RECOMMENDED = {
    "model.stage1": (128,),
    "model.stage2": (128,),
    "model.am_hidden": (64,),
    "model.am_reads": "own",
    "model.norm": "batch",
    "model.dropout": 0.1,
    "optim.embedding.updates": "dense",
    "optim.embedding.l2_rows": 1500.0,
    **{f"optim.{key}.learning_rate": 3e-3 for key in SECTIONS},
    "optim.clip": "global",
    "train.average_epochs": 0.5,
    "train.intercept_rows": 2_000_000,
    "train.epochs": 40,
    "train.monitor": "auc",
    "train.patience": 3,
}


def recommended() -> ConfigDict:
    """`default()` with our model and the recipe to begin with, on a log of one's own.

    Every row of the table moves at every step, under L2, for several epochs, until validation AUC
    stops rising; what is scored is a moving average. A table of tens of millions of rows asks for
    `optim.embedding.updates = "lazy"`, and one epoch, in its place.
    """
    config = default()
    config.update_from_flattened_dict(_RECOMMENDED)
    return config


def validate(config: ConfigDict) -> None:
    """Checks what needs no data; `models.build.check` checks the options of a model together.

    Raises:
      UserError: naming the field, its value and what it may be.
    """
    for path, option in options().items():
        option.check(f"config.{path}", get(config, path))

    for key in SECTIONS:
        section = config.optim[key]
        if section.weight_decay and section.name != "adamw":
            raise UserError(
                f"config.optim.{key}.weight_decay: {section.weight_decay} has no effect with "
                f"{section.name}; choose name=adamw, or l2"
            )
    shares = config.prepare.shares
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise UserError(
            f"config.prepare.shares: {tuple(shares)} must be three shares that add up to 1"
        )
    if config.train.patience and not config.train.monitor:
        raise UserError(
            "config.train.patience: early stopping needs config.train.monitor; "
            "choose auc or logloss"
        )


def without_effect(config: ConfigDict) -> dict[str, str]:
    """{field: what it has no effect on, as the other fields are}."""
    from emofm_jax.models import build  # loads jax

    found = options_lib.without_effect(options(), flatten(config))
    found = {path: what for path, what in found.items() if not path.startswith("model.")}
    if (of_rows := config.prepare.keep_probability) and "train.sampling_correction" in found:
        of_rows = f"prepare.keep_probability={of_rows!r}, which weights undo"
        found["train.sampling_correction"] = of_rows
    for path, what in build.unread(config.model.to_dict()).items():
        of = build.readers(path) if what == config.model.name else ""
        others = f", only on {of}" if of and not of.startswith("all but") else ""
        found[f"model.{path}"] = f"{what}{others}"
    return found


def free() -> set[str]:
    """Fields that change no number of a run."""
    return {path for path, option in options().items() if option.resume == FREE}


def may_change(config: ConfigDict) -> set[str]:
    """Fields that may differ when a run goes on; its end too, unless a cosine ends there."""
    fixed = any(config.optim[key].schedule == "cosine" for key in SECTIONS)
    end = {path for path, option in options().items() if option.resume == END}
    return free() | (set() if fixed else end)


def load(workdir: Path) -> ConfigDict:
    """The config of a run.

    Raises:
      UserError: the directory holds no run, or a config.json that this version does not understand.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_dict(files.read_json(path))
    except FileNotFoundError:
        raise UserError(
            f"{workdir}: holds no run (no config.json); name the --workdir of a trained run"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a config of this version ({error}); train again") from None


def from_dict(body: dict) -> ConfigDict:
    """The validated config that a JSON object holds; fields that it lacks have their defaults.

    But for those whose default means something else than runs did before there was the field
    (`renamed`).

    Raises:
      KeyError, TypeError, AttributeError: it is not of this version.
      UserError: a value is out of range.
    """
    config = default()
    slots = body["prepare"].pop("slots")
    config.prepare.slots = {
        slot: {field: options_lib.as_tuple(value) for field, value in fields.items()}
        for slot, fields in slots.items()
    }
    config.update_from_flattened_dict(renamed(flatten(body)))  # locked, but for the names of slots
    validate(config)
    return config


def renamed(flat: dict) -> dict:
    """{dotted path: value} of a whole config with the names that fields have now.

    A field that it lacks, and whose default means something else than its run did, is added.
    """
    before = dict(_BEFORE.get(flat.get("model.name", ""), {}))
    if flat.get("prepare.negative_keep_rate", 1.0) < 1:
        before |= _BEFORE_SAMPLED
    return before | {_RENAMED.get(path, path): value for path, value in flat.items()}


def difference(ours: Mapping, theirs: Mapping) -> dict[str, tuple]:
    """{dotted path: (ours, theirs)} where they differ; `...` where a side has no such field."""
    a, b = flatten(ours), flatten(theirs)
    pairs = {k: (a.get(k, ...), b.get(k, ...)) for k in sorted(a.keys() | b.keys())}
    return {k: pair for k, pair in pairs.items() if pair[0] != pair[1]}


def changed(ours: Mapping, theirs: Mapping) -> dict[str, tuple]:
    """`difference` of two whole configs, but for values that mean the same in both.

    `am_reads=auto` is what the model makes of it, and nothing in a model without types.
    """
    found = difference(ours, theirs)
    if (path := "model.am_reads") in found:
        from emofm_jax.models import MODELS, build  # loads jax

        usual = flatten(default())
        sides = [usual | flatten(side) for side in (ours, theirs)]
        names = ("name", "use_ftype", "type_aware", "am_reads")
        if not {side["model.name"] for side in sides} <= {*MODELS}:
            return found  # a model that is gone
        a, b = (build.am_reads({k: side[f"model.{k}"] for k in names}) for side in sides)
        if a == b:
            del found[path]
    return found


def spelled(value: Any) -> str:
    """A value of a config in a message, one of `difference` included."""
    return "not set" if value is None or value is ... else repr(value)


def _page() -> str:
    """docs/options.md."""
    from emofm_jax.models import COMMON, build

    lines = [
        "# Options",
        "",
        "Every option, its default, its meaning. A run that goes on must have the same values,",
        "but for those marked *may change*, and *end* where no schedule is a cosine.",
        "This page is printed by `python -m emofm_jax.config`; a test keeps it true.",
    ]
    section = None
    for path, option in options().items():
        if path.rpartition(".")[0] != section:
            section = path.rpartition(".")[0]
            title = f"`{section}`" if section else "Of the run"
            lines += ["", f"## {title}", "", "| option | default | meaning |", "|---|---|---|"]
        marks = {FREE: " *may change*", END: " *end*"}.get(option.resume, "")
        text = option.describe().replace("|", "\\|")
        name = path.removeprefix("model.")
        if name != path and name in COMMON and (readers := build.readers(name)):
            text += f"; read by {readers}"
        default = f"{option.default!r}".replace("|", "\\|")
        lines.append(f"| `{path.rpartition('.')[2]}` | `{default}` | {text}{marks} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(_page())

"""A run that starts from another one: its parameters, carried over by value.

    table       row of a value -> row of that value; rows of new values, types' own layers of new
                types, and whatever belongs to new slots start as in any run
    network     array -> array of the same name and shape
    averages    where the other run kept some, they are what it scored with
    moments     of the optimizers, if `train.init_moments` asks for them; schedules start anew

Slots lie one behind the other in the one table, so that a slot that grows moves the rows of all
behind it: positions mean nothing from one run to the next. Without new values the scores of the
start are those of the other run, bit for bit, but for its intercept: each run fits its own.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from emofm_jax import config as config_lib
from emofm_jax.data import encode, files, storage
from emofm_jax.data import recipe as recipe_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.training import build, checkpoint, run_data
from emofm_jax.training import state as state_lib
from emofm_jax.training import workdir as workdir_lib
from emofm_jax.training.build import Parts
from emofm_jax.training.progress import Progress
from emofm_jax.training.state import TrainState

Places = tuple[np.ndarray, np.ndarray]  # i64[n], i64[n]: of the old table, and of the new one

# Fields of a slot that may differ: they change no meaning of a row of the table.
_MAY_DIFFER = ("digest", "min_count", "max_length", "keep")


@dataclasses.dataclass(frozen=True)
class Start:
    """The state that a run starts from.

    Attributes:
      state: on the host, of the run's own shapes.
      parent: what `parent.json` holds: place, step, identity and days of the other run, moments,
        rows that were carried over, options of the model that differ, and what starts fresh, in
        words.
    """

    state: TrainState
    parent: Mapping[str, Any]

    def said(self) -> str:
        """What is carried over and what is not, a line each."""
        rows, table = self.parent["rows"], self.parent["table"]
        moments = "with its moments" if self.parent["moments"] else "moments start anew"
        head = f"starts from {self.parent['place']} (step {self.parent['step']:,}): "
        head += f"{rows:,} rows of a table of {table:,} are carried over, {moments}"
        fresh = [f"  fresh: {what}" for what in self.parent["fresh"]]
        return "\n".join([head, *fresh, *(f"  differs: {what}" for what in self.parent["differs"])])

    def save(self, workdir: Path) -> None:
        """Writes parent.json."""
        files.write_json(workdir / run_data.PARENT, dict(self.parent))


@jax.enable_x64(False)
def make(config: ConfigDict, parts: Parts) -> Start:
    """Reads the run that `config.train.init_from` names, and carries its state over.

    Args:
      config: of the new run.
      parts: of the new run.

    Raises:
      UserError: no such run, one that has not ended or has no checkpoint, another model, a schema
        that differs by more than growth, or days to be evaluated that the other run has seen.
    """
    directory, moments = storage.reading(config.train.init_from), config.train.init_moments
    where = f"--init_from={directory}"
    if not (directory / "config.json").exists():
        problem = "no run there (no config.json)"
        raise UserError(f"{where}: {problem}; name the --workdir of a trained run")
    with workdir_lib.together(directory):
        theirs = config_lib.load(directory)
        schema, ours = schema_lib.load(directory), parts.schema
        if problems := [*_problems(schema, ours)]:
            remedy = "prepare the new rows with --base, or train afresh"
            differs = f"its schema differs by more than growth ({'; '.join(problems)})"
            raise UserError(f"{where}: {differs}; {remedy}")
        days = run_data.trained_days(directory, schema)
        if ours.recipe:
            recipe_lib.check_unseen(ours.recipe, days, where)
        found, module = _restore(config, theirs, schema, directory)
        rows = _rows(schema, ours, directory, storage.reading(config.data.dir))

    columns = _columns(module, parts.module)
    state, fresh = _carry(parts, schema, found.state, (rows, columns), moments)
    new = [f"slot {s.name!r} is new" for s in ours.slots if s.name not in _by_name(schema)]
    types = ours.types[schema.num_types :]
    mixed = "; the predictors of the others see it by the mixers, so their scores move"
    new += [f"type {n!r} is new{mixed if _mixes_types(config) else ''}" for n in types]
    of = {"place": str(directory), "step": found.step, "identity": schema.identity}
    of |= {"days": days, "moments": moments}
    of |= {"rows": len(rows[0]), "table": ours.num_rows, "fresh": [*new, *fresh]}
    of["differs"] = [*_differs(theirs, config, "model.")]
    return Start(state, of)


def _by_name(schema: Schema) -> dict[str, Slot]:
    return {slot.name: slot for slot in schema.slots}


def _mixes_types(config: ConfigDict) -> bool:
    """Whether mixers let the predictors of types read each other."""
    model, mixer = config.model, config.model.mixer
    reads = "mixer.kind" not in model_lib.unread(model.to_dict()) and mixer.kind != "none"
    return reads and 2 in mixer.stages and model.type_predictors == "per_type"


def _problems(old: Schema, new: Schema) -> Iterator[str]:
    """What differs between two schemas beside values, slots and types that came."""
    ours, theirs = _by_name(new), _by_name(old)
    if old.spelling != new.spelling:
        yield "values are spelled as release 0.1 did"
    if new.types[: old.num_types] != old.types:
        yield f"types {list(old.types)} there, {list(new.types)} here"
    if gone := [name for name in theirs if name not in ours]:
        yield f"slots {gone} are gone"
    elif [name for name in ours if name in theirs] != list(theirs):
        yield "the order of slots"

    for name, slot in theirs.items():
        a, b = dataclasses.asdict(slot), dataclasses.asdict(ours.get(name, slot))
        grows = ("rows",) if slot.encoding == "vocabulary" else ()
        fields = [f for f in a if a[f] != b[f] and f not in (*_MAY_DIFFER, *grows)]
        yield from (f"slot {name!r} {f} {a[f]!r} there, {b[f]!r} here" for f in fields)


def _restore(
    config: ConfigDict, theirs: ConfigDict, schema: Schema, directory: Path
) -> tuple[checkpoint.Restored, nn.Module]:
    """The state that the other run is evaluated with, what of it is asked for; and its model."""
    where = f"--init_from={directory}"
    progress = Progress.from_json(checkpoint.read_info(directory / "checkpoints")[1])
    if not progress.finished:
        raise UserError(f"{where}: its run has not ended; let the same command of it go on first")
    if differs := [*_differs(theirs, config, "model.drop_type")]:
        remedy = "predictors would change their types, take its options or train afresh"
        raise UserError(f"{where}: another model ({differs[0]}); {remedy}")
    like = config.copy_and_resolve_references()
    like.train.average_epochs = theirs.train.average_epochs
    there = build.make_parts(like, schema)
    state = build.without_scratch(jax.eval_shape(there.init))
    only = {"params", "stats", "average"} | ({"opt_state"} if config.train.init_moments else set())
    state = state.replace(**{name: () for name in ("step", "lr_scale")})
    if not config.train.init_moments:
        state = state.replace(opt_state=())

    try:
        step = progress.kept_step(theirs.train)
        found = checkpoint.restore(directory / "checkpoints", state, step=step, only=only)
    except UserError:
        of_optim = "optim." if config.train.init_moments else "optim.embedding.name"
        differs = [*_differs(theirs, config, "model.", of_optim)]
        if not differs:
            raise
        remedy = "take its options, or train afresh"
        if config.train.init_moments and not any(text.startswith("model.") for text in differs):
            remedy = "take its options, or leave out train.init_moments"
        raise UserError(f"{where}: another model ({'; '.join(differs)}); {remedy}") from None
    build.check_data(directory, found, schema)
    return found, there.module


def _differs(theirs: ConfigDict, ours: ConfigDict, *begins: str) -> Iterator[str]:
    """Options of two runs that differ, but for rates, in words."""
    for path, (there, here) in config_lib.changed(theirs, ours).items():
        if path.startswith(begins) and not path.endswith("learning_rate"):
            yield f"{path} {config_lib.spelled(there)} there, {config_lib.spelled(here)} here"


def _rows(old: Schema, new: Schema, there: Path, here: Path) -> Places:
    """i64[n], i64[n]: rows of the old table, and the rows of the new one with the same meaning."""
    before, now = encode.load_vocabularies(old, there), encode.load_vocabularies(new, here)
    first = dict(zip((slot.name for slot in old.slots), old.offsets.tolist()))
    from_, to = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]

    for slot, offset in zip(new.slots, new.offsets.tolist()):
        if slot.share or slot.name not in first:
            continue
        rows = ids = np.arange(slot.rows)
        if slot.name in before:
            found = now[slot.name].ids(before[slot.name].values)
            rows = np.append(0, 1 + np.flatnonzero(found))
            ids = np.append(0, found[found > 0])
        from_.append(first[slot.name] + rows)
        to.append(offset + ids)
    return np.concatenate(from_), np.concatenate(to)


def _columns(old: nn.Module, new: nn.Module) -> Places:
    """Columns of the old table, and those of the new one with the same meaning."""
    before = {name: i for i, name in enumerate(model_lib.columns(old))}
    pairs = [(before[n], i) for i, n in enumerate(model_lib.columns(new)) if n in before]
    there, here = np.array(pairs, np.int64).T
    return there, here


def _carry(
    parts: Parts,
    old: Schema,
    found: TrainState,
    table: tuple[Places, Places],
    moments: bool,
) -> tuple[TrainState, list[str]]:
    """A fresh state with what the other one has for it; and what stays fresh, in words."""
    state = state_lib.fetch(parts.init())
    params, stats = found.params, found.stats
    if found.average and not state.average:
        params, stats = found.average["params"], found.average["stats"]
    given = {"params": params, "stats": stats}
    if state.average:
        given["average"] = found.average or {"params": params, "stats": stats}
    if moments:
        given["opt_state"] = found.opt_state

    grown = _grown(old, parts)
    fresh: list[str] = []
    taken = {}
    for name, tree in given.items():
        there, _ = checkpoint.flatten(tree)
        here, structure = checkpoint.flatten(getattr(state, name))
        leaves = []
        for path, leaf in here.items():
            is_table = path.removeprefix("params/").startswith("embedding")
            by_row = is_table and state_lib.is_by_row(leaf, parts.schema.num_rows)
            of = table if by_row else None
            carried = _array(leaf, there.get(path), grown, of)
            leaves.append(leaf if carried is None else carried)
            if carried is None and name != "opt_state":
                fresh.append(f"{name}/{path} {list(leaf.shape)}, {_shape(there.get(path))} there")
        taken[name] = jax.tree_util.tree_unflatten(structure, leaves)
    if moments:
        taken["opt_state"] = _schedules_anew(state.opt_state, taken["opt_state"])
    return state.replace(**taken), fresh


def _grown(old: Schema, parts: Parts) -> list[tuple[int, int]]:
    """How many types, and how many predictors, there were and are; empty if none came."""
    before, now = old.num_types, parts.schema.num_types
    if not 0 < before < now:
        return []
    without = 1 if getattr(parts.module, "drop_type", -1) >= 0 else 0
    return [(before, now), (before - without, now - without)]


def _schedules_anew(fresh: Any, carried: Any) -> Any:
    """The state of the optimizers as it was carried over, but for the steps of their schedules."""
    is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)
    choose = lambda a, b: a if is_schedule(a) else b
    return jax.tree.map(choose, fresh, carried, is_leaf=is_schedule)


def _shape(array: np.ndarray | None) -> str:
    return "none" if array is None else str(list(array.shape))


def _array(
    fresh: np.ndarray,
    there: np.ndarray | None,
    grown: Sequence[tuple[int, int]],
    table: tuple[Places, Places] | None,
) -> np.ndarray | None:
    """An array of the new run with what the other has for it; None if it has nothing.

    Args:
      fresh: of the new run.
      there: of the other run, if it has one.
      grown: as `_grown` gives it.
      table: as `_rows` and `_columns` give them, of a table or its moments; else None.
    """
    if there is None or fresh.ndim != there.ndim:
        return None
    if table is not None:
        found = fresh.copy()
        (of_old, of_new), columns = table
        if fresh.ndim == 1:
            found[of_new] = there[of_old]
        else:  # columns, of which a new type brings some
            found[np.ix_(of_new, columns[1])] = there[np.ix_(of_old, columns[0])]
        return found
    if fresh.shape == there.shape:
        return there

    # Types come behind those that there were.
    differ = {(a, b) for a, b in zip(there.shape, fresh.shape) if a != b}
    if any(differ == {pair} for pair in grown):
        found = fresh.copy()
        found[tuple(slice(size) for size in there.shape)] = there
        return found
    return None

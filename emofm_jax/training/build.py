"""From a config to the parts of a run, and from a workdir to its state."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from emofm_jax.data.placing import Layout
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.evaluation import run_report
from emofm_jax.models import build as model_lib
from emofm_jax.training import checkpoint, optim
from emofm_jax.training import state as state_lib
from emofm_jax.training import step as step_lib
from emofm_jax.training.progress import Progress
from emofm_jax.training.state import SECTIONS, TrainState

# Parts, each with what it has compiled, that a process keeps for the next run of the same shapes.
_KEPT = 4
_SIZES = ("batch_size", "eval_batch_size")  # rows over all devices
_ALL = 1 << 31  # rows that a device may ask of another one: as many as it needs


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run, made once and handed on; nothing is compiled before it is called."""

    devices: list[jax.Device]  # of this process
    num_devices: int  # of all processes
    schema: Schema
    layout: Layout | None  # of the table over several devices
    scoring_layout: Layout | None  # the same, for a batch of evaluation
    module: nn.Module
    key: jax.Array  # of the run's seed
    init: Callable  # init() -> TrainState with the table in the order of its rows
    begin: Callable  # begin() -> TrainState as the steps take it
    train_step: Callable  # see `step.make_train_step`
    eval_step: Callable  # see `step.make_eval_step`
    num_steps: int  # of the whole run
    start: TrainState | None = None  # on the host, where the run starts from another (`start`)


def make_parts(
    config: ConfigDict, schema: Schema, num_steps: int = 1, num_devices: int = 0
) -> Parts:
    """Builds model, optimizers and steps of a config.

    Runs of one process that differ in nothing that was compiled (seed, paths, epochs unless a
    schedule ends with them) share the steps.

    Args:
      config: validated.
      schema: of the data.
      num_steps: of the whole run, where a cosine ends; evaluation asks for none.
      num_devices: for a plan, of devices that need not be here; 0: those of all processes.

    Raises:
      UserError: a model that does not fit the data; a batch that the devices do not divide, or
        that has too few rows for its members; no device.
    """
    devices, count = state_lib.local(), num_devices or state_lib.num_devices()
    _check_batch(config, count)
    model, sections = FrozenConfigDict(config.model), FrozenConfigDict(config.optim)
    ends = any(sections[key].schedule == "cosine" for key in SECTIONS)
    layout = None
    if count > 1:
        layout = Layout(schema, count, config.data.exchange_rows)
    network = (schema, model, config.compute_dtype, layout)
    module, eval_step = _make_evaluation(*network)
    decay = _average_decay(config, schema)
    how = (num_steps if ends else 0, decay, keep_rate_of(config, schema))
    init, begin, train_step = _make_training(*network, sections, *how)
    key = jax.random.key(config.seed)
    return Parts(
        devices=devices,
        num_devices=count,
        schema=schema,
        layout=layout,
        scoring_layout=layout
        and layout.scaled(config.data.eval_batch_size, of=config.data.batch_size),
        module=module,
        key=key,
        init=functools.partial(init, key),
        begin=functools.partial(begin, key),
        train_step=train_step,
        eval_step=eval_step,
        num_steps=num_steps,
    )


def _check_batch(config, count):
    """Raises a UserError unless each of the devices has whole rows, and rows for all members."""
    for field in _SIZES:
        if config.data[field] % count:
            raise UserError(
                f"config.data.{field}: {config.data[field]} rows do not divide over "
                f"{count} devices; choose a multiple of {count}"
            )
    rows, members = config.data.batch_size // count, config.model.members
    if config.model.members_rows == "split" and rows < members:
        raise UserError(
            f"config.model.members_rows: 'split' gives each of {members} members a share of a "
            f"device's rows of a batch, which are {rows}; choose all, or a larger "
            "config.data.batch_size"
        )


def for_evaluation(config: ConfigDict) -> ConfigDict:
    """The config of a run for the devices here, which may be others than it was trained on.

    They divide its batches; where it says what they may ask of each other, they may ask all. Every
    member scores every row.
    """
    here, count = config.copy_and_resolve_references(), state_lib.num_devices()
    here.model.members_rows = "all"
    here.data.exchange_rows = _ALL if config.data.exchange_rows else 0
    for field in _SIZES:
        here.data[field] = -(-here.data[field] // count) * count
    return here


# What is cached is decided by the arguments, but for the shape of a batch.
@functools.lru_cache(maxsize=_KEPT)
def _make_evaluation(
    schema: Schema, model: FrozenConfigDict, compute_dtype: str, layout: Layout | None
) -> tuple:
    """(module, evaluation step)."""
    module = model_lib.make_model(schema, model.to_dict(), compute_dtype=compute_dtype)
    return module, step_lib.make_eval_step(module, schema, layout=layout)


@functools.lru_cache(maxsize=_KEPT)
def _make_training(
    schema: Schema,
    model: FrozenConfigDict,
    dtype: str,
    layout: Layout | None,
    sections: FrozenConfigDict,
    num_steps: int,
    decay: float,
    keep_rate: float,
) -> tuple:
    """(init, begin, train step)."""
    module, _ = _make_evaluation(schema, model, dtype, layout)
    optimizers = {key: optim.make_optimizer(sections[key], num_steps) for key in SECTIONS}
    how = {"init_scale": model.init_scale, "averaged": decay > 0}
    init = state_lib.make_init(module, schema, optimizers, **how)
    begin = state_lib.make_init(module, schema, optimizers, **how, layout=layout)
    options = step_lib.Options(
        updates=sections.embedding.updates,
        embedding_l2=_table_l2(module, sections.embedding, schema),
        network_l2=sections.network.l2,
        clip=sections.clip,
        clip_norm=sections.clip_norm,
        am_weight=model.am_weight,
        drop_type=model_lib.dropped_type(schema, model.to_dict()),
        keep_rate=keep_rate,
        average=decay,
    )
    step = step_lib.make_train_step(module, schema, optimizers, options, layout=layout)
    return init, begin, step


def keep_rate_of(config: ConfigDict, schema: Schema) -> float:
    """Share of the rows without a click that were kept, where it is undone in the logit; else 1."""
    return schema.keep_rate if config.train.sampling_correction == "logit" else 1.0


def _average_decay(config: ConfigDict, schema: Schema) -> float:
    """Decay a step of the moving averages, from their length in epochs; 0 = none are kept."""
    if not (epochs := config.train.average_epochs):
        return 0.0
    rows = _train_rows(schema, f"config.train.average_epochs: {epochs}")
    return math.exp(-config.data.batch_size / (epochs * rows))


def _table_l2(module: nn.Module, section, schema: Schema) -> float | tuple[float, ...]:
    """L2 of the table: one number, or one for each column."""
    l2, own = section.l2, section.first_order_l2
    if section.l2_rows and section.updates == "dense":
        rows = _train_rows(schema, f"config.optim.embedding.l2_rows: {section.l2_rows}")
        l2 += section.l2_rows / rows
    if own < 0 or own == l2:
        return l2
    return tuple(np.where(model_lib.first_order(module), own, l2).tolist())


def _train_rows(schema: Schema, what: str) -> int:
    """Rows of the train split, which `what` needs."""
    if not (rows := sum(schema.rows_per_type or ())):
        raise UserError(
            f"{what} needs the number of train rows, which these data do not say; prepare them "
            "again, or choose 0"
        )
    return rows


def without_scratch(state: TrainState) -> TrainState:
    """The state as checkpoints hold it: without scratch, and the key, which the seed gives."""
    return state.replace(owner=(), key=())


def saved(state: TrainState, parts: Parts) -> TrainState:
    """`without_scratch`; of a table over several devices, the shares of this process."""
    kept = without_scratch(state)
    if parts.layout is None:
        return kept
    return state_lib.shares(kept, parts.layout, parts.devices)


def restore(workdir: Path, parts: Parts, step: int | None = None) -> tuple[TrainState, Progress]:
    """The state of a checkpoint, by default the newest whole one.

    Raises:
      UserError: no checkpoint, or none that is whole and of this model and data.
    """
    whole = jax.eval_shape(parts.init)
    like = without_scratch(whole)
    if parts.layout is not None:
        like = state_lib.like_shares(like, parts.layout, parts.devices)
    found = checkpoint.restore(workdir / "checkpoints", like, step=step)
    check_data(workdir, found, parts.schema)

    # The key is a copy: steps delete the arrays of the state they get.
    key = np.array(jax.random.key_data(parts.key))
    state = found.state.replace(key=key)
    if parts.layout is None:
        state = state_lib.put_state(state, parts.devices)
    else:
        state = state_lib.put_shares(state, parts.devices)
    return state.replace(owner=_scratch(parts)), Progress.from_json(found.info)


def _scratch(parts: Parts) -> jax.Array:
    """`TrainState.owner`, which holds nothing."""
    if parts.layout is None:
        return state_lib.put_state(np.zeros(parts.schema.num_rows, np.int32), parts.devices)
    shape = (len(parts.devices), parts.layout.rows)
    return state_lib.put_batch(np.zeros(shape, np.int32), parts.devices)


def put(state: TrainState, parts: Parts) -> TrainState:
    """Sends a state on the host, its table in the order of its rows, to where the steps take it."""
    if parts.layout is None:
        return state_lib.put_state(state, parts.devices)
    spread = state_lib.spread(state, parts.layout, parts.devices)
    return state_lib.put_shares(spread, parts.devices)


def check_data(workdir: Path, found: checkpoint.Restored, schema: Schema) -> None:
    """Raises UserError if a checkpoint was trained on other data than a schema names."""
    for key, what, ours in (
        ("schema", "fingerprint", schema.fingerprint()),
        ("data", "preparation", schema.identity),
    ):
        theirs = found.info.get(key)
        if theirs and ours and theirs != ours:
            place = workdir / "checkpoints" / f"step_{found.step}"
            raise UserError(
                f"{workdir / 'schema.json'}: not the schema that {place} was trained on "
                f"({what} {ours} against {theirs}); use the files of one run"
            )


def restore_or_init(workdir: Path, parts: Parts) -> tuple[TrainState, Progress]:
    """The newest checkpoint, or the start."""
    if checkpoint.latest(workdir / "checkpoints") is None:
        if parts.start is not None:
            return put(parts.start, parts), Progress()
        return parts.begin(), Progress()
    return restore(workdir, parts)


def restore_kept(config: ConfigDict, workdir: Path, parts: Parts) -> tuple[TrainState, Progress]:
    """The state that evaluate and predict use (evaluation/monitor.py), with its intercept."""
    progress = Progress.from_json(checkpoint.read_info(workdir / "checkpoints")[1])
    kept, value = progress.kept_step(config.train), None
    if config.train.intercept_rows:
        value = run_report.intercept_of(workdir, kept, fitted=progress.finished)
    state, progress = restore(workdir, parts, kept)
    return state if value is None else state.with_intercept(value, parts.devices), progress

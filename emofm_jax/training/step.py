"""One training step under pmap, whose cost follows the batch and not the table (docs/model.md).

    e = table[ids] -> loss -> gradients of occurrences and network -> each row once -> optax

The only file with pmap and collectives: one axis, "data"; every device has b of the B rows and the
whole network, whose gradients are summed over the devices: each differentiates its local weighted
sum over the global weight. Of the table each of several devices has R rows (data/placing.py): it
asks the others for those of its batch, and sends them the gradients back, equal rows summed:

    rows = all_to_all(table[all_to_all(send)]) -> gradient of rows -> all_to_all -> each row once

`lazy` moves the rows of the batch only: moments of other rows do not decay, and L2 and weight decay
reach the batch's rows. `dense` moves every row in every step, as a framework without sparse
gradients does. Gradients are clipped by norm after equal rows were summed. L2 of the network (all
of it, biases too, as in FuxiCTR) and of a dense table is part of what is clipped; L2 of lazy rows
is added after, since it would need another pass over the rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from flax import linen as nn

from emofm_jax.data.placing import Layout
from emofm_jax.data.schema import Schema
from emofm_jax.models import build as model_lib
from emofm_jax.nn import averaging, embedding, losses, typewise
from emofm_jax.training import compilation, sparse
from emofm_jax.training import state as state_lib
from emofm_jax.training.state import AXIS, Devices, Optimizers, PlacedBatch, TrainState

# What `metrics["nonfinite"]` - 1 names.
NONFINITE = ("loss", "gradient of the embedding table", "gradient of the network")


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides a step beside network, data and optimizers."""

    updates: str = "lazy"  # of the table: lazy | dense
    # l2 * parameter is added to the gradient; of the table one number, or one a column
    embedding_l2: float | tuple[float, ...] = 0.0
    network_l2: float = 0.0
    clip: str = "none"  # none | group (table and network apart) | global (together)
    clip_norm: float = 10.0  # norm of the gradient that is not exceeded
    am_weight: float = 1.0  # of the auxiliary model's loss
    drop_type: int = -1  # index of the type that has no predictor; -1 for none
    # share of the rows without a click that were kept, undone in the logit; 1: all, or by weights
    keep_rate: float = 1.0
    # rows that are updated at a time (lazy), 0: all in one pass; None: what suits the devices
    chunk: int | None = None
    average: float = 0.0  # decay a step of the moving averages; 0 = none are kept

    def __post_init__(self):
        choices = {"updates": ("lazy", "dense"), "clip": ("none", "group", "global")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {known}")


class Gradients(NamedTuple):
    """What a batch gives; all but `outputs` is the same on every device."""

    loss: jax.Array  # f32[], what is minimised, L2 apart
    sums: dict  # {name: f32[]} of `losses.total`, and the weights that belong to them
    outputs: losses.Outputs  # of the model, for the device's own b rows
    stats: dict  # batch statistics of the network after this batch
    ids: jax.Array  # i32[M], table row of each occurrence on any device
    occurrences: jax.Array  # f32[M, D], gradient of each
    network: Any  # tree, gradient of the network


class StepMetrics(flax.struct.PyTreeNode):
    """What a step tells, in as few arrays as can be: each costs the host time, in every step.

    `metrics["loss"]` is one of `scalars`, which are the same on every device: the sums of
    `losses.total` over the step's rows with the weights that belong to them (`logloss_sum` and
    `weight_sum`; typed models: `am_sum` and `am_weight_sum`); `loss`, what was minimised, L2 apart;
    `embedding_norm` and `network_norm` of gradients before clipping (lazy: without L2 of the
    table); `num_rows`, distinct table rows of the batch (lazy); `nonfinite`, 0 or 1 + index into
    NONFINITE; with several processes `stop`, how many devices are of one that was asked to.
    """

    p: jax.Array  # f32[P, b], of the process's own rows: what the row's loss was taken of
    scalars: jax.Array  # f32[P, K]; counts are exact up to 2^24
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)  # K of them

    def __getitem__(self, name: str) -> Any:
        return self.scalars[..., self.names.index(name)]

    def as_dict(self) -> dict[str, Any]:
        """`p` and the scalars, f32[P], by name."""
        return {"p": self.p, **{name: self[name] for name in self.names}}


def make_train_step(
    module: nn.Module,
    schema: Schema,
    optimizers: Optimizers,
    options: Options = Options(),
    devices: Devices = None,
    layout: Layout | None = None,
) -> Callable[[TrainState, PlacedBatch], tuple[TrainState, StepMetrics]]:
    """Makes `step(state, batch) -> (state, metrics)`; the state that goes in is gone afterwards.

    Args:
      module: the network.
      schema: of the batches.
      optimizers: row-wise transformations (training/optim.py).
      options: of the step.
      devices: P of them; by default all, of all processes.
      layout: of the table over several devices; the state is as `state.spread` gives it, and
        batches have a plan. None: each device has the whole table.

    Returns:
      The pmapped step, its state donated, for batches placed by `put_batch`.
    """
    module = model_lib.with_axis(module, AXIS)
    if options.chunk is None:
        platform = state_lib.local(devices)[0].platform
        options = dataclasses.replace(options, chunk=sparse.chunk_for(platform))
    lazy, is_spread = options.updates == "lazy", layout is not None

    def step(state: TrainState, batch: PlacedBatch) -> tuple[TrainState, StepMetrics]:
        found = gradients(module, schema, options, state, batch, is_spread)
        rows = sum_rows(options, state, found)
        grads = sparse.add_l2(found.network, state.params["network"], options.network_l2)
        norms = {"embedding": _norm(rows.grads), "network": _norm(grads)}
        num_rows = rows.num_rows
        if is_spread:  # each has some of them
            squares, num_rows = jax.lax.psum((norms["embedding"] ** 2, num_rows), AXIS)
            norms["embedding"] = jnp.sqrt(squares)
        factors = _clipping(norms, options)

        network, network_state = move_dense(optimizers, state, "network", grads, factors)
        if lazy:
            table, table_state = move_lazy(optimizers, options, state, rows, factors)
        else:
            table, table_state = move_dense(optimizers, state, "embedding", rows.grads, factors)

        metrics = _metrics(found, batch, norms, num_rows, options.drop_type)
        state = state.replace(
            step=state.step + 1,
            params={"embedding": table, "network": network},
            opt_state={"embedding": table_state, "network": network_state},
            stats=found.stats,
            owner=rows.owner,
        )
        return move_average(state, options.average), metrics

    if layout is None:
        axes: dict[str, Any] = {"in_axes": (None, 0), "out_axes": (None, 0)}
        return _pmapped(step, devices, donate_argnums=0, **axes)
    averaged = options.average > 0
    of_state = state_lib.axes(optimizers["embedding"], layout.schema.num_rows, averaged)
    return _pmapped_parts(step, devices, of_state)


def _pmapped_parts(step: Callable, devices: Devices, of_state: TrainState) -> Any:
    """`step` on every device of AXIS, its state donated, of which each leaf has its own axis.

    Over several processes the axes of what comes out must have a hash: tuples have, dicts do not.
    """
    is_none = lambda x: x is None

    def is_row(state: TrainState) -> list[bool]:
        spread = lambda axis, part: jax.tree.map(lambda _: axis is not None, part)
        return jax.tree.leaves(jax.tree.map(spread, of_state, state, is_leaf=is_none))

    def parted(state: TrainState, batch: PlacedBatch) -> tuple:
        state, metrics = step(state, batch)
        pairs = [*zip(jax.tree.leaves(state), is_row(state))]
        rows, rest = ([x for x, row in pairs if row is wanted] for wanted in (True, False))
        return rows, rest, metrics

    axes: dict[str, Any] = {"in_axes": (of_state, 0), "out_axes": (0, None, 0)}
    mapped = _pmapped(parted, devices, donate_argnums=0, **axes)

    def call(state: TrainState, batch: PlacedBatch) -> tuple[TrainState, StepMetrics]:
        structure, which = jax.tree.structure(state), is_row(state)
        *parts, metrics = mapped(state, batch)
        rows, rest = (iter(part) for part in parts)
        leaves = [next(rows if row else rest) for row in which]
        return jax.tree.unflatten(structure, leaves), metrics

    call.lower = mapped.lower  # type: ignore[attr-defined]
    return call


def gradients(
    module: nn.Module,
    schema: Schema,
    options: Options,
    state: TrainState,
    batch: PlacedBatch,
    is_spread: bool = False,
) -> Gradients:
    """Differentiates the loss of a batch, each device of AXIS for its own rows, b of the B.

    `is_spread`: the table is, over the devices; each then has the gradients of its own rows.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    ftype, weight, drop_type = batch.ftype, batch.weight, options.drop_type
    layout = (schema.slot_widths, schema.vectors)
    labelled = (batch.label, ftype, weight)
    how: dict[str, Any] = {"drop_type": drop_type, "keep_rate": options.keep_rate}
    denominators = losses.denominators(*labelled, AXIS, **how)

    def loss_fn(occurrences, network):
        if is_spread:
            occurrences = _placed(occurrences, batch, schema)
        e = embedding.embed(occurrences, batch.ids, batch.value, *layout)
        variables = {"params": network, "batch_stats": state.stats}
        training: dict[str, Any] = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        outputs, updated = module.apply(variables, e, weight, train=True, **training)

        of_loss = how | {"am_weight": options.am_weight, "denominators": denominators}
        loss, sums = losses.total(outputs, *labelled, **of_loss)
        sums |= _weights(batch, drop_type)
        return loss, (sums, outputs, updated.get("batch_stats", {}))

    table = state.params["embedding"]
    if is_spread:
        rows, occurrences = _ask(table, batch.plan.send)
    else:
        rows, occurrences = embedding.read(table, batch.ids, schema.vectors)
    differentiate = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
    (loss, (sums, outputs, stats)), grads = differentiate(occurrences, state.params["network"])

    # Of the network the sum over the devices; of the table all occurrences, for every device, or
    # those that the others have of a device's rows, which come back as they were sent.
    loss, sums, network = _sum_over_devices((loss, sums, grads[1]))
    ids = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(rows)])
    of_ids = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in jax.tree.leaves(grads[0])])
    if is_spread:
        of_ids = _exchange(of_ids)
    elif jax.lax.axis_size(AXIS) > 1:
        ids, of_ids = jax.lax.all_gather((ids, of_ids), AXIS, tiled=True)
    return Gradients(loss, sums, outputs, stats, ids, of_ids, network)


def _ask(table: jax.Array, send: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows that others ask of this device i32[P * C], and those f32[P * C, D] that it asked for.

    Args:
      table: f32[R, D], of this device.
      send: i32[P, C], of `placing.Plan`.
    """
    wanted = _exchange(send.reshape(-1))
    return wanted, _exchange(embedding.lookup(table, wanted))


def _exchange(array: jax.Array) -> jax.Array:
    """[P * C, ...], the i-th C of them for device i -> those that device i had for this one."""
    return jax.lax.all_to_all(array, AXIS, split_axis=0, concat_axis=0, tiled=True)


def _placed(rows: jax.Array, batch: PlacedBatch, schema: Schema) -> Any:
    """Occurrences as `embedding.read` has them, from the rows f32[P * C, D] that came."""
    flat = embedding.lookup(rows, batch.plan.place)
    return embedding.split(flat, batch.ids, schema.vectors)


def _sum_over_devices(tree: Any) -> Any:
    """Sums a tree of f32 over the devices, as one array: between processes each array costs."""
    if jax.lax.axis_size(AXIS) == 1:
        return jax.lax.psum(tree, AXIS)
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.psum(flat, AXIS))


def sum_rows(options: Options, state: TrainState, found: Gradients) -> sparse.RowGradients:
    """Sums the gradients of a row: lazy of the rows that occur; dense of all, with L2."""
    if options.updates == "lazy":
        assert options.chunk is not None  # `make_train_step` has chosen
        return sparse.sum_rows(found.ids, found.occurrences, state.owner, options.chunk)
    table = state.params["embedding"]
    grads = jnp.zeros_like(table).at[found.ids].add(found.occurrences, mode="drop")
    grads = sparse.add_l2(grads, table, options.embedding_l2)
    return sparse.RowGradients(None, grads, jnp.zeros((), jnp.int32), state.owner)


def move_lazy(
    optimizers: Optimizers,
    options: Options,
    state: TrainState,
    rows: sparse.RowGradients,
    factors: Mapping[str, jax.Array],
) -> tuple[jax.Array, optax.OptState]:
    """Clips and applies the gradient of the rows that occur: (table, optimizer state)."""
    assert options.chunk is not None
    return sparse.update_rows(
        optimizers["embedding"],
        state.params["embedding"],
        state.opt_state["embedding"],
        rows,
        clip_factor=factors["embedding"],
        lr_scale=state.lr_scale["embedding"],
        l2=options.embedding_l2,
        chunk=options.chunk,
    )


def move_dense(
    optimizers: Optimizers,
    state: TrainState,
    section: str,
    grads: Any,
    factors: Mapping[str, jax.Array],
) -> tuple[Any, optax.OptState]:
    """Clips and applies the gradient of a section as a whole: (parameters, optimizer state)."""
    params, scale = state.params[section], state.lr_scale[section]
    grads = jax.tree.map(lambda g: factors[section] * g, grads)
    updates, opt_state = optimizers[section].update(grads, state.opt_state[section], params)
    return jax.tree.map(lambda p, u: p + scale * u, params, updates), opt_state


def move_average(state: TrainState, decay: float) -> TrainState:
    """Moves the averages to the state's parameters and batch statistics by 1 - d.

    d = min(decay, t / (t + 9)) after step t: early averages are of few steps, and the start, which
    is random, is forgotten at once.
    """
    if not decay:
        return state
    t = state.step.astype(jnp.float32)
    kept = jnp.minimum(decay, t / (t + 9.0))
    now = {"params": state.params, "stats": state.stats}
    average = jax.tree.map(lambda a, x: kept * a + (1.0 - kept) * x, state.average, now)
    return state.replace(average=average)


def make_eval_step(
    module: nn.Module, schema: Schema, *, devices: Devices = None, layout: Layout | None = None
) -> Callable[[dict, dict, PlacedBatch], dict]:
    """Makes `predict(params, stats, batch) -> {"p": f32[P, b], ...}`, see models/build.py.

    The batch has the rows of the process's own devices, the scores are those of all devices.
    """
    shared = devices is None and jax.process_count() > 1

    def predict(params: dict, stats: dict, batch: PlacedBatch) -> dict:
        if layout is None:
            _, found = embedding.read(params["embedding"], batch.ids, schema.vectors)
        else:
            _, rows = _ask(params["embedding"], batch.plan.send)
            found = _placed(rows, batch, schema)
        e = embedding.embed(found, batch.ids, batch.value, schema.slot_widths, schema.vectors)
        variables = {"params": params["network"], "batch_stats": stats}
        scores = model_lib.predict(module, variables, e)
        return jax.lax.all_gather(scores, AXIS) if shared else scores

    of_params = None if layout is None else {"embedding": 0, "network": None}
    axes: dict[str, Any] = {"in_axes": (of_params, None, 0), "out_axes": None if shared else 0}
    return _pmapped(predict, devices, **axes)


def _pmapped(function: Callable, devices: Devices, **axes) -> Any:
    """The function on every device of AXIS: on those named, or on all of all processes."""
    local = state_lib.local(devices)
    # With several processes, naming the local ones would train a model in each.
    chosen = None if devices is None and jax.process_count() > 1 else local
    return compilation.pmapped(jax.pmap(function, axis_name=AXIS, devices=chosen, **axes), local)


def _metrics(
    found: Gradients, batch: PlacedBatch, norms: Mapping, num_rows: jax.Array, drop_type: int
) -> StepMetrics:
    quantities = (found.loss, norms["embedding"], norms["network"])  # as in NONFINITE
    finite = jnp.stack([jnp.isfinite(x) for x in quantities])
    asked = {} if batch.stop is None else {"stop": jax.lax.psum(batch.stop, AXIS)}
    scalars = {
        **found.sums,
        **asked,
        "loss": found.loss,
        "embedding_norm": norms["embedding"],
        "network_norm": norms["network"],
        "num_rows": num_rows,
        "nonfinite": jnp.where(jnp.all(finite), 0, 1 + jnp.argmin(finite)),
    }
    stacked = jnp.stack([jnp.asarray(x, jnp.float32) for x in scalars.values()])
    return StepMetrics(_seen_p(found.outputs, batch.ftype, drop_type), stacked, tuple(scalars))


def _weights(batch: PlacedBatch, drop_type: int) -> dict:
    """Weights of the local rows that are in L_ctr, and in L_am."""
    scored = (batch.ftype != drop_type) | (batch.ftype < 0)
    sums = {"weight_sum": scored, "am_weight_sum": batch.ftype >= 0}
    return {name: jnp.sum(jnp.where(rows, batch.weight, 0.0)) for name, rows in sums.items()}


def _seen_p(outputs: losses.Outputs, ftype: jax.Array, drop_type: int) -> jax.Array:
    """Returns p f32[B] by the predictor of the row's type, by the mixture where that is unknown."""
    logits = [_seen_logit(of_one, ftype, drop_type) for of_one in losses.members(outputs)]
    scores = [{"p": jax.nn.sigmoid(logit), "logit": logit} for logit in logits]
    return averaging.of_members(scores)["p"]


def _seen_logit(outputs: losses.Outputs, ftype: jax.Array, drop_type: int) -> jax.Array:
    if outputs.type_logits is None:
        return outputs.logits
    ours = jax.nn.one_hot(ftype, outputs.logits.shape[1], dtype=bool)
    logit = jnp.sum(jnp.where(ours, outputs.logits, 0.0), axis=1)
    mixture = typewise.mixture(outputs.logits, outputs.type_logits, drop_type)
    return jnp.where(ftype >= 0, logit, mixture.logit)


def _norm(tree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def _clipping(norms: Mapping[str, jax.Array], options: Options) -> dict[str, jax.Array]:
    """Factors that bring each norm (group), or that of both (global), to at most `clip_norm`."""
    if options.clip == "none":
        return {key: jnp.ones((), jnp.float32) for key in norms}
    if options.clip == "global":
        norms = dict.fromkeys(norms, _norm(norms))
    most = options.clip_norm
    return {key: jnp.where(norm > most, most / norm, 1.0) for key, norm in norms.items()}

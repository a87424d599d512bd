"""One training step under pmap, whose cost follows the batch and not the table (docs/model.md).

    e = table[ids] -> loss -> gradients of occurrences and network -> rows that occur, each once -> optax on those

The only file with pmap and collectives: one axis, "data"; every device holds the whole state and b of the B rows.
Each device differentiates its local weighted sum over the global weight; network gradients are summed over the
devices, occurrences and their gradients gathered, so that all replicas take the same step.

`lazy` moves the rows of the batch only: moments of other rows do not decay, and L2 and weight decay reach the
batch's rows. `dense` moves every row in every step, as a framework without sparse gradients does. Gradients are
clipped by norm after equal rows were summed; L2 of the network (all of it, biases too, as in FuxiCTR) and of a
dense table is part of what is clipped, L2 of lazy rows is added after (it would need another pass over the rows).
"""

from collections.abc import Callable, Mapping, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from emofm_jax.data.batches import Batch
from emofm_jax.data.schema import Schema
from emofm_jax.models import build as model_lib
from emofm_jax.nn import embedding, losses, typewise
from emofm_jax.training import compilation, sparse

AXIS = "data"
SECTIONS = ("embedding", "network")  # keys of params, opt_state and lr_scale
# What `metrics["nonfinite"]` - 1 names.
NONFINITE = ("loss", "gradient of the embedding table", "gradient of the network")


class TrainState(flax.struct.PyTreeNode):
    """All that training changes; the same on every device.

    Attributes:
      step: i32[], steps taken.
      params: {"embedding": f32[V, D + extra], "network": tree}.
      opt_state: the same keys.
      stats: batch statistics of the network, may be empty.
      owner: i32[V], scratch of the sparse step; holds nothing from step to step.
      lr_scale: {"embedding": f32[], "network": f32[]}, factors on the updates (schedule=plateau).
      key: u32[2], of dropout; here, so that one compiled step serves every seed. Not checkpointed.
    """

    step: jax.Array
    params: dict
    opt_state: dict
    stats: dict
    owner: jax.Array
    lr_scale: dict
    key: jax.Array


def make_init(
    module: nn.Module,
    schema: Schema,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    table_width: int,
    init_scale: float,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[jax.Array], TrainState]:
    """Makes `init(key) -> state`, on the devices, without a copy of the table on the host; dropout has the key too.

    Args:
      module: the network.
      schema: of the data; it lays out the table.
      optimizers: {"embedding", "network"}.
      table_width: columns of the table, D and a model's extra ones.
      init_scale: standard deviation of the table.
      devices: that hold the replicas; by default all local ones.
    """

    def init(key):
        table_key, network_key = jax.random.split(key)
        variables = model_lib.init(module, network_key, schema)
        table = embedding.init_table(
            table_key, schema.offsets, schema.num_rows, table_width, init_scale
        )
        params = {"embedding": table, "network": variables["params"]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={k: optimizers[k].init(params[k]) for k in SECTIONS},
            stats=variables.get("batch_stats", {}),
            owner=jnp.zeros(schema.num_rows, jnp.int32),
            lr_scale={k: jnp.ones((), jnp.float32) for k in SECTIONS},
            key=jax.random.key_data(key),
        )

    return jax.jit(init, out_shardings=_sharding(devices, replicated=True))


def put_state(state: TrainState, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Copies a state (of the host, or of other devices) to every device; on CPU it may share the host's memory."""
    return jax.device_put(state, _sharding(devices, replicated=True))


def put_batch(batch: Batch, devices: Sequence[jax.Device] | None = None) -> Batch:
    """Sends a host batch, arrays [P, b, ...], to its P devices; its arrays must not change afterwards."""
    return jax.device_put(batch, _sharding(devices, replicated=False))


def fetch(tree):
    """Copies arrays of the devices to the host as numpy arrays of their own; waits until they are computed."""
    # A view would outlive the call on CPU, and a state of which a view exists is copied instead of donated.
    return jax.tree.map(lambda array: np.array(array, copy=True), jax.device_get(tree))


def make_train_step(
    module: nn.Module,
    schema: Schema,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    updates: str = "lazy",
    l2: Mapping[str, float] | None = None,
    clip: str = "none",
    clip_norm: float = 10.0,
    am_weight: float = 1.0,
    drop_type: int = -1,
    devices: Sequence[jax.Device] | None = None,
    chunk: int = sparse.CHUNK,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict]]:
    """Makes `step(state, batch) -> (state, metrics)`; the state that goes in is donated, so it is gone afterwards.

    Args:
      module: the network.
      schema: of the batches.
      optimizers: {"embedding", "network"}: row-wise transformations (training/optim.py).
      updates: `lazy` or `dense`.
      l2: {"embedding", "network"}: l2 * parameter is added to the gradient; by default none.
      clip: by gradient norm: `none`, `group` (table and network apart), `global` (together).
      clip_norm: the norm that is not exceeded.
      am_weight: weight of the auxiliary model's loss.
      drop_type: index of the type that has no predictor, -1 for none.
      devices: P of them; by default all local ones.
      chunk: rows that are updated at a time (lazy).

    Returns:
      The pmapped step, batches placed by `put_batch`. Every entry of `metrics` has a leading device axis: the sums
      of `losses.total` over the step's rows with the weights that belong to them (`logloss_sum` and `weight_sum`;
      typed models: `am_sum` and `am_weight_sum`), `loss` (what was minimised, L2 apart), `embedding_norm` and
      `network_norm` (of gradients before clipping; lazy: without L2 of the table), `num_rows` (distinct table rows
      of the batch; lazy), `nonfinite` (i32: 0, or 1 + index into NONFINITE), the same on every device; and per
      row `p`, `label`, `weight` f32[P, b], p being what the row's loss was taken of.
    """
    for name, value, known in (
        ("updates", updates, ("lazy", "dense")),
        ("clip", clip, ("none", "group", "global")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is none of {known}")
    l2 = l2 or dict.fromkeys(SECTIONS, 0.0)
    module = model_lib.with_axis(module, AXIS)
    many = len(_devices(devices)) * jax.process_count() > 1

    def step(state: TrainState, batch: Batch):
        table = state.params["embedding"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        denominators = losses.denominators(batch.ftype, batch.weight, AXIS, drop_type=drop_type)

        def loss_fn(occurrences, network):
            e = embedding.pool(occurrences, batch.value, schema.slot_widths)
            variables = {"params": network, "batch_stats": state.stats}
            outputs, updated = module.apply(
                variables,
                e,
                batch.weight,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            loss, parts = losses.total(
                outputs,
                batch.label,
                batch.ftype,
                batch.weight,
                am_weight=am_weight,
                drop_type=drop_type,
                denominators=denominators,
            )
            parts |= _weights(batch, drop_type)
            return loss, (parts, outputs, updated.get("batch_stats", {}))

        gradient = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        occurrences = embedding.lookup(table, batch.ids)
        (loss, (parts, outputs, stats)), (grads, network_grads) = gradient(
            occurrences, state.params["network"]
        )
        loss, parts, network_grads = jax.lax.psum((loss, parts, network_grads), AXIS)
        ids, grads = batch.ids.reshape(-1), grads.reshape(-1, grads.shape[-1])
        if many:
            ids, grads = jax.lax.all_gather((ids, grads), AXIS, tiled=True)

        owner = state.owner
        if updates == "lazy":
            rows, grads, num_rows, owner = sparse.sum_rows(ids, grads, owner, chunk)
        else:
            grads = jnp.zeros_like(table).at[ids].add(grads, mode="drop")
            grads, num_rows = sparse.add_l2(grads, table, l2["embedding"]), jnp.zeros((), jnp.int32)
        network_grads = sparse.add_l2(network_grads, state.params["network"], l2["network"])
        norms = {"embedding": _norm(grads), "network": _norm(network_grads)}
        clipping = _clipping(norms, clip, clip_norm)

        network, network_state = _apply(
            optimizers["network"], state, "network", network_grads, clipping
        )
        if updates == "lazy":
            new_table, table_state = sparse.update_rows(
                optimizers["embedding"],
                table,
                state.opt_state["embedding"],
                rows,
                grads,
                num_rows,
                clip_factor=clipping["embedding"],
                lr_scale=state.lr_scale["embedding"],
                l2=l2["embedding"],
                chunk=chunk,
            )
        else:
            new_table, table_state = _apply(
                optimizers["embedding"], state, "embedding", grads, clipping
            )

        finite = jnp.stack([jnp.isfinite(x) for x in (loss, norms["embedding"], norms["network"])])
        metrics = {
            **parts,
            "loss": loss,
            "embedding_norm": norms["embedding"],
            "network_norm": norms["network"],
            "num_rows": num_rows,
            "nonfinite": jnp.where(jnp.all(finite), 0, 1 + jnp.argmin(finite)).astype(jnp.int32),
            "p": _seen_p(outputs, batch.ftype, drop_type),
            "label": batch.label,
            "weight": batch.weight,
        }
        state = state.replace(
            step=state.step + 1,
            params={"embedding": new_table, "network": network},
            opt_state={"embedding": table_state, "network": network_state},
            stats=stats,
            owner=owner,
        )
        return state, metrics

    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, 0),
        donate_argnums=0,
        devices=_devices(devices),
    )
    return compilation.compile_ahead(mapped, _devices(devices))


def make_eval_step(
    module: nn.Module, schema: Schema, *, devices: Sequence[jax.Device] | None = None
) -> Callable[[dict, dict, Batch], dict]:
    """Makes `predict(params, stats, batch) -> {"p": f32[P, b], "logit": ..., ...}`, see `models.predict`."""

    def predict(params: dict, stats: dict, batch: Batch) -> dict:
        e = embedding.pool(
            embedding.lookup(params["embedding"], batch.ids), batch.value, schema.slot_widths
        )
        return model_lib.predict(module, {"params": params["network"], "batch_stats": stats}, e)

    mapped = jax.pmap(predict, axis_name=AXIS, in_axes=(None, None, 0), devices=_devices(devices))
    return compilation.compile_ahead(mapped, _devices(devices))


def _weights(batch: Batch, drop_type: int) -> dict:
    """Weights of the local rows that are in L_ctr, and in L_am."""
    scored = (batch.ftype != drop_type) | (batch.ftype < 0)
    sums = {"weight_sum": scored, "am_weight_sum": batch.ftype >= 0}
    return {name: jnp.sum(jnp.where(rows, batch.weight, 0.0)) for name, rows in sums.items()}


def _seen_p(outputs: losses.Outputs, ftype: jax.Array, drop_type: int) -> jax.Array:
    """f32[B]: p of the predictor of the row's type, of the mixture where that is unknown."""
    if outputs.type_logits is None:
        return jax.nn.sigmoid(outputs.logits)
    ours = jax.nn.one_hot(ftype, outputs.logits.shape[1], dtype=bool)
    logit = jnp.sum(jnp.where(ours, outputs.logits, 0.0), axis=1)
    mixture = typewise.mixture(outputs.logits, outputs.type_logits, drop_type)
    return jax.nn.sigmoid(jnp.where(ftype >= 0, logit, mixture.logit))


def _apply(optimizer, state: TrainState, section: str, grads, clipping: dict):
    """Clips and applies one section as a whole: (parameters, optimizer state)."""
    params = state.params[section]
    grads = jax.tree.map(lambda g: clipping[section] * g, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state[section], params)
    return jax.tree.map(lambda p, u: p + state.lr_scale[section] * u, params, updates), opt_state


def _norm(tree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def _clipping(norms: dict, clip: str, clip_norm: float) -> dict:
    """Factors that bring each norm (`group`), or that of both together (`global`), to at most `clip_norm`."""
    if clip == "none":
        return {key: jnp.ones((), jnp.float32) for key in norms}
    if clip == "global":
        norms = dict.fromkeys(norms, _norm(norms))
    return {key: jnp.where(norm > clip_norm, clip_norm / norm, 1.0) for key, norm in norms.items()}


def _devices(devices: Sequence[jax.Device] | None) -> list:
    return list(jax.local_devices() if devices is None else devices)


def _sharding(devices: Sequence[jax.Device] | None, replicated: bool) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(_devices(devices)), (AXIS,))
    return jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(*([] if replicated else [AXIS]))
    )

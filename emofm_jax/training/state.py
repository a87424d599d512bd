"""What training changes, how it starts, and how it and the batches get to the devices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from emofm_jax.data.batches import Batch
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.nn import embedding

AXIS = "data"  # name of the axis of the devices
SECTIONS = ("embedding", "network")  # keys of params, opt_state and lr_scale

Optimizers: TypeAlias = Mapping[str, optax.GradientTransformation]  # one for each of SECTIONS
Devices: TypeAlias = Sequence[jax.Device] | None  # None: all local ones
PlacedBatch: TypeAlias = Any  # a Batch whose arrays are on the devices


class TrainState(flax.struct.PyTreeNode):
    """All that training changes; the same on every device."""

    step: jax.Array  # i32[], steps taken
    params: dict  # {"embedding": f32[V, D + extra], "network": tree}
    opt_state: dict  # the same keys
    stats: dict  # batch statistics of the network, may be empty
    owner: jax.Array  # i32[V], scratch of the sparse step; holds nothing from step to step
    lr_scale: (
        dict  # {"embedding": f32[], "network": f32[]}, factors on the updates (schedule=plateau)
    )
    key: jax.Array  # u32[2], of dropout; here, so that one compiled step serves every seed
    # {"params", "stats"}, their moving averages; {} where none are kept
    average: dict = flax.struct.field(default_factory=dict)

    def scored(self) -> tuple[dict, dict]:
        """(params, stats) that evaluation uses: the averages where they are kept."""
        kept = self.average or {"params": self.params, "stats": self.stats}
        return kept["params"], kept["stats"]


def make_init(
    module: nn.Module,
    schema: Schema,
    optimizers: Optimizers,
    *,
    init_scale: float,
    averaged: bool = False,
    devices: Devices = None,
) -> Callable[[jax.Array], TrainState]:
    """Makes `init(key) -> state`, on the devices, without a copy of the table on the host.

    Args:
      module: the network.
      schema: of the data; it lays out the table.
      optimizers: of table and network.
      init_scale: standard deviation of the table, which has D columns and a model's extra ones.
      averaged: keep moving averages of parameters and batch statistics.
      devices: that hold the replicas.
    """

    def init(key):
        table_key, network_key = jax.random.split(key)
        variables = model_lib.init(module, network_key, schema)
        num_rows, width = schema.num_rows, model_lib.table_width(module)
        rows = (schema.offsets, num_rows, width)
        table = embedding.init_table(table_key, *rows, init_scale, schema.vectors)
        if (zero := model_lib.starts_at_zero(module)).any():
            table = jnp.where(zero, 0.0, table)
        params = {"embedding": table, "network": variables["params"]}
        stats = variables.get("batch_stats", {})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={k: optimizers[k].init(params[k]) for k in SECTIONS},
            stats=stats,
            average=jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if averaged else {},
            owner=jnp.zeros(num_rows, jnp.int32),
            lr_scale={k: jnp.ones((), jnp.float32) for k in SECTIONS},
            key=jax.random.key_data(key),
        )

    return jax.jit(init, out_shardings=_sharding(devices, replicated=True))


def put_state(state: Any, devices: Devices = None) -> Any:
    """Copies a state, or a part of one, to every device; on CPU it may share the host's memory."""
    return jax.device_put(state, _sharding(devices, replicated=True))


def put_batch(batch: Batch | np.ndarray, devices: Devices = None) -> PlacedBatch:
    """Sends a batch, or an array, [P, b, ...], to its P devices; it must not change afterwards."""
    return jax.device_put(batch, _sharding(devices, replicated=False))


def put_own(batch: Batch, devices: Devices = None) -> PlacedBatch:
    """Sends the part of this process of a batch of all, arrays [P, b, ...], to its devices."""
    count = len(local(devices))
    if jax.process_count() > 1 and len(batch.label) > count:
        first = jax.process_index() * count
        batch = jax.tree.map(lambda array: array[first : first + count], batch)
    return put_batch(batch, devices)


def num_devices() -> int:
    """The devices of all processes."""
    local()
    return jax.device_count()


def fetch(tree: Any) -> Any:
    """Copies arrays of the devices to the host, waiting until they are computed."""
    # On CPU a view would outlive the call, and a state of which a view exists is not donated.
    return jax.tree.map(lambda array: np.array(array, copy=True), jax.device_get(tree))


def local(devices: Devices = None) -> list[jax.Device]:
    """The devices, or all local ones.

    Raises:
      UserError: there is none, since JAX was told to use a platform that this machine has not.
    """
    if devices is not None:
        return list(devices)
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second without CUDA's plugin
        config: Any = jax.config
        wanted = f"JAX_PLATFORMS={config.jax_platforms}"
        why = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0] or "no plugin of it"
        remedy = "unset it, or choose one that is installed, such as cpu"
        raise UserError(f"{wanted}: jax finds no such device here ({why}); {remedy}") from None


def _sharding(devices: Devices, replicated: bool) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(local(devices)), (AXIS,))
    axes = [] if replicated else [AXIS]
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

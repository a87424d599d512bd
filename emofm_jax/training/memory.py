"""Memory that training takes on a device, from shapes alone, before anything is compiled."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from emofm_jax.errors import UserError
from emofm_jax.models import build as model_lib
from emofm_jax.training.build import Parts
from emofm_jax.training.state import TrainState


@jax.enable_x64(False)
def check(config: ConfigDict, parts: Parts) -> str:
    """Returns in words what training takes on a device: state, gradients, kept activations.

    An estimate from above: compilers keep 0.5 to 1.0 of it (measured). Batches are not in it.

    Raises:
      UserError: it is more than the machine (an accelerator: the device) has.
    """
    state = jax.eval_shape(parts.init)
    moved = state.params["network"] if config.optim.embedding.updates == "lazy" else state.params
    kept = _kept(parts, state, config.data.batch_size // parts.num_devices)
    needed = _num_bytes(state) + _num_bytes(moved) + kept

    here = parts.devices[0]
    limit = (here.memory_stats() or {}).get("bytes_limit") if here.platform != "cpu" else None
    where = here.device_kind if limit else "this machine"
    total = needed if limit else needed * len(parts.devices)  # devices of a CPU share its memory
    limit = limit or _of_machine()
    if total > limit:
        raise UserError(
            f"config.model: training it takes up to about {_in_words(total)} (state, gradients, "
            f"activations), {where} has {_in_words(limit)}; choose a smaller model, embedding_dim "
            "or data.batch_size"
        )
    return _in_words(needed)


def _kept(parts: Parts, state: TrainState, num_rows: int) -> int:
    """Bytes that the forward pass of that many rows keeps for the backward, parameters apart."""
    module, network = parts.module, state.params["network"]
    shape = (num_rows, parts.schema.num_slots, model_lib.table_width(module))

    def residuals(network, stats, e):
        def forward(network, e):
            variables = {"params": network, "batch_stats": stats}
            options: dict[str, Any] = {"rngs": {"dropout": jax.random.key(0)}}
            options["mutable"] = ["batch_stats"]
            return module.apply(variables, e, None, train=True, **options)[0]

        return jax.tree.leaves(jax.vjp(forward, network, e)[1])

    e = jax.ShapeDtypeStruct(shape, np.float32)
    found = jax.eval_shape(residuals, network, state.stats, e)
    return max(_num_bytes(found) - _num_bytes(network), 0)  # the parameters are among them


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _of_machine() -> int:
    """Bytes; of the container, if it has a limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(memory, int(text)) if text.isdigit() else memory


def _in_words(num_bytes: float) -> str:
    unit = 2**30 if num_bytes >= 2**30 else 2**20
    return f"{max(num_bytes / unit, 0.1):.1f} {'GiB' if unit == 2**30 else 'MiB'}"

"""A linear network, a schema with a bag, and random batches: what the tests of the train step train."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from emofm_jax.data.batches import Batch
from emofm_jax.data.schema import Schema, Slot
from emofm_jax.nn.losses import Outputs

DIM = 4
SECTION = dict(
    name="adam",
    learning_rate=0.05,
    schedule="constant",
    warmup_steps=0,
    l2=0.0,
    weight_decay=0.0,
    beta1=0.9,
    beta2=0.99,
    eps=1e-6,
    momentum=0.0,
    initial_accumulator=0.1,
)


class Linear(nn.Module):
    """logit = bias + sum_s <kernel_s, dropout(e_s)>, plus what gives the gradients of `broken` a NaN."""

    embedding_dim: int = DIM
    dropout: float = 0.0
    broken: str = ""
    axis_name: str | None = None

    @nn.compact
    def __call__(self, e, weight=None, *, train=False):
        kernel = self.param("kernel", nn.initializers.normal(1.0), e.shape[1:])
        bias = self.param("bias", nn.initializers.zeros, ())
        logits = bias + (nn.Dropout(self.dropout, deterministic=not train)(e) * kernel).sum((1, 2))
        if self.broken:  # the root is 0, its derivative 0 * inf
            logits += jnp.sqrt(
                (0.0 * {"e": e.sum((1, 2)), "kernel": kernel.sum()}[self.broken]) ** 2
            )
        return Outputs(logits=logits, type_logits=None, aux_loss=None)


def make_schema(types=()):
    slots = (
        Slot("user", "user", encoding="identity", rows=7),
        Slot("tags", "user", kind="multi", encoding="identity", rows=9, max_length=3),
        Slot("item", "item", encoding="identity", rows=7),
    )
    zeros = (0,) * (len(types) + 1)
    return Schema("test", slots, tuple(types), rows_per_type=zeros, clicks_per_type=zeros)


def make_batch(seed, num_rows=13, real_rows=None, num_devices=1, types=0):
    """Random rows: repeated ids, bags of 0 to 3 ids, the last row of the table; from `real_rows` on padding."""
    rng = np.random.default_rng(seed)
    schema = make_schema()
    real = num_rows if real_rows is None else real_rows
    local = rng.integers(0, [7, 9, 9, 9, 7], (num_rows, 5))
    ids = (local + schema.offsets[schema.column_slots]).astype(np.int32)
    length = rng.integers(0, 4, num_rows)
    value = np.ones((num_rows, 5), np.float32)
    value[:, 1:4] = (1 / np.maximum(length, 1))[:, None]
    ids[:, 1:4][np.arange(3) >= length[:, None]] = schema.num_rows
    ids[0, 4] = ids[1, 4] = schema.num_rows - 1
    weight = rng.uniform(0.5, 2, num_rows).astype(np.float32)
    label = rng.integers(0, 2, num_rows).astype(np.float32)
    ftype = rng.integers(-1, types, num_rows).astype(np.int32)
    ids[real:], value[real:], label[real:], ftype[real:], weight[real:] = (
        schema.num_rows,
        0,
        0,
        -1,
        0,
    )
    arrays = (ids, value, label, ftype, weight)
    return Batch(*(a.reshape(num_devices, num_rows // num_devices, *a.shape[1:]) for a in arrays))

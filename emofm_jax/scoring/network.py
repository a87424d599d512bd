"""The pure functions of a trained model: features -> embeddings -> scores."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emofm_jax.data import features as features_lib
from emofm_jax.data.schema import Schema
from emofm_jax.evaluation import calibration
from emofm_jax.models import build as model_lib
from emofm_jax.nn import embedding


class Network:
    """What a `Scorer` calls of a run; pickled as what it is built of.

    Attributes:
      schema: of the rows.
      module: of `models.build`.
    """

    def __init__(self, schema: Schema, options: Mapping, compute_dtype: str):
        self._built_of = schema, options, compute_dtype
        self.schema = schema
        self.module = model_lib.make_model(schema, options, compute_dtype=compute_dtype)

    def __reduce__(self) -> tuple:
        return Network, self._built_of

    def fn(self, params: Any, features: Mapping) -> dict[str, jax.Array]:
        """Features to scores; see `Scorer`, as of the functions below."""
        return self.fn_from_embeddings(params, self.embed(params, features))

    def embed(self, params: Any, features: Mapping) -> jax.Array:
        """Features to e f32[B, S, D]; NaN in a row with an id out of range."""
        features_lib.check(self.schema, features)
        ids, value, valid = features_lib.pack(self.schema, features, jnp)
        schema = self.schema
        _, found = embedding.read(params["embedding"], ids, schema.vectors)
        e = embedding.embed(found, ids, value, schema.slot_widths, schema.vectors)
        return jnp.where(valid.all(axis=1)[:, None, None], e, jnp.nan)

    def fn_from_embeddings(self, params: Any, e: jax.Array) -> dict[str, jax.Array]:
        """Embeddings to scores."""
        if e.shape[0] == 0:  # layers divide by the number of rows
            one = self.fn_from_embeddings(params, jnp.zeros((1, *e.shape[1:]), e.dtype))
            return {name: x[:0] for name, x in one.items()}
        variables = {"params": params["network"], "batch_stats": params["stats"]}
        if "calibration" not in params:
            return model_lib.predict(self.module, variables, e)
        calibrate = functools.partial(_calibrated, params["calibration"])
        return model_lib.predict(self.module, variables, e, calibrate)


def _calibrated(fitted: Any, logit: jax.Array) -> dict[str, jax.Array]:
    p = calibration.apply(fitted, logit, jnp)
    return {"p": p, "logit": jnp.log(p) - jnp.log1p(-p)}

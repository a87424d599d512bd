"""The scorer: a trained run, or several, as a pure function for other JAX code (docs/scorer.md).

    scorer = load_scorer("runs/quickstart")
    features = scorer.encode({"user_id": ["17", "4"], ...})          raw values -> one array per slot
    scorer(features)["p"]                                            checked on the host, compiled, f32[B]
    jax.jit(lambda params, f: scorer.fn(params, f)["p"])             pure: jit, vmap, grad, scan, pmap, shard_map

    fn = score(embed(params, features))        embed: f32[B, S, D] of each run;  score: models.predict, calibration

The forward is the one of `evaluate`. Inside a traced program an id that is out of its slot's range cannot be an error:
it makes the scores of its row NaN. `scorer(features)` looks before it computes, and names slot, row and id.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from emofm_jax import config as config_lib
from emofm_jax.data import encode as encode_lib
from emofm_jax.data import features as features_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError, check_choice
from emofm_jax.evaluation import calibration, monitor
from emofm_jax.models import build as model_lib
from emofm_jax.nn import embedding
from emofm_jax.scoring import artefact, attribution, compiled
from emofm_jax.training import checkpoint, compilation

COMBINE = ("logit", "p")


@dataclasses.dataclass(frozen=True, eq=False)  # jax.jit and pmap ask what they are given for a hash
class Scorer:
    """A trained model, or an ensemble, with what it needs to read raw rows. Made by `load_scorer`.

    Attributes:
      schema: of the rows.
      params: tree of arrays, the first argument of the functions below.
      fn: `fn(params, features) -> {"p": f32[B], "logit": f32[B]}`, for typed models also "p_type" and "p_given_type"
        f32[B, T]. Pure. `features` as in `signature`.
      embed: `embed(params, features) -> e`, f32[B, S, D] (of an ensemble a tuple of these).
      fn_from_embeddings: `fn_from_embeddings(params, e)`, what `fn` does after `embed`; differentiable in e.
      directory: that holds `vocabulary/`.
      names: of the runs, for messages.
    """

    schema: Schema
    params: Any
    fn: Callable[[Any, Mapping], dict]
    embed: Callable[[Any, Mapping], Any]
    fn_from_embeddings: Callable[[Any, Any], dict]
    directory: Path
    names: tuple[str, ...]

    def __call__(self, features: Mapping) -> dict[str, jax.Array]:
        """Scores features; compiled once per number of rows.

        Raises:
          UserError: a slot that is absent or one too many, another dtype or shape, an id out of range.
        """
        scores = self._call(features)
        if scores is not None:
            return scores
        features_lib.check(
            self.schema, features
        )  # something does not fit, or they are arrays of jax
        if any(isinstance(x, jax.core.Tracer) for x in features.values()):
            return self.fn(self.params, features)
        features = {name: np.asarray(x) for name, x in features.items()}
        features_lib.check_ids(self.schema, features, features_lib.pack(self.schema, features)[2])
        return self._call(features)

    def start(
        self, features: Mapping[str, np.ndarray], batch_rows: int
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Starts scoring any number of rows in batches of one shape, each split over the local devices.

        Returns:
          A function that waits for the scores and returns them, numpy. Ids are not checked: see `fn`.
        """
        devices = jax.local_devices()
        batch_rows += -batch_rows % len(devices)
        sharding = jax.sharding.NamedSharding(
            jax.sharding.Mesh(np.array(devices), "data"), PartitionSpec("data")
        )
        num_rows, parts = features_lib.check(self.schema, features), []
        for at in range(0, max(num_rows, 1), batch_rows):
            part = {name: x[at : at + batch_rows] for name, x in features.items()}
            part = features_lib.pad(part, self.schema, batch_rows)
            parts.append(
                self._compiled_batch(
                    self.params, jax.device_put(part, sharding) if len(devices) > 1 else part
                )
            )

        def finish() -> dict[str, np.ndarray]:
            done = jax.device_get(parts)
            return {
                name: np.concatenate([part[name] for part in done])[:num_rows] for name in done[0]
            }

        return finish

    def encode(self, data: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """Raw values -> features, exactly as in training; see `data.features.encode`."""
        return features_lib.encode(self._encoder, data)

    def unknown_share(self, features: Mapping) -> dict[str, float]:
        """{slot: share of its values that are missing or unknown}; raises UserError as a call does."""
        features_lib.check(self.schema, features)
        counter = features_lib.UnknownCounter(self.schema)
        counter.add(features)
        return counter.shares()

    def explain(
        self, features: Mapping, reference: Mapping | None = None, **options
    ) -> dict[str, np.ndarray]:
        """Integrated gradients of the logit over the slots' embeddings; see `attribution.explain`."""
        return attribution.explain(self, self._measure, features, reference, **options)

    @functools.cached_property
    def signature(self) -> dict:
        """{"inputs": {slot: {"dtype", "shape", ..}}, "outputs": {name: {"dtype", "shape"}}}; "b" is any number."""
        made = features_lib.example(self.schema, 1)
        outputs = jax.eval_shape(self.fn, self.params, made)
        shapes = {
            name: {"dtype": x.dtype.name, "shape": ["b", *x.shape[1:]]}
            for name, x in outputs.items()
        }
        return {"inputs": features_lib.signature(self.schema), "outputs": shapes}

    @functools.cached_property
    def _compiled_batch(self) -> Callable:
        return compilation.jit(self.fn)

    @functools.cached_property
    def _call(self) -> Callable[[Mapping], dict | None]:
        return compiled.make(self.schema, self.params, self.fn)

    @functools.cached_property
    def _measure(self) -> attribution.Measure:
        return attribution.make_measure(self)

    @functools.cached_property
    def _encoder(self) -> encode_lib.Encoder:
        return encode_lib.Encoder(
            self.schema, encode_lib.load_vocabularies(self.schema, self.directory)
        )


def load_scorer(
    path: str | Path | Sequence, *, calibrated: bool = False, combine: str = "logit"
) -> Scorer:
    """Loads a scorer.

    Args:
      path: a workdir (its best checkpoint if the run had a monitor, else the last), a checkpoint
        (`runs/x/checkpoints/step_100`), a directory that `export` wrote, or a list of these: an ensemble.
      calibrated: whether p and logit go through the calibration that `evaluate --calibrate` stored.
      combine: what an ensemble averages: `logit`, or `p`.

    Returns:
      Scorer. Of an ensemble, p_type is the mean of the members', p_given_type is averaged as `combine` says.

    Raises:
      UserError: no run, a damaged file, weights and schema of different runs, members of different schemas, no
        calibration of this checkpoint.
    """
    check_choice("combine", combine, COMBINE)
    if isinstance(path, str | Path):
        return _load_one(Path(path), calibrated)
    members = [_load_one(Path(p), calibrated) for p in path]
    if not members:
        raise UserError("load_scorer: the list of runs is empty; name at least one")
    return members[0] if len(members) == 1 else _ensemble(members, combine)


def _load_one(path: Path, calibrated: bool) -> Scorer:
    if path.is_file():
        raise UserError(
            f"{path}: it is a file; name the directory of a run, of a checkpoint or of an export"
        )
    if (path / artefact.PROGRAM).exists():
        return _load_artefact(path, calibrated)
    place = path.absolute()
    step = place.name.removeprefix("step_")
    if place.parent.name == "checkpoints" and step.isdecimal():
        return _load_run(place.parent.parent, int(step), calibrated)
    return _load_run(path, None, calibrated)


def _load_run(workdir: Path, step: int | None, calibrated: bool) -> Scorer:
    config, schema = config_lib.load(workdir), schema_lib.load(workdir)
    # In training the auxiliary model's gradient may end at the embeddings; here the gradient of a score is whole.
    options = config.model.to_dict() | {"am_joint": True}
    module = model_lib.make_model(schema, options, compute_dtype=config.compute_dtype)
    directory = workdir / "checkpoints"
    if step is None:
        last, info = checkpoint.read_info(directory)
        step = monitor.kept_step(config.train.monitor, info["best_step"], last)
    params = _restore(directory, step, module, schema)
    if calibrated:
        fitted = calibration.load(workdir, step)
        params["calibration"] = jax.tree.map(jnp.asarray, fitted.arrays)
    params = jax.device_put(params)

    def embed(params, features):
        return _embed(schema, params["embedding"], features)

    def score(params, e):
        if (
            e.shape[0] == 0
        ):  # layers divide by the number of rows; of none there is nothing to compute
            return {
                name: x[:0]
                for name, x in score(params, jnp.zeros((1, *e.shape[1:]), e.dtype)).items()
            }
        scores = model_lib.predict(
            module, {"params": params["network"], "batch_stats": params["stats"]}, e
        )
        if "calibration" in params:
            p = calibration.apply(params["calibration"], scores["logit"], jnp)
            scores |= {"p": p, "logit": jnp.log(p) - jnp.log1p(-p)}
        return scores

    def fn(params, features):
        features_lib.check(schema, features)
        return score(params, embed(params, features))

    return Scorer(schema, params, fn, embed, score, workdir, (str(workdir),))


def _restore(directory: Path, step: int, module, schema: Schema) -> dict:
    """The part of a checkpoint that scores: {"embedding", "network", "stats"}, numpy."""
    variables = jax.eval_shape(lambda: model_lib.init(module, jax.random.key(0), schema))
    table = jax.ShapeDtypeStruct((schema.num_rows, model_lib.table_width(module)), np.float32)
    like = {
        "params": {"embedding": table, "network": variables["params"]},
        "stats": variables.get("batch_stats", {}),
    }
    restored = checkpoint.restore(directory, like, step=step, only=("params", "stats"))
    trained_on = restored.info.get("schema")
    if trained_on and trained_on != schema.fingerprint():
        raise UserError(
            f"{directory.parent / 'schema.json'}: not the schema that {directory / f'step_{step}'} was trained on "
            f"(fingerprint {schema.fingerprint()} against {trained_on}); use the files of one run"
        )
    return restored.state["params"] | {"stats": restored.state["stats"]}


def _embed(schema: Schema, table: jax.Array, features: Mapping) -> jax.Array:
    """f32[B, S, D]; NaN in rows of an id that is out of its slot's range."""
    ids, value, valid = features_lib.pack(schema, features, jnp)
    e = embedding.pool(embedding.lookup(table, ids), value, schema.slot_widths)
    return jnp.where(valid.all(axis=1)[:, None, None], e, jnp.nan)


def _load_artefact(path: Path, calibrated: bool) -> Scorer:
    if calibrated:
        raise UserError(
            f"{path}: calibrate before the export (export --calibrated), then load it as it is"
        )
    schema, params, call = artefact.load(path)

    def fn(params, features):
        features_lib.check(schema, features)
        return call(params, features)

    def refuse(params, features):
        raise UserError(
            f"{path}: an exported program takes features only, not embeddings; load the run itself"
        )

    return Scorer(schema, params, fn, refuse, refuse, path, (str(path),))


def _ensemble(members: Sequence[Scorer], combine: str) -> Scorer:
    first = members[0]
    for other in members[1:]:
        if changed := schema_lib.difference(first.schema, other.schema):
            raise UserError(
                f"ensemble: {first.names[0]} and {other.names[0]} differ in their schemas ({changed})"
            )

    def fn(params, features):
        return _combine([m.fn(p, features) for m, p in zip(members, params)], combine)

    def embed(params, features):
        return tuple(m.embed(p, features) for m, p in zip(members, params))

    def score(params, e):
        return _combine(
            [m.fn_from_embeddings(p, x) for m, p, x in zip(members, params, e)], combine
        )

    params = tuple(m.params for m in members)
    names = tuple(name for m in members for name in m.names)
    return dataclasses.replace(
        first, params=params, fn=fn, embed=embed, fn_from_embeddings=score, names=names
    )


def _combine(scores: Sequence[dict], combine: str) -> dict:
    """One answer of several: what all of them have."""
    mean = lambda values: sum(values) / len(scores)
    odds = lambda p: jnp.log(p) - jnp.log1p(-p)
    inside = lambda p: jnp.clip(p, 1e-30, 1 - 2.0**-24)  # f32 p is 1 from a logit of 17 on
    if combine == "logit":
        logit = mean([s["logit"] for s in scores])
        combined = {"p": jax.nn.sigmoid(logit), "logit": logit}
    else:
        # In log space: f32 p would be 1 where the logit is 17.
        log_p, log_not_p = (
            jax.nn.logsumexp(
                jnp.stack([jax.nn.log_sigmoid(sign * s["logit"]) for s in scores]), axis=0
            )
            for sign in (1, -1)
        )
        combined = {"p": jnp.exp(log_p) / len(scores), "logit": log_p - log_not_p}
    if all("p_type" in s for s in scores):
        given = [s["p_given_type"] for s in scores]
        combined["p_type"] = mean([s["p_type"] for s in scores])
        combined["p_given_type"] = (
            mean(given)
            if combine == "p"
            else jax.nn.sigmoid(mean([odds(inside(p)) for p in given]))
        )
    return combined

"""The scorer: a trained run, or several, as a pure function for other JAX code (docs/scorer.md).

    scorer = load_scorer("runs/quickstart")
    features = scorer.encode({"user_id": ["17", "4"], ...})    raw values -> one array per slot
    scorer(features)["p"]                                      checked, compiled: f32[B]
    jax.jit(lambda params, f: scorer.fn(params, f)["p"])       pure: jit, vmap, grad, scan, pmap

    fn(params, features) = fn_from_embeddings(params, embed(params, features))

The forward is the one of `evaluate`. In a traced program an id that is out of its slot's range
cannot be an error: it makes the scores of its row NaN. `scorer(features)` looks before it computes.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emofm_jax import config as config_lib
from emofm_jax.data import encode as encode_lib
from emofm_jax.data import features as features_lib
from emofm_jax.data import files, storage, unknown
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UnknownValues, UserError, check_choice
from emofm_jax.evaluation import calibration, monitor, run_report
from emofm_jax.models import build as model_lib
from emofm_jax.nn import averaging
from emofm_jax.scoring import artefact, attribution, compiled, ensemble, origin
from emofm_jax.scoring.network import Network
from emofm_jax.training import build, checkpoint, compilation
from emofm_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True, eq=False)  # jax.jit and pmap ask what they are given for a hash
class Scorer:
    """A trained model, or an ensemble, with what it needs to read raw rows.

    It may be pickled: parameters, vocabularies and functions travel, nothing that is compiled.

    Attributes:
      schema: Schema of the rows.
      params: tree of arrays, the first argument of the functions below.
      fn: `fn(params, features) -> {"p": f32[B], "logit": f32[B]}`, for typed models also "p_type"
        and "p_given_type" f32[B, T], with members also "p_std" f32[B]. Pure.
        `features` as in `signature`.
      embed: `embed(params, features) -> e`, f32[B, S, D]; of an ensemble a tuple of these.
      fn_from_embeddings: `fn_from_embeddings(params, e)`, differentiable in e.
      directory: where `vocabulary/` is.
      names: the runs, for messages.
      origins: of each run what `origin.read` found: data, days, metrics, parent, calibration; none
        of exports of before they were kept.
    """

    schema: Schema
    params: Any
    fn: Callable[[Any, Mapping], dict]
    embed: Callable[[Any, Mapping], Any]
    fn_from_embeddings: Callable[[Any, Any], dict]
    directory: Path
    names: tuple[str, ...]
    origins: tuple[Mapping[str, Any], ...] = ()

    def __call__(self, features: Mapping) -> dict[str, jax.Array]:
        """Scores features; compiled once per number of rows.

        Raises:
          UserError: an absent slot or one too many, another dtype or shape, an id out of range.
        """
        scores = self._compiled(features)
        if scores is not None:
            return scores

        # Something does not fit, or the arrays are not numpy's.
        arrays = features.values() if isinstance(features, Mapping) else ()
        if any(isinstance(x, jax.core.Tracer) for x in arrays):
            return self.fn(self.params, features)
        return self._compiled(self._checked(features))

    def start(
        self, features: Mapping[str, np.ndarray], batch_rows: int
    ) -> Callable[[], dict[str, np.ndarray]]:
        """Starts scoring any number of rows in batches of one shape, each split over the devices.

        Returns:
          A function that waits for the scores and returns them, numpy. Ids are not checked.
        """
        devices = state_lib.local()
        batch_rows += -batch_rows % len(devices)
        split = NamedSharding(Mesh(np.array(devices), "data"), PartitionSpec("data"))

        num_rows, parts = features_lib.check(self.schema, features), []
        for at in range(0, max(num_rows, 1), batch_rows):
            part = {name: x[at : at + batch_rows] for name, x in features.items()}
            part = features_lib.pad(part, self.schema, batch_rows)
            part = jax.device_put(part, split) if len(devices) > 1 else part
            parts.append(self._compiled_batch(self.params, part))

        def finish() -> dict[str, np.ndarray]:
            done = jax.device_get(parts)
            joined = lambda name: np.concatenate([part[name] for part in done])[:num_rows]
            return {name: joined(name) for name in done[0]}

        return finish

    def encode(self, data: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        """Turns raw values into features, exactly as in training; see `data.features.encode`.

        Warns once (`errors.UnknownValues`) of a slot that training knew and that is nearly all
        unknown from the first calls on.
        """
        features = features_lib.encode(self._encoder, data)
        if self._watched:
            self._watch(features)
        return features

    def unknown_share(self, features: Mapping) -> dict[str, float]:
        """Returns {slot: share of its values that are missing or unknown}; checks the features."""
        features_lib.check(self.schema, features)
        counter = features_lib.UnknownCounter(self.schema)
        counter.add(features)
        return counter.shares()

    def explain(
        self, features: Mapping, reference: Mapping | None = None, *, tolerance: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Attributes each logit to the slots; checks the features. See `attribution.explain`."""
        features = self._checked(features)
        reference = None if reference is None else self._checked(reference)
        return attribution.explain(self._measure, features, reference, tolerance)

    @functools.cached_property
    def signature(self) -> dict:
        """{"inputs": {slot: {"dtype", "shape", ..}}, "outputs": {name: {"dtype", "shape"}}}.

        The axis "b" of a shape is any number of rows.
        """
        outputs = jax.eval_shape(self.fn, self.params, features_lib.example(self.schema, 1))
        describe = lambda x: {"dtype": x.dtype.name, "shape": ["b", *x.shape[1:]]}
        described = {name: describe(x) for name, x in outputs.items()}
        return {"inputs": features_lib.signature(self.schema), "outputs": described}

    def __getstate__(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return own | {"params": jax.device_get(self.params), "_encoder": self._encoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"params": jax.device_put(state["params"])})

    def _checked(self, features: Mapping) -> dict[str, np.ndarray]:
        """Returns the features in numpy; a UserError names the first mistake."""
        features_lib.check(self.schema, features)
        features = {name: np.asarray(x) for name, x in features.items()}
        features_lib.check_ids(self.schema, features, features_lib.pack(self.schema, features)[2])
        return features

    @functools.cached_property
    def _compiled(self) -> compiled.Compiled:
        return compiled.Compiled(self.schema, self.params, self.fn)

    @functools.cached_property
    def _compiled_batch(self) -> Callable:
        return compilation.jit(self.fn)

    @functools.cached_property
    def _measure(self) -> attribution.Measure:
        return attribution.make_measure(self.embed, self.fn_from_embeddings, self.params)

    @functools.cached_property
    def _watched(self) -> dict[str, unknown.Watched]:
        """The slots that are not yet known to be well."""
        return unknown.watch(self.schema)

    def _watch(self, features: Mapping[str, np.ndarray]) -> None:
        counter = features_lib.UnknownCounter(self.schema)
        counter.add(features)
        counts, unseen = counter.counts(), self._encoder.unseen
        vocabularies = self._encoder.vocabularies or {}

        for name, watched in list(self._watched.items()):
            watched.values += counts[name][0]
            watched.unknown += counts[name][1]
            watched.rows += counter.rows
            examples = unseen.get(name, ())
            if unknown.is_lost(watched, examples, lambda: vocabularies):
                words = unknown.sentence(watched, examples, vocabularies)
                warnings.warn(words, UnknownValues, stacklevel=3)
            elif not watched.is_settled() or watched.unknown == watched.values:
                continue
            self._watched.pop(name, None)

    @functools.cached_property
    def _encoder(self) -> encode_lib.Encoder:
        with storage.told():
            vocabularies = encode_lib.load_vocabularies(self.schema, self.directory)
        return encode_lib.Encoder(self.schema, vocabularies)


def load_scorer(
    path: str | Path | Sequence, *, calibrated: bool = False, combine: str = "logit"
) -> Scorer:
    """Loads a scorer.

    Args:
      path: a workdir (its best checkpoint if the run had a monitor, else the last), a checkpoint
        (`runs/x/checkpoints/step_100`), what `export` wrote, or a list of these: an ensemble.
      calibrated: whether p and logit go through the calibration of `evaluate --calibrate`.
      combine: what an ensemble averages: `logit`, or `p`.

    Raises:
      UserError: no run, a damaged file, weights and schema of different runs, members of different
        schemas, no calibration of this checkpoint, no device.
    """
    check_choice("combine", combine, averaging.COMBINE)
    state_lib.local()  # before anything needs a device
    if isinstance(path, str | Path):
        return _load_one(path, calibrated)
    members = [_load_one(p, calibrated) for p in path]
    if not members:
        raise UserError("load_scorer: the list of runs is empty; name at least one")
    return members[0] if len(members) == 1 else _join(members, combine)


@jax.enable_x64(False)  # whatever the program around has switched on: weights are f32
@storage.told()
def _load_one(name: str | Path, calibrated: bool) -> Scorer:
    path = storage.reading(name)
    if path.is_file():
        known = "a run, of a checkpoint or of an export"
        raise UserError(f"{path}: it is a file; name the directory of {known}")
    if (path / artefact.PROGRAM).exists():
        return _load_artefact(path, calibrated)

    place = path.absolute()
    step = place.name.removeprefix("step_")
    if place.parent.name == "checkpoints" and step.isdecimal():
        return _load_run(place.parent.parent, int(step), calibrated)
    return _load_run(path, None, calibrated)


def _load_run(workdir: Path, step: int | None, calibrated: bool) -> Scorer:
    config, schema = config_lib.load(workdir), schema_lib.load(workdir)
    # In training the auxiliary model's gradient may end at the embeddings; here it is whole.
    options = config.model.to_dict() | {"am_joint": True}
    network = Network(schema, options, config.compute_dtype)

    directory, has_intercept = workdir / "checkpoints", config.train.intercept_rows > 0
    is_kept = False
    if step is None or has_intercept:
        last, info = checkpoint.read_info(directory)
        kept = monitor.kept_step(config.train.monitor, info["best_step"], last)
        step = kept if step is None else step
        is_kept = info.get("finished", False) and step == kept
    averaged = config.train.average_epochs > 0
    params = _restore(directory, step, network.module, schema, averaged)
    if has_intercept:
        intercept = run_report.intercept_of(workdir, step, fitted=is_kept)
        if intercept is not None:
            params["stats"] = {**params["stats"], model_lib.INTERCEPT: np.float32(intercept)}
    found = origin.read(workdir, step, config, schema)
    if calibrated:
        calibrated_by = calibration.load(workdir, step)
        params["calibration"] = jax.tree.map(jnp.asarray, calibrated_by.arrays)
        found["calibration"] = calibrated_by.method
    return _scorer(network, jax.device_put(params), workdir, [found])


def _scorer(
    functions: Network | artefact.Export, params: Any, directory: Path, origins: Sequence[Mapping]
) -> Scorer:
    pure = functions.fn, functions.embed, functions.fn_from_embeddings
    return Scorer(
        functions.schema, params, *pure, directory, (files.said(str(directory)),), tuple(origins)
    )


def _restore(directory: Path, step: int, module: nn.Module, schema: Schema, averaged: bool) -> dict:
    """Reads the part of a checkpoint that scores: {"embedding", "network", "stats"}, numpy."""
    variables = jax.eval_shape(lambda: model_lib.init(module, jax.random.key(0), schema))
    table = jax.ShapeDtypeStruct((schema.num_rows, model_lib.table_width(module)), np.float32)
    params = {"embedding": table, "network": variables["params"]}
    like = {"params": params, "stats": variables.get("batch_stats", {})}
    if averaged:
        like = {"average": like}

    restored = checkpoint.restore(directory, like, step=step, only=tuple(like))
    build.check_data(directory.parent, restored, schema)
    kept = restored.state["average"] if averaged else restored.state
    return kept["params"] | {"stats": kept["stats"]}


def _load_artefact(path: Path, calibrated: bool) -> Scorer:
    if calibrated:
        before = "calibrate before the export (export --calibrated)"
        raise UserError(f"{path}: {before}, then load it as it is")
    exported, params = artefact.load(path)
    return _scorer(exported, params, path, exported.origins)


def _join(members: Sequence[Scorer], combine: str) -> Scorer:
    """Makes an ensemble of scorers, whose parameters and embeddings are tuples of the members'."""
    first = members[0]
    for other in members[1:]:
        if changed := schema_lib.difference(first.schema, other.schema):
            both = f"{first.names[0]} and {other.names[0]} differ in their schemas ({changed})"
            raise UserError(f"ensemble: {both}; name runs of the same data")

    pure = [(m.fn, m.embed, m.fn_from_embeddings) for m in members]
    joined = ensemble.Ensemble(pure, combine)
    params = tuple(m.params for m in members)
    names = tuple(name for m in members for name in m.names)
    pure_of_all = joined.fn, joined.embed, joined.fn_from_embeddings
    origins = tuple(known for m in members for known in m.origins)
    return Scorer(first.schema, params, *pure_of_all, first.directory, names, origins)

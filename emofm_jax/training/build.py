"""From a config to the parts of a run, and from a workdir to its state: what train, evaluate and predict share."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from emofm_jax.data import shards
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.evaluation.split_report import SplitReport
from emofm_jax.models import build as model_lib
from emofm_jax.training import checkpoint, optim
from emofm_jax.training import predictions as predictions_lib
from emofm_jax.training import step as step_lib
from emofm_jax.training.progress import Progress

EXCLUDED = (
    "owner",
    "key",
)  # scratch of the sparse step, and what follows from the seed: not worth a checkpoint
_KEPT = 4  # programs, each with what it has compiled, that a process keeps for the next run of the same shapes


class Program(NamedTuple):
    """The parts of a run: devices, the key that its seed gives, `init() -> TrainState`, and the pmapped steps."""

    devices: list
    key: jax.Array
    init: Callable
    train_step: Callable
    eval_step: Callable


def check(config: ConfigDict) -> None:
    """Checks the names that a config gives, before any data are touched.

    Raises:
      UserError: an unknown model, mixer or optimizer.
    """
    model_lib.check(config.model.to_dict())
    for key in step_lib.SECTIONS:
        optim.make_optimizer(config.optim[key].to_dict(), 1)


def make_program(config: ConfigDict, schema: Schema, num_steps: int) -> Program:
    """Builds model, optimizers and steps of a config; nothing is compiled yet.

    Runs of one process that differ in what the program does not depend on (seed, paths, epochs unless a schedule ends
    with them) share it, and what was compiled for it.

    Raises:
      UserError: an unknown model, mixer, type or optimizer; a batch that does not divide over the devices.
    """
    devices = jax.local_devices()
    for field in ("batch_size", "eval_batch_size"):
        if config.data[field] % len(devices):
            raise UserError(
                f"config.data.{field}: {config.data[field]} rows do not divide over {len(devices)} devices; "
                f"choose a multiple of {len(devices)}"
            )
    model = json.dumps(config.model.to_dict())
    ends = any(config.optim[key].schedule == "cosine" for key in step_lib.SECTIONS)
    optim_options = json.dumps(config.optim.to_dict())
    start, train_step = _make_training(
        schema, model, config.compute_dtype, optim_options, num_steps if ends else 0
    )
    key = jax.random.key(config.seed)
    return Program(
        devices,
        key,
        lambda: start(key),
        train_step,
        _make_eval_step(schema, model, config.compute_dtype),
    )


@functools.lru_cache(maxsize=_KEPT)
def _make_training(
    schema: Schema, model: str, compute_dtype: str, optim_options: str, num_steps: int
):
    """(start, train step) of options as JSON text: all that decides them but for the shape of a batch."""
    options, sections = json.loads(model), json.loads(optim_options)
    module = model_lib.make_model(schema, options, compute_dtype=compute_dtype)
    optimizers = {key: optim.make_optimizer(sections[key], num_steps) for key in step_lib.SECTIONS}
    start = step_lib.make_init(
        module,
        schema,
        optimizers,
        table_width=model_lib.table_width(module),
        init_scale=options["init_scale"],
    )
    train_step = step_lib.make_train_step(
        module,
        schema,
        optimizers,
        updates=sections["embedding"]["updates"],
        l2={key: sections[key]["l2"] for key in step_lib.SECTIONS},
        clip=sections["clip"],
        clip_norm=sections["clip_norm"],
        am_weight=options["am_weight"],
        drop_type=model_lib.dropped_type(schema, options),
    )
    return start, train_step


@functools.lru_cache(maxsize=_KEPT)
def _make_eval_step(schema: Schema, model: str, compute_dtype: str) -> Callable:
    module = model_lib.make_model(schema, json.loads(model), compute_dtype=compute_dtype)
    return step_lib.make_eval_step(module, schema)


def check_memory(config: ConfigDict, schema: Schema, program: Program) -> str:
    """What training takes on a device, in words: state, gradients, and what the forward pass keeps for the backward.

    An estimate from shapes alone: compilers keep less (0.5 to 1.0 of it, measured), batches to come are not in it.

    Raises:
      UserError: it is more than the machine (an accelerator: the device) has.
    """
    state = jax.eval_shape(program.init)
    moved = state.params["network"] if config.optim.embedding.updates == "lazy" else state.params
    module = model_lib.make_model(
        schema, config.model.to_dict(), compute_dtype=config.compute_dtype
    )
    rows = config.data.batch_size // len(program.devices)
    e = jax.ShapeDtypeStruct((rows, schema.num_slots, model_lib.table_width(module)), np.float32)

    def kept(network, stats, e):
        def forward(network, e):
            variables = {"params": network, "batch_stats": stats}
            rngs = {"dropout": jax.random.key(0)}
            return module.apply(variables, e, None, train=True, rngs=rngs, mutable=["batch_stats"])[
                0
            ]

        return jax.tree.leaves(jax.vjp(forward, network, e)[1])

    network = state.params["network"]
    backward = _num_bytes(jax.eval_shape(kept, network, state.stats, e)) - _num_bytes(
        network
    )  # the parameters are among them
    needed = _num_bytes(state) + _num_bytes(moved) + max(backward, 0)
    here = program.devices[0]
    limit = (here.memory_stats() or {}).get("bytes_limit") if here.platform != "cpu" else None
    where = here.device_kind if limit else "this machine"
    total = needed if limit else needed * len(program.devices)  # devices of a CPU share its memory
    limit = limit or _memory_of_machine()
    if total > limit:
        raise UserError(
            f"config.model: training it takes up to about {_in_words(total)} (state, gradients, activations), "
            f"{where} has {_in_words(limit)}; choose a smaller model, embedding_dim or data.batch_size"
        )
    return _in_words(needed)


def _num_bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _memory_of_machine() -> int:
    """Bytes; of the container, if it has a limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(memory, int(text)) if text.isdigit() else memory


def _in_words(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def restore(
    workdir: Path, program: Program, step: int | None = None
) -> tuple[step_lib.TrainState, Progress]:
    """The state of a checkpoint, by default the newest whole one.

    Raises:
      UserError: no checkpoint, or none that is whole and of this model.
    """
    like = jax.eval_shape(program.init)
    key = np.array(
        jax.random.key_data(program.key)
    )  # a copy: steps delete the arrays of the state they get
    like = like.replace(owner=np.zeros(like.owner.shape, np.int32), key=key)
    restored = checkpoint.restore(workdir / "checkpoints", like, step=step, exclude=EXCLUDED)
    return step_lib.put_state(restored.state, program.devices), Progress(**restored.info)


def restore_or_init(workdir: Path, program: Program) -> tuple[step_lib.TrainState, Progress]:
    """The newest checkpoint, or a fresh start."""
    if checkpoint.latest(workdir / "checkpoints") is None:
        return program.init(), Progress()
    return restore(workdir, program)


def restore_kept(
    config: ConfigDict, workdir: Path, program: Program
) -> tuple[step_lib.TrainState, Progress]:
    """The state that evaluate and predict use: the best one if a monitor is set, else the last."""
    progress = Progress(**checkpoint.read_info(workdir / "checkpoints")[1])
    return restore(workdir, program, kept_step(config, progress))


def kept_step(config: ConfigDict, progress: Progress) -> int:
    """Of the best state if there is a monitor and it ever had a value, else of the last."""
    return progress.best_step if config.train.monitor and progress.best_step >= 0 else progress.step


def score(
    config: ConfigDict, split: shards.Split, program: Program, state: step_lib.TrainState
) -> tuple[predictions_lib.Predictions, SplitReport]:
    """Predictions of a split and their report."""
    predictions = predictions_lib.predict_split(
        program.eval_step,
        state.params,
        state.stats,
        split,
        config.data.eval_batch_size,
        devices=program.devices,
        progress=sys.stderr.isatty(),
    )
    return predictions, predictions_lib.report(predictions, split)

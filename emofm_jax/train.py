"""Trains a model on prepared shards, evaluates it and writes everything into a workdir.

    python -m emofm_jax.train --config=experiments/quickstart.py --workdir=runs/quickstart
    python -m emofm_jax.train --config=experiments/frappe.py:wm --workdir=runs/wm --config.seed=1

With `--init_from=RUN` the run starts from the parameters of another one: rows of the table are
carried over by value, new ones start afresh, and what is not carried over is said.

The same command again goes on where it stopped, or shows the result of a finished run. The workdir
then holds config.json, schema.json, vocabulary/, environment.json, log.jsonl, TensorBoard events,
checkpoints/, metrics.json and predictions/test.parquet (without a test split valid.parquet);
evaluate, predict and other programs take `--workdir` and find everything there.
"""

import sys
import textwrap

from emofm_jax.training import huge_pages

if __name__ == "__main__":  # before what takes time to load
    huge_pages.use(__file__)
else:
    huge_pages.use_in_command()

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax import config as config_lib
from emofm_jax.data import storage
from emofm_jax.errors import UserError
from emofm_jax.evaluation import summary
from emofm_jax.training import processes
from emofm_jax.training import run as run_lib


def _main(flags: absl_flags.FlagValues) -> None:
    config = flags.config
    if flags.plan:
        run_lib.check(config)
        print("\n".join(run_lib.plan(config, flags.num_devices)))
        return
    if not flags.workdir:
        raise UserError("--workdir: it is required; --help explains it")
    if flags.num_devices:
        given = f"--num_devices={flags.num_devices}"
        raise UserError(f"{given}: it is for --plan; XLA or CUDA_VISIBLE_DEVICES decide otherwise")
    processes.start(flags.coordinator, flags.num_processes, flags.process_id, flags.wait_seconds)
    if flags.init_from:
        config.train.init_from = flags.init_from
    run_lib.check(config)
    given = cli.overrides(flags)
    for path, what in config_lib.without_effect(config).items():
        if path in given:
            idle = f"--config.{path}={given[path]}: it has no effect on {what}"
            raise UserError(f"{idle}; leave it out")

    try:
        if processes.is_first():
            workdir = storage.writing(flags.workdir, is_run=True)
        else:
            workdir = storage.following(flags.workdir)
        report = run_lib.run(config, workdir)
    except Exception as error:
        raise processes.explained(error) from error
    if not processes.is_first():
        return
    split, of_split = report.shown
    print(f"\n{summary.table(of_split, f'{split} split')}\n\n{summary.footer(report.to_json())}")
    files = "metrics.json, predictions/, checkpoints/, log.jsonl, TensorBoard events"
    print(f"written: {workdir}/ ({files})")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_config(flags, argv)
    where = "Directory of the run; made if missing. (required, but for --plan)"
    absl_flags.DEFINE_string("workdir", "", where, flag_values=flags)
    plan = "Prints what a step takes, from arithmetic, and ends: nothing is allocated or written."
    absl_flags.DEFINE_bool("plan", False, plan, flag_values=flags)
    many = "--plan: on how many devices; 0: those that are here."
    absl_flags.DEFINE_integer("num_devices", 0, many, lower_bound=0, flag_values=flags)
    where = "Several processes: HOST:PORT of process 0. SLURM, Open MPI and TPU pods need no flags."
    absl_flags.DEFINE_string("coordinator", "", where, flag_values=flags)
    many = "Several processes: how many. 1: one, whatever the environment says."
    absl_flags.DEFINE_integer("num_processes", 0, many, flag_values=flags)
    which = "Several processes: number of this one, from 0."
    absl_flags.DEFINE_integer("process_id", -1, which, flag_values=flags)
    wait = "Several processes: seconds until all must be there."
    absl_flags.DEFINE_integer("wait_seconds", 300, wait, lower_bound=1, flag_values=flags)
    what = "Run to start from; the same as --config.train.init_from."
    absl_flags.DEFINE_string("init_from", "", what, flag_values=flags)


def _describe_models() -> str:
    """What the files of models/ say of themselves, under the names of the models."""
    from emofm_jax import models

    names: dict[str, list[str]] = {}
    for name, model in models.MODELS.items():
        names.setdefault(model.__module__, []).append(name)
    lines = ["Models (--config.model.name; docs/model.md: stated by the papers, and our choices):"]
    for module, of_module in names.items():
        text = textwrap.indent((sys.modules[module].__doc__ or "").strip(), "    ")
        lines += ["", f"  {', '.join(of_module)}", text]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error, 75 if another process has ended."""
    return processes.leave(cli.run(_main, _define, argv, more_help=_describe_models))


if __name__ == "__main__":
    sys.exit(main())

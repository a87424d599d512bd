"""Makes the report of a sweep, or of a single run: a page to show, and Markdown.

    python -m emofm_jax.report --workdir=runs/claims
    python -m emofm_jax.report --workdir=runs/claims --reference=wm --metric=logloss
    python -m emofm_jax.report --workdir=runs/quickstart

Of a sweep: means with intervals over the seeds; every point against the reference, over seeds and
over test rows, with "not distinguishable" as an answer; the number that a sweep varies against the
metric; by type, cost, learning curves, calibration, configurations. Points are ranked and compared
within the same data only; on data without the reference its like takes its place. Of a run: its
figures, curves, calibration and slots. Writes report.html, which stands alone and asks the network
for nothing, and report.md into the workdir, in place of those of an earlier call. A sweep that is
under way is reported as far as it has come.
"""

import difflib
import sys

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.data import files, storage
from emofm_jax.errors import UserError, check_choice
from emofm_jax.reports import read, run_page
from emofm_jax.reports.sweep import page, view


def _main(flags: absl_flags.FlagValues) -> None:
    check_choice("--metric", flags.metric, view.NAMES)
    workdir = storage.writing(flags.workdir, is_run=True)
    found = read.load(storage.reading(flags.workdir))  # with what others have of runs in it
    if isinstance(found, read.Sweep):
        report = page.report(view.view(found, flags.metric, _reference(found, flags.reference)))
    elif flags.reference:
        why = f"{workdir} is a single run, without points; leave it out"
        raise UserError(f"--reference={flags.reference}: {why}")
    else:
        report = run_page.report(found)

    files.write_text(workdir / "report.html", report.as_html())
    files.write_text(workdir / "report.md", report.as_markdown())
    storage.publish(workdir)
    print(report.as_text())
    print(f"written: {workdir / 'report.html'}, {workdir / 'report.md'}")


def _reference(sweep: read.Sweep, wanted: str) -> str:
    """The point that others are compared to: the flag's, else the sweep's own."""
    point = wanted or sweep.reference
    if point in sweep.points:
        return point
    own = f"{sweep.workdir / 'sweep.json'}: reference {point!r}"
    where = f"--reference={wanted}" if wanted else own
    near = difflib.get_close_matches(point, sweep.points, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
    known = ", ".join(sweep.points)
    raise UserError(f"{where}: there is no such point; there are {known}; {hint}")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    for name, default, meaning in (
        ("workdir", None, "Directory of a sweep or of a run."),
        ("reference", "", "Point to compare to, if not the sweep's own."),
        ("metric", "auc", "What points are compared by: auc or logloss. The page is replaced."),
    ):
        absl_flags.DEFINE_string(name, default, meaning, flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Makes the report of a sweep, or of a single run: a page to show, and Markdown.

    python -m emofm_jax.report --workdir=runs/claims
    python -m emofm_jax.report --workdir=runs/claims --reference=wm --metric=logloss
    python -m emofm_jax.report --workdir=runs/quickstart

Of a sweep: means with intervals over the seeds; every point against the reference, over seeds and over test rows, with
"not distinguishable" as an answer; the number that a sweep varies against the metric; by type, cost, learning curves,
calibration, configurations. Points are ranked and compared within the same data only; on data without the reference
its like takes its place. Of a run: its figures, curves, calibration and slots. Writes report.html, which stands
alone and asks the network for nothing, and report.md into the workdir. A sweep that is under way is reported as far as
it has come.
"""

import difflib
import sys
from pathlib import Path

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.errors import UserError, check_choice
from emofm_jax.reports import document, read, run_page
from emofm_jax.reports.sweep import page
from emofm_jax.reports.sweep import summary as sweep_summary
from emofm_jax.reports.sweep import view as view_lib


def _main(flags: absl_flags.FlagValues) -> None:
    check_choice("--metric", flags.metric, view_lib.NAMES)
    workdir = Path(flags.workdir)
    found = read.load(workdir)
    if isinstance(found, read.Sweep):
        view = view_lib.view(found, flags.metric, _reference(found, flags.reference))
        title, lead, sections = f"Sweep: {found.name}", view_lib.lead(view), page.sections(view)
        tables = page.results_tables(view)
        said = [*sweep_summary.summary(view), *sweep_summary.by_data(view)]
        if (missing := len(found.points) * len(found.seeds) - len(found.runs)) > 0:
            said.insert(
                0, f"Unfinished: {len(found.runs)} of {missing + len(found.runs)} runs are in."
            )
    else:
        if flags.reference:
            raise UserError(
                f"--reference={flags.reference}: {workdir} is a single run, without points; leave it out"
            )
        title, lead, sections = (
            run_page.title(found),
            run_page.lead(found),
            run_page.sections(found),
        )
        tables, said = [("", run_page.figures(found))], [run_page.summary(found)]
    for name, text in (
        ("report.html", document.as_html(title, lead, sections)),
        ("report.md", document.as_markdown(title, lead, sections)),
    ):
        (workdir / f"{name}.tmp").write_text(text, encoding="utf-8")
        (workdir / f"{name}.tmp").replace(workdir / name)
    print(
        "\n\n".join(
            "\n".join(filter(None, [name, document.as_text(table)])) for name, table in tables
        )
    )
    print("\n" + "\n".join(text.replace("`", "").replace("**", "") for text in said))
    print(f"written: {workdir / 'report.html'}, {workdir / 'report.md'}")


def _reference(sweep: read.Sweep, wanted: str) -> str:
    """The point that others are compared to: the flag's, else the sweep's own."""
    point = wanted or sweep.reference
    where = (
        f"--reference={wanted}"
        if wanted
        else f"{sweep.workdir / 'sweep.json'}: reference {point!r}"
    )
    if point not in sweep.points:
        near = difflib.get_close_matches(point, sweep.points, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise UserError(
            f"{where}: there is no such point; there are {', '.join(sweep.points)}; {hint}"
        )
    return point


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    absl_flags.DEFINE_string(
        "workdir", None, "Directory of a sweep or of a run.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "reference", "", "Point to compare to, if not the sweep's own.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "metric", "auc", "What points are compared by: auc or logloss.", flag_values=flags
    )


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())

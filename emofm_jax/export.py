"""Exports a trained run as a directory that scores without this package: program, weights, example.

    python -m emofm_jax.export --workdir=runs/quickstart --output=artefact
    python -m emofm_jax.export --workdir=runs/a,runs/b --output=ensemble --calibrated
    python artefact/score.py features.npz scores.npz      # needs jax, numpy and flatbuffers alone

The README.md in the output says what each file is. `emofm_jax.load_scorer("artefact")` gives the
scorer back.
"""

import sys

from absl import flags as absl_flags

from emofm_jax import cli
from emofm_jax.data import storage


def _main(flags: absl_flags.FlagValues) -> None:
    from emofm_jax.scoring import artefact, write_artefact  # loads jax: after the flags' checks
    from emofm_jax.scoring import scorer as scorer_lib

    runs, directory = cli.workdirs(flags), storage.writing(flags.output)
    scorer = scorer_lib.load_scorer(runs, calibrated=flags.calibrated, combine=flags.combine)
    write_artefact.write(scorer, directory)
    artefact.load(directory)  # its worked example comes out here, too
    storage.publish(directory)

    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 2**20
    verified = "checksums and worked example verified"
    print(f"{', '.join(scorer.names)} exported: {size:,.1f} MiB, {verified}")
    use = f"README.md says how to use it; python {directory / 'score.py'} scores files"
    print(f"written: {directory}/ ({use})")


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_scorer(flags)
    text = "Directory to write; one that holds an export is replaced."
    absl_flags.DEFINE_string("output", None, text, flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """Runs the program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())

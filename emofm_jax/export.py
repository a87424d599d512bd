"""Exports a trained run as a directory that scores without this package: a program, its weights, an example.

    python -m emofm_jax.export --workdir=runs/quickstart --output=artefact
    python -m emofm_jax.export --workdir=runs/a,runs/b --output=ensemble --calibrated
    python artefact/score.py features.npz scores.npz                      # needs jax, numpy and flatbuffers alone

The README.md in the output says what each file is. `emofm_jax.load_scorer("artefact")` gives the scorer back.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from emofm_jax import cli


def _main(flags: absl_flags.FlagValues) -> None:
    from emofm_jax.scoring import artefact
    from emofm_jax.scoring import scorer as scorer_lib  # load jax: after the flags were checked

    directory = Path(flags.output)
    loaded = scorer_lib.load_scorer(
        cli.workdirs(flags), calibrated=flags.calibrated, combine=flags.combine
    )
    artefact.write(loaded, directory)
    artefact.load(directory)  # its worked example comes out here, too
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(
        f"{', '.join(loaded.names)} exported: {size / 2**20:,.1f} MiB, checksums and worked example verified"
    )
    print(
        f"written: {directory}/ (README.md says how to use it; python {directory / 'score.py'} scores files)"
    )


def _define(flags: absl_flags.FlagValues, argv: list[str]) -> None:
    cli.define_scorer(flags)
    text = "Directory to write; one that holds an export is replaced."
    absl_flags.DEFINE_string("output", None, text, flag_values=flags)


def main(argv: list[str] | None = None) -> int:
    """The program: exit code 0, or 2 after one line of error."""
    return cli.run(_main, _define, argv)


if __name__ == "__main__":
    sys.exit(main())

"""An exported scorer, read: a directory that needs nothing of this package (docs/scorer.md).

    model.stablehlo       jax.export: (weights, features) -> scores of any number of rows
    weights.safetensors   its first argument, flat names; the table first, aligned for mapping
    schema.json, vocabulary/*.parquet    what `scorer.encode` needs
    signature.json        inputs, outputs, a worked example, which export and schema they are of
    score.py              loads and runs all this with jax, numpy and flatbuffers alone
    README.md, checksums.sha256          (`sha256sum -c checksums.sha256`)

write_artefact.py writes one.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.scoring import score

PROGRAM = "model.stablehlo"


def load(directory: Path) -> tuple[Schema, dict, Callable[[Any, Mapping], dict]]:
    """Loads an export, after verifying every file and the worked example.

    Returns:
      The schema, the weights by name, and call(weights, features) -> scores.

    Raises:
      UserError: a file is missing, not the exported one, of a newer format or another export. The
        call raises it where vmap or jvp of it is traced.
    """
    loaded = _load(directory)
    schema = schema_lib.load(directory)
    if schema.fingerprint() != loaded.signature["schema"]:
        other = "schema.json is not of the run that the weights are of"
        raise UserError(f"{directory}: {other}; copy the artefact again")

    def call(weights, features):
        try:
            return loaded.call(weights, features)
        except ValueError as error:
            raise UserError(f"{directory}: {error}") from None

    return schema, loaded.weights, call


def _load(directory: Path) -> Any:
    """Calls `score.load`, which knows no UserError."""
    try:
        return score.load(directory)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        path = Path(directory) / "signature.json"
        raise UserError(f"{path}: not readable ({error}); copy the artefact again") from None
    except ValueError as error:
        text = " ".join(str(error).split())
        named = text if str(directory) in text else f"{directory}: damaged ({text}); copy it again"
        raise UserError(named) from None
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; copy the whole artefact again") from None

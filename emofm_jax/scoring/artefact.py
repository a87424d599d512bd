"""An exported scorer, read: a directory that needs nothing of this package (docs/scorer.md).

    model.stablehlo       jax.export: (weights, features) -> scores of any number of rows
    weights.safetensors   its first argument, flat names; the table first, aligned for mapping
    schema.json, vocabulary/*.parquet    what `scorer.encode` needs
    signature.json        inputs, outputs, a worked example, which export and schema they are of
    score.py              loads and runs all this with jax, numpy and flatbuffers alone
    README.md, checksums.sha256          (`sha256sum -c checksums.sha256`)

write_artefact.py writes one.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax import export

from emofm_jax import errors
from emofm_jax.data import features as features_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.scoring import origin, score

PROGRAM = "model.stablehlo"
# What a signature raises that is not what was written.
_OTHER = (KeyError, TypeError, AttributeError, OverflowError)


class Export:
    """What a `Scorer` calls of an export; pickled with its program, without its weights.

    Attributes:
      schema: of the rows.
      origins: of each run that it was made of, what `origin.read` found.
    """

    def __init__(self, directory: Path, schema: Schema, program: bytes, origins: Sequence[Mapping]):
        self._directory, self.schema, self._serialized = directory, schema, program
        self.origins = tuple(origins)

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name != "_program"}

    def fn(self, params: Mapping, features: Mapping) -> dict:
        """Features to scores; see `Scorer`.

        Raises:
          UserError: features that do not fit; vmap or jvp of it is traced.
        """
        features_lib.check(self.schema, features)
        try:
            return score.call_program(self._program, features.keys(), params, features)
        except ValueError as error:
            raise UserError(f"{self._directory}: {error}") from None

    def embed(self, params: Mapping, features: Mapping) -> Any:
        """Raises a UserError, as `fn_from_embeddings` does: the program is one whole."""
        takes = "an exported program takes features only, not embeddings"
        raise UserError(f"{self._directory}: {takes}; load the run itself")

    fn_from_embeddings = embed

    @functools.cached_property
    def _program(self) -> Any:
        return export.deserialize(bytearray(self._serialized))


def load(directory: Path) -> tuple[Export, dict]:
    """Loads an export, after verifying every file and the worked example.

    Returns:
      Its functions, and the weights by name.

    Raises:
      UserError: a file is missing, not the exported one, of a newer format or another export.
    """
    loaded = _load(directory)
    schema = schema_lib.load(directory)
    if schema.fingerprint() != loaded.signature.get("schema"):
        other = "schema.json is not of the run that the weights are of"
        raise UserError(f"{directory}: {other}; copy the artefact again")

    origins = _origins(directory, loaded.signature)
    try:
        program = (directory / PROGRAM).read_bytes()
    except OSError as error:  # which names no file where reading fails
        raise errors.of_file(directory / PROGRAM, error, "read") from None
    return Export(directory, schema, program, origins), loaded.weights


def _origins(directory: Path, signature: Mapping) -> list[Mapping]:
    """What the signature tells of the runs."""
    origins = signature.get("origins", [])
    try:
        for one in origins:
            origin.said(one)
            origin.trained_days(one)
    except (ValueError, *_OTHER) as error:
        raise _unreadable(directory, error) from None
    return origins


def _unreadable(directory: Path, error: Exception) -> UserError:
    path = Path(directory) / "signature.json"
    return UserError(f"{path}: not readable ({error}); copy the artefact again")


def _load(directory: Path) -> Any:
    """Calls `score.load`, which knows no UserError."""
    try:
        return score.load(directory)
    except (*_OTHER, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _unreadable(directory, error) from None
    except ValueError as error:
        text = " ".join(str(error).split())
        named = text if str(directory) in text else f"{directory}: damaged ({text}); copy it again"
        raise UserError(named) from None
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; copy the whole artefact again") from None
    except OSError as error:
        raise errors.of_file(error.filename or directory, error, "read") from None

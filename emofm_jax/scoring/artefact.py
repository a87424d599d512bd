"""An exported scorer: a directory that needs nothing of this package (docs/scorer.md).

model.stablehlo       jax.export: (weights, features) -> scores, any number of rows, for CPU, CUDA and TPU
weights.safetensors   the program's first argument, flat names; the table stands first, aligned for mapping
schema.json, vocabulary/*.parquet     what `scorer.encode` needs
signature.json        inputs, outputs, a worked example, which export and schema they are of
score.py              loads and runs all this with jax, numpy and flatbuffers alone
README.md, checksums.sha256           (`sha256sum -c checksums.sha256`)
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import safetensors.numpy

from emofm_jax.data import features as features_lib
from emofm_jax.data import schema as schema_lib
from emofm_jax.data.schema import Schema
from emofm_jax.errors import UserError
from emofm_jax.scoring import score

if TYPE_CHECKING:
    from emofm_jax.scoring.scorer import Scorer

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
_ALIGNMENT = (
    64  # of the first array, in bytes: what XLA:CPU needs to take a mapped file without a copy
)
_EXAMPLE_ROWS = 4


def write(scorer: "Scorer", directory: Path) -> None:
    """Writes the artefact into a directory, which is made whole and then renamed.

    Raises:
      UserError: the directory is there and holds files that no export has written.
    """
    directory = Path(directory).absolute()
    if directory.is_file():
        raise UserError(f"{directory}: it is a file; name a directory")
    if other := _other_files(directory):
        raise UserError(
            f"{directory}: it holds {other[0]}, which is of no export; choose an empty or a new directory"
        )
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_files(scorer, temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(directory: Path) -> tuple[Schema, dict, Callable[[Any, Mapping], dict]]:
    """(schema, weights, call(weights, features) -> scores), after verifying every file and the worked example.

    Raises:
      UserError: a file is missing, another than was exported, of a newer format, or of another export; vmap or
        forward-mode differentiation of `call`, when it is traced.
    """
    try:
        loaded = score.load(directory)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{Path(directory) / 'signature.json'}: not readable ({error}); copy the artefact again"
        ) from None
    except ValueError as error:
        text = " ".join(str(error).split())
        raise UserError(
            text if str(directory) in text else f"{directory}: damaged ({text}); copy it again"
        ) from None
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; copy the whole artefact again") from None
    schema = schema_lib.load(directory)
    if schema.fingerprint() != loaded.signature["schema"]:
        raise UserError(
            f"{directory}: schema.json is not of the run that the weights are of; copy the artefact again"
        )

    def call(weights, features):
        try:
            return loaded.call(weights, features)
        except ValueError as error:
            raise UserError(f"{directory}: {error}") from None

    return schema, loaded.weights, call


def _other_files(directory: Path) -> list[str]:
    """Names of the files that an export would delete and that no export has written."""
    listed = directory / "checksums.sha256"
    known = (
        {line.split("  ", 1)[-1] for line in listed.read_text().splitlines()}
        if listed.exists()
        else set()
    )
    found = (
        file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()
    )
    return sorted(
        name for name in found if name not in known | {listed.name} and "__pycache__" not in name
    )


def _write_files(scorer: "Scorer", path: Path) -> None:
    schema, structure = scorer.schema, jax.tree.structure(scorer.params)
    names = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree.leaves_with_path(scorer.params)
    ]
    weights = dict(zip(names, map(np.asarray, jax.tree.leaves(scorer.params))))

    def program(weights, features):
        return scorer.fn(jax.tree.unflatten(structure, [weights[name] for name in names]), features)

    (rows,) = jax.export.symbolic_shape("b")
    example = features_lib.example(schema, _EXAMPLE_ROWS)
    shapes = {k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for k, x in example.items()}
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(_shapes(weights), shapes)
    (path / PROGRAM).write_bytes(exported.serialize(vjp_order=1))
    identity = _identity(path / PROGRAM, weights)
    _write_weights(
        path / "weights.safetensors",
        weights,
        {"export": identity, "runs": json.dumps(scorer.names)},
    )
    schema.save(path)
    if (scorer.directory / "vocabulary").is_dir():
        shutil.copytree(scorer.directory / "vocabulary", path / "vocabulary")
    signature = {
        "format_version": score.FORMAT_VERSION,
        "export": identity,
        "schema": schema.fingerprint(),
        "types": list(schema.types),
        **scorer.signature,
        "example": {
            "features": {k: np.where(np.isnan(x), None, x).tolist() for k, x in example.items()},
            "scores": {k: np.asarray(x).tolist() for k, x in scorer(example).items()},
        },
    }
    (path / "signature.json").write_text(json.dumps(signature, indent=1) + "\n")
    shutil.copy(score.__file__, path / "score.py")
    (path / "README.md").write_text(_readme(scorer, weights))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    (path / "checksums.sha256").write_text("".join(lines))


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _identity(program: Path, weights: Mapping[str, np.ndarray]) -> str:
    """16 hex digits of program and weights: what tells two exports apart."""
    digest = hashlib.sha256(program.read_bytes())
    for name, array in weights.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def _write_weights(path: Path, weights: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """A safetensors file whose header is filled up with blanks, so that the first array is aligned."""
    safetensors.numpy.save_file(dict(weights), path, metadata)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
        header += b" " * (-(8 + size) % _ALIGNMENT)
        with open(path.with_suffix(".tmp"), "wb") as aligned:
            aligned.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(file, aligned, 1 << 24)
    path.with_suffix(".tmp").replace(path)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readme(scorer: "Scorer", weights: Mapping[str, np.ndarray]) -> str:
    first = next(iter(scorer.schema.slots)).name
    size = sum(x.nbytes for x in weights.values()) / 2**20
    return f"""# A scorer of {scorer.schema.name!r}

Exported from {", ".join(scorer.names)}: click probabilities from {scorer.schema.num_slots} slots,
{size:,.1f} MiB of weights, by a program for {", ".join(PLATFORMS)}. It needs
`pip install jax numpy flatbuffers` and nothing else.

    from score import load
    score = load(".")                      # verifies checksums and the worked example of signature.json
    score({{"{first}": ids, ...}})["p"]      # one array per slot, as signature.json says; any number of rows
    jax.grad(lambda w: score.call(w, features)["logit"].sum())(score.weights)

    python score.py features.npz scores.npz

Ids are encoded: `emofm_jax.load_scorer("this directory").encode(...)` makes them of raw values, with schema.json and
vocabulary/. An id that is out of its slot's range makes the scores of its row NaN. An exported program has no vmap and
no forward-mode differentiation. `sha256sum -c checksums.sha256` verifies the files.
"""

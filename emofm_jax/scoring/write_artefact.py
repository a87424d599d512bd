"""Writes a scorer as an artefact, a directory that scores alone: artefact.py says what is in it."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from emofm_jax.data import directories, encode, files
from emofm_jax.data import features as features_lib
from emofm_jax.errors import UserError
from emofm_jax.scoring import artefact, origin, score
from emofm_jax.scoring.scorer import Scorer

PLATFORMS = ("cpu", "cuda", "tpu")
_ALIGNMENT = 64  # bytes, of the first array: XLA:CPU then takes a mapped file without a copy
_EXAMPLE_ROWS = 4
_CHECKSUMS = "checksums.sha256"
# Names of the files of an export: what may be replaced.
_OURS = re.compile(
    r"model\.stablehlo|weights\.safetensors|signature\.json|schema\.json|vocabulary/[^/]+\.parquet"
    r"|score\.py|README\.md|checksums\.sha256"
)


def write(scorer: Scorer, directory: Path) -> None:
    """Writes the artefact into a directory, which appears when it is whole.

    Raises:
      UserError: the directory is there and holds files that no export has written, or another
        program exports there.
    """
    directory = directories.place(directory)
    if directory.is_file():
        raise UserError(f"{directory}: it is a file; name a directory")
    with directories.whole(directory, "exports") as new:
        if other := _other_files(directory):
            holds = f"it holds {other[0]}, which is of no export"
            raise UserError(f"{directory}: {holds}; choose an empty or a new directory")
        _write_files(scorer, new)


def _other_files(directory: Path) -> list[str]:
    """Returns the names of files that an export would delete and that no export has written."""
    listed = directory / _CHECKSUMS
    lines = listed.read_text(errors="replace").splitlines() if listed.exists() else []
    names = [_CHECKSUMS, *(line.split("  ", 1)[-1] for line in lines)]
    known = {name for name in names if _OURS.fullmatch(name)}
    found = (file.relative_to(directory).as_posix() for file in directory.rglob("*"))
    same = lambda name: name in known or name == "vocabulary" or "__pycache__" in name
    return sorted(name for name in found if not same(name))


def _write_files(scorer: Scorer, path: Path) -> None:
    example = features_lib.example(scorer.schema, _EXAMPLE_ROWS)
    weights = _write_program(scorer, path / artefact.PROGRAM, example)
    export = _identity(path / artefact.PROGRAM, weights)
    metadata = {"export": export, "runs": json.dumps(_runs(scorer))}
    _write_weights(path / "weights.safetensors", weights, metadata)
    files.write_json(path / "signature.json", _signature(scorer, export, example))

    scorer.schema.save(path)
    if (scorer.directory / "vocabulary").is_dir():
        encode.copy_vocabularies(scorer.schema, scorer.directory, path)
    files.write_bytes(path / "score.py", Path(score.__file__).read_bytes())
    files.write_text(path / "README.md", _readme(scorer, weights))

    lines = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{digest}  {file.relative_to(path).as_posix()}\n")
    files.write_text(path / _CHECKSUMS, "".join(lines))


def _write_program(scorer: Scorer, path: Path, example: Mapping) -> dict[str, np.ndarray]:
    """Writes the program for any number of rows; returns its weights by their names."""
    found, structure = jax.tree.flatten_with_path(scorer.params)
    name_of = lambda place: jax.tree_util.keystr(place, simple=True, separator="/")
    weights = {name_of(place): np.asarray(x) for place, x in found}
    names = list(weights)

    def program(weights, features):
        params = jax.tree.unflatten(structure, [weights[name] for name in names])
        return scorer.fn(params, features)

    (rows,) = jax.export.symbolic_shape("b")
    shape = lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)
    of_any = exported(weights, {name: shape(x) for name, x in example.items()})
    files.write_bytes(path, of_any.serialize(vjp_order=1))
    return weights


def _signature(scorer: Scorer, export: str, example: Mapping) -> dict:
    """Returns the content of signature.json."""
    with_null = lambda x: np.where(np.isnan(x), np.array(None), x).tolist()
    features = {name: with_null(x) for name, x in example.items()}
    scores = {name: np.asarray(x).tolist() for name, x in scorer(example).items()}
    return {
        "format_version": score.FORMAT_VERSION,
        "export": export,
        "schema": scorer.schema.fingerprint(),
        "types": list(scorer.schema.types),
        **scorer.signature,
        "origins": [dict(one) for one in scorer.origins],
        "example": {"features": features, "scores": scores},
    }


def _runs(scorer: Scorer) -> list[str]:
    return [origin.place(Path(name)) for name in scorer.names]


def _identity(program: Path, weights: Mapping[str, np.ndarray]) -> str:
    """Returns 16 hex digits of program and weights: what tells two exports apart."""
    digest = hashlib.sha256(program.read_bytes())
    for name, array in weights.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _write_weights(path: Path, weights: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a safetensors file; blanks behind its header align the first array."""
    plain = path.with_suffix(".plain")
    with files.whole(path) as temporary:
        safetensors.numpy.save_file(dict(weights), plain, metadata)
        with open(plain, "rb") as file, open(temporary, "wb") as aligned:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) + b" " * (-(8 + size) % _ALIGNMENT)
            aligned.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(file, aligned, 1 << 24)
        plain.unlink()


def _origins(scorer: Scorer) -> str:
    """What is known of the runs, a line each, and a blank one."""
    lines = "".join(f"- {origin.said(one)}\n" for one in scorer.origins)
    return f"{lines}\n" if lines else ""


def _readme(scorer: Scorer, weights: Mapping[str, np.ndarray]) -> str:
    first = scorer.schema.slots[0].name
    size = sum(x.nbytes for x in weights.values()) / 2**20
    return f"""# A scorer of {scorer.schema.name!r}

Exported from {", ".join(_runs(scorer))}: click probabilities from {scorer.schema.num_slots} slots,
{size:,.1f} MiB of weights, by a program for {", ".join(PLATFORMS)}. It needs
`pip install jax numpy flatbuffers` and nothing else.

{_origins(scorer)}    from score import load
    score = load(".")                      # verifies checksums and the worked example
    score({{"{first}": ids, ...}})["p"]      # one array per slot, as signature.json says; any rows
    jax.grad(lambda w: score.call(w, features)["logit"].sum())(score.weights)

    python score.py features.npz scores.npz

Ids are encoded: `emofm_jax.load_scorer("this directory").encode(...)` makes them of raw values,
with schema.json and vocabulary/. An id that is out of its slot's range makes the scores of its
row NaN. An exported program has no vmap and no forward-mode differentiation.
`sha256sum -c checksums.sha256` verifies the files.
"""

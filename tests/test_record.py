"""What a sweep leaves on disk comes back as it was written, by older versions too."""

import json

import pytest

from emofm_jax.sweeping.record import Attempt, Header, Result

pytestmark = pytest.mark.fast

HEADER = {
    "experiment": "experiments/mixers.py",
    "name": "mixers",
    "points": ["hmm", "kind=none"],
    "seeds": [0, 1],
    "reference": "hmm",
    "search": "",
}
OK = {
    "point": "hmm",
    "seed": 1,
    "status": "ok",
    "error": None,
    "overrides": {"model.hidden": [8, 4]},
    "metrics": {"valid": {"auc": 0.7}},
    "seconds": 1.5,
    "peak_memory_mib": None,
    "workdir": "runs/hmm/seed-1",
}
FAILED = OK | {"status": "failed", "error": "no memory", "metrics": None}
OLD = {key: OK[key] for key in ("point", "seed", "status", "overrides", "metrics")}


@pytest.mark.parametrize("line", [OK, FAILED])
def test_results_come_back_with_the_same_text(line):
    found = Result.from_line(json.loads(json.dumps(line)))
    assert json.dumps(found.line()) == json.dumps(line)
    assert found.ok == (line is OK)
    whole = {"line": line, "config": {"seed": 1, "model.hidden": [8, 4]}}
    assert json.dumps(Result.from_json(whole).to_json()) == json.dumps(whole)


def test_headers_come_back_with_the_same_text():
    header = Header.from_json(HEADER)
    written = HEADER | {"identity": header.digest()}
    assert json.dumps(header.to_json()) == json.dumps(written)
    assert Header.from_json(written).digest() == header.digest()


def test_what_older_versions_wrote_is_understood():
    assert Result.from_line(OLD).line() == OK | {"seconds": 0.0}
    old = HEADER | {"points": [{"name": "hmm", "overrides": {}}, {"name": "kind=none"}]}
    assert Header.from_json(old) == Header.from_json(HEADER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "list, not an object"),
        ({"point": "hmm", "seed": 1}, "it has no status, overrides, metrics"),
        (OK | {"status": "going on"}, "status 'going on' is not known"),
        (OK | {"metrics": {}}, "status ok, but no metrics"),
    ],
)
def test_what_is_no_result_is_refused(body, message):
    with pytest.raises(ValueError, match=message):
        Result.from_line(body)


def test_attempts_are_kept(tmp_path):
    assert Attempt.load(tmp_path) == Attempt(None, 0, 0.0)
    Attempt(6, 1, 2.5).save(tmp_path)
    text = (tmp_path / "attempt.json").read_text()
    assert text.startswith('{"step": 6, "deaths": 1, "seconds": 2.5, "xxh3": "')
    assert Attempt.load(tmp_path) == Attempt(6, 1, 2.5)

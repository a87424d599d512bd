"""Mistakes of one who types sweep: one line each, before anything is trained or written."""

import shlex
from pathlib import Path

import pytest

from emofm_jax import cli, sweep

pytestmark = pytest.mark.fast

SWEEP = Path(__file__).parent / "tiny_sweep.py"
MISTAKES = {
    "no sweep": (
        [f"--config={SWEEP.with_name('tiny.py')}"],
        "tiny.py: it has no sweep(); define one that yields",
    ),
    "twice": (
        [f"--config={SWEEP}:twice"],
        "tiny_sweep.py: two points are called 'DNN'; give each its own name",
    ),
    "unknown": (
        [f"--config={SWEEP}:unknown"],
        "point 'x': there is no field 'model.mixer.knd'; did you mean 'model.mixer.kind'?",
    ),
    "clash": (
        [f"--config={SWEEP}:clash"],
        "prepare.synthetic.drift is 1.0, that of 'dnn' 0.0, and both have their data",
    ),
    "idle": (
        [f"--config={SWEEP}:idle"],
        "point 'x': model.stage1 has no effect on dnn, only on hm, hmm, emofmv2; leave it out",
    ),
    "name": ([f"--config={SWEEP}:name"], "the point 'a/b' cannot name a directory"),
    "broken": (
        [f"--config={SWEEP}:broken"],
        "tiny_sweep.py:46: ZeroDivisionError: division by zero; correct the file",
    ),
    "model": (
        [f"--config={SWEEP}:model"],
        "point 'x': config.model.name: 'dnnn' is not known; choose one of wm",
    ),
    "jobs": ([f"--config={SWEEP}", "--jobs=0"], "--jobs=0: it must be at least 1"),
    "trials alone": (
        [f"--config={SWEEP}", "--trials=3"],
        "--trials=3: it has no meaning without a search",
    ),
    "search alone": ([f"--config={SWEEP}", "--search=tpe"], "--search=tpe: it needs --trials=N"),
    "search": (
        [f"--config={SWEEP}", "--search=grid", "--trials=3"],
        "--search=grid: it is not known; choose tpe",
    ),
    "no ranges": (
        [f"--config={SWEEP.with_name('tiny.py')}", "--search=tpe", "--trials=3"],
        "--search needs `ranges`, and it has none",
    ),
    "exit": ([f"--config={SWEEP}:exit"], "tiny_sweep.py:48: SystemExit: no more; correct the file"),
    "seeds": (
        [f"--config={SWEEP}:three"],
        "seeds = 3 is no list of seeds; write seeds = (0, 1, 2), or range(3)",
    ),
    "seed of a point": (
        [f"--config={SWEEP}:seed"],
        "point 'x' has a seed of its own; `seeds` of the file are those",
    ),
    "range set": (
        [f"--config={SWEEP}", "--search=tpe", "--trials=3", "--config.model.activation=tanh"],
        f"--config.model.activation=tanh: {SWEEP} has a range of it; leave it out",
    ),
    "retry": (
        [f"--config={SWEEP}", "--search=tpe", "--trials=3", "--retry"],
        "--retry: trials of a search follow from",
    ),
    "no data": (
        [f"--config={SWEEP}", "--search=tpe", "--trials=3", "--config.prepare.format=tabular"],
        "data: no prepared data; run `python -m emofm_jax.prepare",
    ),
    "seed": ([f"--config={SWEEP}", "--config.seed=4"], "has seeds (0, 1) of its own; leave it out"),
    "set twice": (
        [f"--config={SWEEP}:failing", "--config.model.hidden=(3,)"],
        "point 'huge' sets it itself; leave it out",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, monkeypatch, capsys, mistake):
    monkeypatch.chdir(tmp_path)
    flags, message = MISTAKES[mistake]
    assert sweep.main(["sweep", *flags, "--workdir=mistake"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_list_prints_what_train_understands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def said(*flags, code=0):
        assert sweep.main(["sweep", f"--config={SWEEP}", "--workdir=a b", "--list", *flags]) == code
        assert not any(tmp_path.iterdir())
        return capsys.readouterr()[code > 0]

    commands = said("--config.train.epochs=3").splitlines()
    assert len(commands) == 4
    program, *flags, workdir = shlex.split(commands[2])[2:]
    assert program == "emofm_jax.train" and workdir == "--workdir=a b/runs/lr/seed-0"
    config = cli.config_of(["train", *flags])
    assert (config.model.name, config.train.epochs, config.seed) == ("lr", 3, 0)
    error = said("--config.model.dropout=0.2", code=2)
    assert "point 'lr': train has no flag that sets what it does (model.dropout)" in error
    assert "--search=tpe chooses runs by those before" in said("--search=tpe", "--trials=2", code=2)

"""A small share of benchmarks/mixing.py: data prepared in a loop beside programs, and nothing is mixed."""

from benchmarks import mixing


def test_programs_beside_a_loop_of_preparations_mix_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs = (mixing.trained, mixing.evaluated)
    found, lines = mixing.measure(rounds=3, pause=0.5, programs=programs)
    for counted in found.values():
        assert counted["mixed"] == 0 and counted.total() == 3
    assert all(line.startswith("error: ") for line in lines)

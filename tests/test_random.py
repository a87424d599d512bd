"""The cheap generator: bits without bias or pattern, streams apart, pure in the key."""

import jax
import numpy as np
import pytest

from emofm_jax.nn import random

KEYS = {
    "zero": jax.random.key(0),
    "one": jax.random.key(1),
    "folded": jax.random.fold_in(jax.random.key(0), 7),
}


@pytest.mark.parametrize("name", KEYS)
def test_bits_are_even_and_their_neighbours_independent(name):
    x = np.array(random.words(KEYS[name], (1 << 15,)))
    bits = ((x[:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.float32)
    tolerance = 5 * 0.5 / np.sqrt(len(x))  # five standard errors of a share of one half
    assert np.abs(bits.mean(axis=0) - 0.5).max() < tolerance
    for lag in (1, 2, 16, 512):
        sign = 2 * bits - 1
        agree = 0.5 + 0.5 * np.einsum("ni,nj->ij", sign[lag:], sign[:-lag]) / (
            len(x) - lag
        )  # [32, 32]
        assert np.abs(agree - 0.5).max() < 1.3 * tolerance, lag  # of all pairs of bits
    counts = np.bincount(
        x >> 24, minlength=256
    )  # chi squared of the leading byte, 255 degrees of freedom
    assert abs(((counts - len(x) / 256) ** 2 / (len(x) / 256)).sum() - 255) < 5 * np.sqrt(2 * 255)


def test_streams_of_different_keys_have_nothing_in_common_and_the_same_key_repeats():
    streams = {name: np.array(random.words(key, (1 << 14,))) for name, key in KEYS.items()}
    for a in KEYS:
        np.testing.assert_array_equal(streams[a], np.ravel(random.words(KEYS[a], (128, 128))))
        for b in KEYS:
            if a != b:
                agree = np.unpackbits((~(streams[a] ^ streams[b])).view(np.uint8)).mean()
                assert abs(agree - 0.5) < 5 * 0.5 / np.sqrt(32 * (1 << 14))
                assert (
                    len(np.intersect1d(streams[a], streams[b])) < 5
                )  # one is no shifted copy of the other


def test_normal_numbers_have_the_moments_of_a_normal():
    x = np.array(random.normal(KEYS["folded"], (1 << 20,)), np.float64)
    assert np.isfinite(x).all() and 4 < np.abs(x).max() < 5.5
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * np.sqrt(variance / len(x)), power


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.3, 1.0])
def test_bernoulli_has_its_rate(rate):
    share = np.array(random.bernoulli(KEYS["one"], rate, (1 << 20,))).mean()
    assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / (1 << 20)) + 1e-6

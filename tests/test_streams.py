"""Random streams: the published generator, and draws that depend on their address alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.numerics import streams


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        (0, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(word, key, expected):
    """The known-answer vectors of Salmon et al. (2011) for philox4x32-10."""
    counter = [torch.tensor([word])] * 4
    assert tuple(int(w) for w in streams.philox4x32(counter, key)) == expected


def test_philox_known_answer_of_distinct_words():
    counter = [torch.tensor([w]) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    words = streams.philox4x32(counter, (0xA4093822, 0x299F31D0))
    assert tuple(int(w) for w in words) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), start=st.integers(0, 2**40), count=st.integers(1, 40), size=st.integers(1, 9))
def test_a_sample_is_the_same_in_any_batch(seed, start, count, size):
    ids = torch.arange(start, start + count)
    whole = streams.normal(seed, ids, (size,))
    one_by_one = torch.cat([streams.normal(seed, ids[k : k + 1], (size,)) for k in range(count)])
    assert torch.equal(whole, one_by_one)


def test_moments_and_independence():
    z = streams.normal(3, range(2000), (3, 4, 5), dtype=torch.float64)
    n = z.numel()
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    flat = z.flatten(1)
    correlation = flat.T @ flat / len(flat) - torch.eye(60)
    assert float(correlation.abs().max()) < 5 / math.sqrt(2000)
    u = streams.uniform(3, range(2000), (7,), dtype=torch.float64)
    assert 0 <= float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1
    assert abs(float(u.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / u.numel())


def test_addresses_name_different_numbers():
    a = streams.normal(0, range(4), (8,))
    for other in (
        streams.normal(1, range(4), (8,)),
        streams.normal(0, range(4, 8), (8,)),
        streams.normal(0, range(4), (8,), step=1),
        streams.normal(0, range(4), (8,), purpose="churn"),
    ):
        assert not bool(torch.isin(a, other).any())


def test_float32_is_the_rounded_float64():
    a = streams.normal(5, range(3), (6,), dtype=torch.float64)
    assert torch.equal(a.float(), streams.normal(5, range(3), (6,)))
    assert float(streams.uniform(1, range(1000), (100,)).max()) < 1


def test_permutation():
    order = streams.permutation(1, 100, epoch=3)
    assert torch.equal(order.sort().values, torch.arange(100))
    assert torch.equal(order, streams.permutation(1, 100, epoch=3))
    assert not torch.equal(order, streams.permutation(1, 100, epoch=4))

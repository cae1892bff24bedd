from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.model.base._scales import (
    check_output,
    convert,
    round_stochastically,
    to_counts,
    to_log1p,
    to_normalized,
)

LIBRARY = torch.tensor([[2_000.0], [20_000.0]])
COUNTS = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 10.0]])


def test_counts_to_the_others():
    normalized = to_normalized(COUNTS, "counts", LIBRARY)
    torch.testing.assert_close(normalized, torch.tensor([[0.0, 5.0, 20.0], [1.0, 0.0, 5.0]]))
    torch.testing.assert_close(to_log1p(COUNTS, "counts", LIBRARY), torch.log1p(normalized))
    assert to_counts(COUNTS, "counts", LIBRARY) is COUNTS


def test_log1p_to_the_others_and_back():
    x = to_log1p(COUNTS, "counts", LIBRARY)
    torch.testing.assert_close(to_counts(x, "log1p", LIBRARY), COUNTS, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_normalized(x, "log1p", LIBRARY), to_normalized(COUNTS, "counts", LIBRARY))
    assert to_log1p(x, "log1p", LIBRARY) is x


def test_values_below_zero_have_no_counts_but_keep_their_log():
    x = torch.tensor([[-0.5, 0.5]])
    assert to_normalized(x, "log1p", LIBRARY[:1])[0, 0] == 0
    assert to_log1p(x, "log1p", LIBRARY[:1])[0, 0] == -0.5


def test_delta_is_a_difference_of_logs():
    delta = convert(COUNTS, "counts", "delta", LIBRARY, reference=2 * COUNTS)
    expected = np.log1p([[0, 5, 20], [1, 0, 5]]) - np.log1p([[0, 10, 40], [2, 0, 10]])
    np.testing.assert_allclose(delta, expected, rtol=1e-5, atol=1e-6)


def test_continuous_data_stay_as_they_are():
    x = torch.tensor([[-3.0, 2.0]])
    assert convert(x, "continuous", "normalized", LIBRARY[:1]) is x
    torch.testing.assert_close(convert(x, "continuous", "delta", LIBRARY[:1], reference=x - 1), torch.ones(1, 2))
    for output in ("counts", "log1p"):
        with pytest.raises(ValueError, match="continuous.*'normalized'"):
            check_output(output, "continuous", "Model")
        check_output(output, "counts", "Model")
    with pytest.raises(ValueError, match="'expression'"):
        check_output("expression", "counts", "Model")


def test_rounding_is_whole_near_and_unbiased():
    x = torch.tensor([0.0, 0.25, 1.5, 3.0, 7.9]).repeat(4_000, 1)
    rounded = round_stochastically(x, torch.Generator().manual_seed(0))
    assert torch.equal(rounded, rounded.round())
    assert ((rounded - x).abs() < 1).all()
    assert torch.equal(rounded[:, [0, 3]], x[:, [0, 3]])
    np.testing.assert_allclose(rounded.mean(0), x[0], atol=0.03)


def test_rounding_uses_the_generator_only():
    before = torch.get_rng_state()
    one = round_stochastically(torch.full((5, 5), 0.5), torch.Generator().manual_seed(3))
    two = round_stochastically(torch.full((5, 5), 0.5), torch.Generator().manual_seed(3))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())

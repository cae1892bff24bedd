from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_seed():
    """Random tensors are the same in every run, and leave no trace."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield

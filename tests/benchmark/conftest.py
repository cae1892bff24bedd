from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def toys(monkeypatch):
    """The module ``toys`` beside this file, importable in other processes too, which get the path of this one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import toys

    return toys

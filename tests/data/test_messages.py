import pytest

from scvi_causal.data._messages import did_you_mean, listed, plural, suggest


def test_listed_says_how_many_are_left_out():
    assert listed(["a", 2]) == "'a', '2'"
    assert listed(range(10), limit=3) == "'0', '1', '2' and 7 more"
    assert listed([]) == ""


def test_plural():
    assert [plural(n, "cell") for n in (0, 1, 2000)] == ["0 cells", "1 cell", "2,000 cells"]
    assert plural(2, "copy", "copies") == "2 copies"


@pytest.mark.parametrize(
    ("name", "expected"), [("klf1", ["KLF1"]), ("pert", ["perturbation"]), ("KLF2", ["KLF1"]), ("zz", []), ("", [])]
)
def test_suggest(name, expected):
    assert suggest(name, ["KLF1", "perturbation", "batch"]) == expected


def test_did_you_mean():
    assert did_you_mean("bach", ["batch"]) == " Did you mean 'batch'?"
    assert did_you_mean("zz", ["batch"]) == ""

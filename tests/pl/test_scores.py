"""Pictures of scores and of populations: what is drawn is what was given, in the right place and colour."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_causal import pl
from scvi_causal.pl._style import CATEGORIES, COLORS


@pytest.fixture(autouse=True)
def _headless():
    backend, settings = mpl.get_backend(), dict(mpl.rcParams)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)
    assert dict(mpl.rcParams) | {"backend": 0} == settings | {"backend": 0}  # a picture changes no global setting


@pytest.fixture
def values():
    index = pd.MultiIndex.from_tuples([("A", "T"), ("B", "T"), ("C", "")], names=["perturbation", "context"])
    return pd.DataFrame({"mine": [0.3, 0.6, 0.9], "base": [0.2, 0.5, np.nan]}, index=index)


@pytest.fixture
def ceiling(values):
    value = np.array([0.8, 0.95, 0.4])
    # in another order than the values: rows are matched by name
    return pd.DataFrame({"value": value, "low": value - 0.1, "high": value + 0.05}, index=values.index).iloc[::-1]


def points(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_xydata()


def test_scores_puts_each_model_in_the_row_of_its_population(values, ceiling):
    ax = pl.scores(values, baseline="base", ceiling=ceiling, xlabel="Pearson", title="title")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B · T", "A · T", "C", "mean"]  # by the ceiling
    rows = ax.get_yticks()
    np.testing.assert_allclose(points(ax, "mine"), np.column_stack([[0.6, 0.3, 0.9, 0.6], rows]))
    np.testing.assert_allclose(points(ax, "base")[:, 0], [0.5, 0.2, np.nan, 0.35])
    bands = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches[:3]]
    np.testing.assert_allclose(bands, [(0.85, 1.0), (0.7, 0.85), (0.3, 0.45)])
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["mine", "base", "noise ceiling (95 %)"]
    assert (ax.get_xlabel(), ax.get_title(loc="left")) == ("Pearson", "title")
    assert rows[0] < rows[-1]  # the axis is turned: what can be predicted best is on top
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_scores_order_follows_what_is_better(values, ceiling):
    def names(**options):
        return [t.get_text()[0] for t in pl.scores(values, **options).get_yticklabels()][:-1]

    assert names(ceiling=ceiling, better="lower") == ["C", "A", "B"]
    assert names(ceiling=ceiling, better="closer") == ["A", "B", "C"]
    assert names() == ["C", "B", "A"]  # by the mean of the models


def test_scores_of_many_populations_draws_some_and_says_so():
    values = pd.DataFrame({"mine": np.linspace(0, 1, 101)}, index=[f"P{i}" for i in range(101)])
    ax = pl.scores(values, max_rows=11, title="title")
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ["P100", "P90", "P80"]
    assert ax.get_title(loc="left") == "title (11 of 101 populations)"
    assert points(ax, "mine")[-1, 0] == pytest.approx(0.5)  # the mean is over all of them


def test_scores_far_outside_are_arrows_at_the_edge():
    values = pd.DataFrame(
        {"mine": [*np.linspace(0.4, 0.6, 19), -50.0], "base": 0.5}, index=[f"P{i}" for i in range(20)]
    )
    ax = pl.scores(values, baseline="base")
    low, high = ax.get_xlim()
    assert -0.5 < low < 0.4
    assert 0.6 < high < 1
    arrows = [line for line in ax.lines if line.get_marker() == "<"]
    assert [line.get_xydata()[0, 0] for line in arrows] == [low]
    assert len(points(ax, "mine")) == 19  # the mean over all populations is outside as well


def test_scores_mutes_the_other_baselines(values, ceiling):
    values = values.assign(other=[0.1, 0.2, 0.3], third=[0.0, 0.1, 99.0])
    ax = pl.scores(values, baseline="base", ceiling=ceiling, muted=["other", "third"], limits=(-1, 2))
    rings = points(ax, "other baselines")
    np.testing.assert_allclose(rings[:, 0], [0.2, 0.1, 0.1, 0.0, 0.3, 0.2])
    far = [line.get_xydata() for line in ax.lines if line.get_marker() == ">"]  # 99, and the mean with it
    np.testing.assert_allclose(far[0], np.column_stack([[2, 2], ax.get_yticks()[-2:]]))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "mine",
        "other baselines",
        "base",
        "noise ceiling (95 %)",
    ]
    assert pl.scores(values, legend=False).get_legend() is None
    order = pl.scores(values, ceiling=ceiling, sort=False).get_yticklabels()
    assert [t.get_text()[0] for t in order] == ["A", "B", "C", "m"]
    with pytest.raises(ValueError, match="'othr'.* Did you mean 'other'"):
        pl.scores(values, muted=["othr"])


def test_names_are_no_mathematics():
    values = pd.DataFrame({r"$\frac$": [0.3]}, index=[r"$\frac$"])
    pl.scores(values).figure.draw_without_rendering()
    pl.skill(values).figure.draw_without_rendering()
    names = [r"$\frac$", "b", "c"]
    pl.effects(np.arange(3.0), np.arange(3.0), names, title=r"$\frac$").figure.draw_without_rendering()


def test_scores_fit_values_and_not_the_ends_of_wide_intervals():
    index = [f"P{i}" for i in range(10)]
    values = pd.DataFrame({"mine": np.linspace(0.5, 1.0, 10)}, index=index)
    ceiling = pd.DataFrame({"value": 0.2, "low": 0.1, "high": 0.3}, index=index)
    ceiling.loc["P3", "high"] = 500.0
    low, high = pl.scores(values, ceiling=ceiling).get_xlim()
    assert low < 0.1
    assert 1.0 < high < 3.0


def test_scores_on_given_axes_and_on_degenerate_input(values, ceiling):
    _, ax = plt.subplots()
    assert pl.scores(values, ax=ax, limits=(-1, 2)) is ax
    assert ax.get_xlim() == (-1, 2)
    pl.scores(values * np.nan, ceiling=ceiling[["value"]])  # nothing was scored
    pl.scores(values.iloc[:1], ceiling=ceiling)
    pl.scores(values * 0).figure.draw_without_rendering()
    with pytest.raises(ValueError, match="'bass'.* Did you mean 'base'"):
        pl.scores(values, baseline="bass")
    with pytest.raises(ValueError, match="needs a column 'value'"):
        pl.scores(values, ceiling=ceiling[["low"]])
    with pytest.raises(ValueError, match="0 populations"):
        pl.scores(values.iloc[:0])


def test_models_are_told_apart_by_shape_and_colour():
    values = pd.DataFrame({f"m{i}": [0.1 * i, 0.2] for i in range(8)}, index=["A", "B"])
    lines = [line for line in pl.scores(values).lines if line.get_label().startswith("m")]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 8


def test_skill_writes_and_colours_every_cell():
    table = pd.DataFrame({"Pearson": [0.5, 0.0, np.nan], "MSE": [-3.0, -0.0, 1.0]}, index=["mine", "base", "other"])
    raw = pd.DataFrame({"MSE": [1.25, 0.5, np.nan], "Pearson": [0.71, 0.6, 0.3]}, index=["base", "other", "mine"])
    ax = pl.skill(table, raw, title="title")
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.50", "0.300", "−3.00", "0.00", "0.710", "0.00", "1.25", "–", "0.600", "1.00", "0.500"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["mine", "base", "other"]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, [[0.5, -1.0], [0.0, 0.0], [np.nan, 1.0]])  # colours end at -1
    assert ax.images[0].get_clim() == (-1, 1)  # the baseline is the neutral middle
    assert len(ax.figure.axes) == 2
    assert len(pl.skill(table, colorbar=False).figure.axes) == 1


def test_skill_colours_are_not_red_and_green():
    from scvi_causal.pl._skill import _diverging

    low, middle, high = (np.array(_diverging()(x))[:3] for x in (0.0, 0.5, 1.0))
    assert low[0] > low[2] + 0.5  # orange: much red, no blue
    assert high[2] > high[0] + 0.5  # blue
    assert np.ptp(middle) < 0.02  # neutral


def test_skill_refuses_what_does_not_fit():
    table = pd.DataFrame({"MSE": [0.1]}, index=["mine"])
    with pytest.raises(ValueError, match=r"'models': \['mine'\]"):
        pl.skill(table, table.rename(index={"mine": "other"}))
    with pytest.raises(ValueError, match="0 models"):
        pl.skill(table.iloc[:0])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_populations_embeds_all_three_together(form):
    rng = np.random.default_rng(0)
    control, observed, predicted = rng.normal(size=(3, 60, 20)).astype(np.float32)
    ax = pl.populations(form(control), form(observed + 8), form(predicted + 8), max_cells=40, title="title")
    cells = ax.collections[0]
    colors = np.array([mpl.colors.to_hex(c).upper() for c in cells.get_facecolors()])
    where = {name: cells.get_offsets()[colors == COLORS[name].upper()] for name in COLORS}
    assert [len(where[name]) for name in ("control", "observed", "counterfactual")] == [40, 40, 40]
    centres = {name: points.mean(0) for name, points in where.items()}
    near = np.linalg.norm(centres["counterfactual"] - centres["observed"])
    far = np.linalg.norm(centres["control"] - centres["observed"])
    assert far > 3 * near
    assert ax.get_title() == "title"


def test_populations_is_reproducible_and_works_on_few_cells():
    x = np.random.default_rng(0).normal(size=(3, 4, 3))
    first, second = (pl.populations(*x, seed=1).collections[0].get_offsets() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pl.populations(x[0][:, :1], x[1][:, :1], x[2][:, :1])  # a single gene
    with pytest.raises(ValueError, match="at least 5 cells, got 3"):
        pl.populations(x[0][:1], x[1][:1], x[2][:1])
    with pytest.raises(ValueError, match="'observed': 2"):
        pl.populations(x[0], x[1][:, :2], x[2])


def test_the_colours_are_those_of_the_house(values):
    ax = pl.scores(values)
    assert [line.get_color() for line in ax.lines if line.get_label() in values.columns] == list(CATEGORIES[:2])

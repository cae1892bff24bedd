"""The pictures show what they are given: positions, labels, colours; and touch nothing else."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_causal import pl
from scvi_causal.pl._style import CATEGORIES, COLORS, palette


@pytest.fixture(autouse=True)
def _headless():
    backend, settings = mpl.get_backend(), dict(mpl.rcParams)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)
    assert dict(mpl.rcParams) | {"backend": 0} == settings | {"backend": 0}  # a picture changes no global setting


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"perturbation": np.repeat(["control", "A", "B"], 20), "depth": rng.random(60)},
        index=[f"cell{i}" for i in range(60)],
    )
    return ad.AnnData(obs=obs, obsm={"X_sccvae": rng.normal(size=(60, 4)), "X_umap": rng.normal(size=(60, 2))})


def labels(ax):
    return [text.get_text() for text in ax.texts]


def test_effects_places_and_labels_genes():
    rng = np.random.default_rng(0)
    observed = np.concatenate([[5.0, -4.0, 3.0], rng.normal(0, 0.1, 97)])
    predicted = observed * 0.5
    names = [f"gene{i}" for i in range(100)]
    ax = pl.effects(observed, predicted, names, n_top=3, n_de=10, title="title")
    assert {"gene0", "gene1", "gene2", "r = 1.000"} == set(labels(ax))
    weak, strong = (collection.get_offsets() for collection in ax.collections)
    assert (len(weak), len(strong)) == (90, 10)
    np.testing.assert_allclose(strong[0], [5.0, 2.5])
    assert ax.get_xlim() == ax.get_ylim()  # else the diagonal means nothing
    assert (ax.get_title(), ax.get_ylabel()) == ("title", "predicted effect")


def test_effects_labels_do_not_overlap():
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 1, 60)
    effect[:10] = 4 + rng.normal(0, 0.02, 10)  # ten of the labels want the same place
    ax = pl.effects(effect, effect, [f"GENE{i}" for i in range(60)], n_top=10)
    ax.figure.draw_without_rendering()
    # of the text alone: an annotation's own extent includes its line
    boxes = [mpl.text.Text.get_window_extent(t) for t in ax.texts if t.get_text().startswith("GENE")]
    assert len(boxes) == 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_effects_on_given_axes_without_names_and_on_degenerate_input():
    _, ax = plt.subplots()
    assert pl.effects(np.zeros(4), np.zeros(4), ax=ax) is ax
    assert ax.get_xlim()[0] < 0 < ax.get_xlim()[1]
    assert pl.effects(np.zeros(4), np.ones(4), limits=(-3, 5)).get_ylim() == (-3, 5)
    assert labels(ax) == []  # no correlation where nothing varies
    with pytest.raises(ValueError, match="'observed': 4, 'predicted': 3"):
        pl.effects(np.zeros(4), np.zeros(3))
    with pytest.raises(ValueError, match="'gene_names': 2"):
        pl.effects(np.zeros(4), np.zeros(4), ["a", "b"])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_genes_picks_the_strongest_and_marks_means(form):
    rng = np.random.default_rng(0)
    control, observed, predicted = rng.poisson(1.0, (3, 50, 6)).astype(float)
    observed[:, 4] += 5
    observed[:, 2] += 3
    predicted[:, 4] = 2.0  # a gene without spread has no density, and still its mean
    names = ["a", "b", "c", "d", "e", "f"]
    ax = pl.genes(form(control), form(observed), form(predicted), names, n_top=2, title="title")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["e", "c"]
    means = np.concatenate([c.get_offsets() for c in ax.collections if type(c).__name__ == "PathCollection"][:3])
    expected = [x[:, [4, 2]].mean(0) for x in (control, observed, predicted)]
    np.testing.assert_allclose(means[:, 1], np.ravel(expected))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["control", "observed", "counterfactual", "mean"]


def test_genes_refuses_unknown_names_with_look_alikes():
    cells = np.ones((5, 2))
    with pytest.raises(ValueError, match="1 genes .*'STAT3': .*'STAT1'"):
        pl.genes(cells, cells, cells, ["STAT1", "JAK2"], genes=["STAT3"])
    with pytest.raises(ValueError, match="'observed': 1"):
        pl.genes(cells, cells[:, :1], cells, ["STAT1", "JAK2"])
    pl.genes(cells[:1], cells, cells, ["STAT1", "JAK2"])  # a single cell


def test_latent_draws_a_panel_per_column_and_leaves_adata_alone(adata):
    before = adata.copy()
    axes = pl.latent(adata, basis="X_umap", color=["perturbation", "depth"], max_cells=30)
    assert [ax.get_title() for ax in axes] == ["perturbation", "depth"]
    assert len(axes[0].collections[0].get_offsets()) == 30
    colors = {mpl.colors.to_hex(c) for c in axes[0].collections[0].get_facecolors()}
    assert colors == {COLORS["control"], CATEGORIES[0].lower(), CATEGORIES[1].lower()}
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obsm) == list(before.obsm)
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_latent_computes_the_umap_of_the_representation(adata):
    adata.obsm["X_sccvae"][:20] += 50  # far apart in the representation: far apart in the picture
    (ax,) = pl.latent(adata, "X_sccvae")
    points = ax.collections[0].get_offsets()
    grey = np.array([mpl.colors.to_hex(c) == COLORS["control"] for c in ax.collections[0].get_facecolors()])
    gap = np.linalg.norm(points[grey].mean(0) - points[~grey].mean(0))
    assert gap > 2 * points[grey].std(0).max()


def test_latent_refuses_missing_keys(adata):
    with pytest.raises(ValueError, match=r"adata.obs: \['perturbations'\].*'perturbation'"):
        pl.latent(adata, color="perturbations")
    with pytest.raises(ValueError, match=r"adata.obsm: \['X_scvae'\].*'X_sccvae'"):
        pl.latent(adata, "X_scvae")
    with pytest.raises(ValueError, match="2 colours need as many axes, got 1"):
        pl.latent(adata, basis="X_umap", color=["perturbation", "depth"], axes=[plt.subplots()[1]])


def test_palette_gives_different_colours():
    for n in (1, 8, 9, 30):
        assert len(set(palette(n))) == n

"""The treatment table: what is asked for, and the moments of what was observed."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from scvi_causal import VCI
from scvi_causal.dataloaders import get_control_mask, get_strata
from scvi_causal.model.vci._treatments import build_table, share_slots

COVARIATES = {"categorical_covariate_keys": ["cell_type"]}


def make_table(screen, rows=None, treatments="any", include_control=True, excluded=None):
    VCI.setup_anndata(screen, **COVARIATES)
    manager = VCI(screen, n_latent=2, n_hidden=4).adata_manager
    rows = np.arange(screen.n_obs) if rows is None else rows
    return manager, build_table(manager, rows, screen.n_vars, "log1p", treatments, include_control, excluded)


def test_moments_are_those_of_stratum_and_treatment(screen):
    rows = np.arange(0, screen.n_obs, 2)
    manager, table = make_table(screen, rows)
    x = screen.X.toarray()
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    stratum, treatment = table.stratum_of_cell.numpy(), table.treatment_of_cell.numpy()
    assert (stratum == get_strata(manager)).all()
    for cell in rows[::17]:
        same = rows[(stratum[rows] == stratum[cell]) & (treatment[rows] == treatment[cell])]
        group = table.group[stratum[cell], treatment[cell]]
        np.testing.assert_allclose(table.mean[group], x[same].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(table.variance[group], x[same].var(0), rtol=1e-3, atol=1e-4)
        label = screen.obs["perturbation"].iloc[same].astype(str).unique()
        assert len(label) == 1
    assert not table.state_dict()  # made anew before each training


def test_published_sampler(screen):
    """Never control, blind to the stratum, as often as in the training cells; nothing named like a control."""
    rows = np.arange(0, screen.n_obs, 2)
    manager, table = make_table(screen, rows, "published", include_control=False)
    treated = rows[~get_control_mask(manager)[rows]]
    drawn = table.draw(torch.arange(2).repeat(10_000))
    assert (table.dosage[drawn] != 0).any(1).all()
    counts = np.bincount(drawn, minlength=table.n_treatments)
    expected = np.bincount(table.treatment_of_cell[treated], minlength=table.n_treatments) / len(treated)
    asked = expected > 0
    assert (counts[~asked] == 0).all()
    assert stats.chisquare(counts[asked], expected[asked] * counts.sum()).pvalue > 1e-3
    named = np.asarray(screen.obs["perturbation"] == screen.obs["perturbation"].iloc[treated[0]])
    _, table = make_table(screen, rows, "published", include_control=False, excluded=named)
    gone = table.treatment_of_cell[treated[0]]
    assert not (table.draw(torch.zeros(2_000).long()) == gone).any()


def test_observed_treatments_are_those_of_the_stratum(screen):
    labels, types = screen.obs["perturbation"].astype(str), screen.obs["cell_type"].astype(str)
    absent = sorted(set(labels) - {"control"})[0]
    first = sorted(set(types))[0]
    keep = np.flatnonzero(~((labels == absent) & (types == first)).to_numpy())
    for treatments, appears in (("observed", False), ("any", True)):
        manager, table = make_table(screen, keep, treatments)
        column = int(VCI(screen)._vocabulary.index(absent))
        treatment = int(torch.nonzero(table.dosage[:, column])[0])
        stratum = int(table.stratum_of_cell[np.flatnonzero(types == first)[0]])
        drawn = table.draw(torch.full((4_000,), stratum))
        assert bool((drawn == treatment).any()) == appears
        assert table.group[stratum, treatment] == -1
        assert (table.dosage[drawn] == 0).all(1).any()  # control is asked for, too


def test_cells_share_targets():
    stratum = torch.tensor([3, 1] * 40 + [7])
    slot = share_slots(stratum, 16)
    assert slot.unique().tolist() == [0, 1, 2, 3, 4]
    for s in slot.unique():
        assert len(stratum[slot == s].unique()) == 1
    assert (slot.bincount() >= 1).all()
    assert share_slots(stratum, 1).unique().numel() == len(stratum)


def test_targets_from_the_batch_were_received_in_the_stratum(screen):
    _, table = make_table(screen)
    cells = torch.arange(0, screen.n_obs, 3)
    stratum, own = table.stratum_of_cell[cells], table.treatment_of_cell[cells]
    drawn = table.draw_from_batch(stratum, own, 4)
    for s in stratum.unique():
        assert set(drawn[stratum == s].tolist()) <= set(own[stratum == s].tolist())


def test_a_split_without_perturbed_cells_is_explained(screen):
    controls = np.flatnonzero((screen.obs["perturbation"] == "control").to_numpy())
    with pytest.raises(ValueError, match="no counterfactual treatment"):
        make_table(screen, controls, include_control=False)


def test_combinations_of_few_cells_have_the_effects_of_their_tokens():
    """Cells that are conditions of their own would be their own means; no cell here has one token only."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "A+B", "A+C", "B+C", "A+B+C"], [60, 9, 9, 9, 9])
    carried = np.array([[token in label.split("+") for token in "ABC"] for label in labels])
    x = rng.poisson(20.0 * np.exp(carried @ rng.normal(0.0, 0.5, (3, 30))))
    obs = pd.DataFrame({"perturbation": labels}, [f"c{i}" for i in range(len(x))])
    adata = ad.AnnData(csr_matrix(x.astype(np.float32)), obs)
    VCI.setup_anndata(adata)
    manager = VCI(adata, n_latent=2, n_hidden=4).adata_manager
    means = {}
    for shrink in (False, True):
        table = build_table(manager, np.arange(len(x)), 30, "log1p", "any", True, shrink=shrink)
        named = zip(table.dosage.int().tolist(), table.group[0], strict=True)
        means[shrink] = {"".join(t for t, d in zip("ABC", row, strict=True) if d): table.mean[g] for row, g in named}
    found = {name: mean - means[True][""] for name, mean in means[True].items()}
    np.testing.assert_allclose(found["ABC"], (found["AB"] + found["AC"] + found["BC"]) / 2, atol=1e-4)
    raw = {name: mean - means[False][""] for name, mean in means[False].items()}
    assert (raw["ABC"] - (raw["AB"] + raw["AC"] + raw["BC"]) / 2).norm() > 0.3
    assert (found["ABC"] - raw["ABC"]).norm() < 0.5 * raw["ABC"].norm()

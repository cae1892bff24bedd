from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import read_h5ad
from scipy import sparse

from scvi_causal.data import (
    corrupt_grn,
    degree_matched_random_grn,
    grn_overlap,
    random_grn,
    simulate_screen,
    topological_order,
)
from scvi_causal.data._simulate._truth import CountScale, Expectation

CHAIN = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"], "weight": [0.5, -0.4]})


def small(**kwargs):
    defaults = {"n_genes": 12, "n_perturbations": 4, "n_cells_per_perturbation": 30, "n_control": 60, "seed": 3}
    return simulate_screen(**(defaults | kwargs))


def log1p_normalized(adata):
    return (sparse.diags_array(1e4 / adata.obs["library"].to_numpy()) @ adata.X).log1p().tocsr()


# ---------------------------------------------------------------------------------------------------------- the truth
def test_shift_propagates_along_a_chain_as_the_product_of_weights():
    screen = simulate_screen(
        graph=CHAIN, perturbations=["A", "B"], shift=-2.0, n_control=10, n_cells_per_perturbation=5
    )
    expected = [[-2.0, -2.0 * 0.5, -2.0 * 0.5 * -0.4], [0.0, -2.0, -2.0 * -0.4]]
    np.testing.assert_allclose(screen.total_effects[["A", "B", "C"]], expected)
    # with full penetrance, one cell type and Gaussian noise, the log of the mean moves by the same amount
    np.testing.assert_allclose(screen.log_fold_changes, screen.total_effects, atol=1e-10)


def test_feedback_is_the_sum_of_the_geometric_series():
    cycle = pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"], "weight": [0.5, 0.6]})
    screen = simulate_screen(graph=cycle, perturbations=["A"], shift=1.0, n_control=10, n_cells_per_perturbation=5)
    np.testing.assert_allclose(screen.total_effects.loc["A", ["A", "B"]], [1 / 0.7, 0.5 / 0.7])


def test_penetrance_mixes_hit_and_untouched_cells():
    screen = simulate_screen(
        graph=CHAIN, perturbations=["A"], shift=-2.0, penetrance=0.6, n_control=10, n_cells_per_perturbation=500
    )
    expected = np.log(0.6 * np.exp([-2.0, -1.0, 0.4]) + 0.4)
    np.testing.assert_allclose(screen.log_fold_changes.loc["A", ["A", "B", "C"]], expected, atol=1e-10)
    perturbed = screen.adata.obs["perturbation"] == "A"
    assert abs(screen.adata.obs.loc[perturbed, "hit"].mean() - 0.6) < 0.07
    assert not screen.adata.obs.loc[~perturbed, "hit"].any()


def test_combinations_and_dosages_add_up_on_the_log_scale():
    screen = small(n_combinations=2, dosages=[0.5, 1.0])
    singles = {key[0]: row for key, row in screen.total_effects.iterrows() if key[1] == "1"}
    for (label, dosage), row in screen.total_effects.iterrows():
        doses = [float(d) for d in dosage.split("+")]
        expected = sum(d * singles[token] for d, token in zip(doses, label.split("+"), strict=True))
        np.testing.assert_allclose(row, expected)
    assert screen.adata.obs.loc[screen.adata.obs["perturbation"] == "control", "dosage"].unique().tolist() == ["0"]


@pytest.mark.parametrize("dispersion", [2.0, np.inf])
def test_exact_effects_are_the_means_of_many_cells(dispersion):
    screen = simulate_screen(
        n_genes=15, n_perturbations=2, n_combinations=1, n_control=20_000, n_cells_per_perturbation=10_000,
        penetrance=0.7, n_cell_types=2, interaction_sd=0.4, n_batches=2, n_factors=1, dispersion=dispersion, seed=5,
    )  # fmt: skip
    expression, label = log1p_normalized(screen.adata), screen.adata.obs["perturbation"].to_numpy()
    control = expression[label == "control"].toarray()
    errors = []
    for name, effect in screen.effects.iterrows():
        cells = expression[label == name].toarray()
        standard_error = np.sqrt(cells.var(0) / len(cells) + control.var(0) / len(control))
        errors.append((cells.mean(0) - control.mean(0) - effect.to_numpy()) / standard_error)
    assert np.abs(errors).max() < 4.5
    assert np.std(errors) < 1.3


def test_confounding_biases_the_plain_difference_but_not_the_truth():
    arguments = {"n_cell_types": 3, "cell_type_sd": 1.0, "n_cells_per_perturbation": 2000, "n_control": 4000, "seed": 1}
    screen = small(**arguments, confounding=2.0)
    expression, obs = log1p_normalized(screen.adata), screen.adata.obs
    control = (obs["perturbation"] == "control").to_numpy()
    label = screen.effects.index[0]
    perturbed = (obs["perturbation"] == label).to_numpy()
    plain = np.ravel(expression[perturbed].mean(0) - expression[control].mean(0))
    share = obs.loc[control, "cell_type"].value_counts(normalize=True)
    in_type = {name: (obs["cell_type"] == name).to_numpy() for name in share.index}
    adjusted = sum(
        share[name]
        * np.ravel(expression[perturbed & in_type[name]].mean(0) - expression[control & in_type[name]].mean(0))
        for name in share.index
    )
    truth = screen.effects.loc[label].to_numpy()
    assert np.abs(plain - truth).max() > 5 * np.abs(adjusted - truth).max()


def test_effects_by_cell_type_average_to_the_effects():
    screen = small(n_cell_types=3, interaction_sd=0.5)
    averaged = sum(
        share * screen.effects_by_cell_type.xs(name, level="cell_type")
        for name, share in zip(screen.control_mean.index, screen._world.type_share, strict=True)
    )
    np.testing.assert_allclose(averaged.loc[screen.effects.index], screen.effects, atol=1e-12)
    assert screen.effects_by_cell_type.groupby("perturbation").std().to_numpy().max() > 0.05


def test_counterfactual_keeps_the_cell_and_replaces_its_perturbation():
    screen = small(n_cell_types=2, interaction_sd=0.3, n_combinations=1)
    factual = np.log(screen.counterfactual("control"))
    label = screen.effects.index[0]
    moved = np.log(screen.counterfactual(label)) - factual
    code = screen.adata.obs["cell_type"].cat.codes.to_numpy()
    expected = screen._world.token_effects[code, screen.tokens.index(label)]
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    np.testing.assert_array_equal(screen.counterfactual(label, [3, 1]), screen.counterfactual(label)[[3, 1]])
    # the cells' own counts scatter around their own rate
    control = (screen.adata.obs["perturbation"] == "control").to_numpy()
    rate = np.exp(factual[control]) / 1e4 * screen.adata.obs["library"].to_numpy()[control, None]
    assert abs(screen.adata.X[control].sum() / rate.sum() - 1) < 0.05


def test_expectation_agrees_with_the_moments_of_known_laws():
    scale = CountScale(library_size=5000.0, library_sd=0.0, dispersion=np.inf)
    expectation = Expectation(np.array([0.0, 0.3]), scale, -9.0, -1.0)
    mean = np.array([-8.0, -8.0])
    np.testing.assert_allclose(expectation.rate(mean), np.exp([-8.0, -8.0 + 0.045]))
    poisson = 5000 * np.exp(-8.0)
    counts = np.arange(1, 60)
    pmf = np.exp(counts * np.log(poisson) - poisson - np.cumsum(np.log(counts)))
    np.testing.assert_allclose(expectation.log1p(mean)[0], pmf @ np.log1p(2 * counts), rtol=1e-4)


@pytest.mark.parametrize("dispersion", [1.0, 10.0, np.inf])
def test_both_ways_to_sum_over_counts_meet(dispersion):
    scale = CountScale(1e4, 0.3, dispersion)
    means = np.array([99.9, 100.1])
    below, above = scale._expected_log1p_at(means, 1.0, scale._gamma_quantiles())
    assert abs(above - below - np.log(means[1] / means[0])) < 2e-3


# ----------------------------------------------------------------------------------------------------------- the cells
def test_layout_of_the_anndata():
    screen = small(n_combinations=1, n_untargeted=1, n_cell_types=2, n_batches=2)
    adata = screen.adata
    assert sparse.issparse(adata.X)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert (np.asarray(adata.X.sum(1)) > 0).all()
    assert set(adata.obs) == {"perturbation", "cell_type", "batch", "library", "hit"}
    counts = adata.obs["perturbation"].value_counts()
    assert counts["control"] == 60
    assert set(counts.drop("control")) == {30}
    assert "compound_0" in counts.index
    assert "compound_0" not in adata.var_names
    assert screen.hits.shape == (adata.n_obs, len(screen.tokens))
    pd.testing.assert_frame_equal(adata.uns["grn"], screen.grn)


def test_the_anndata_survives_a_file(tmp_path):
    adata = small(n_combinations=1, dosages=[0.5, 1.0]).adata
    adata.write_h5ad(tmp_path / "screen.h5ad")
    again = read_h5ad(tmp_path / "screen.h5ad")
    assert (again.X != adata.X).nnz == 0
    assert again.obs["dosage"].astype(str).tolist() == adata.obs["dosage"].tolist()
    assert again.uns["grn"]["weight"].tolist() == adata.uns["grn"]["weight"].tolist()


def test_same_seed_same_screen_other_seed_another_one():
    first, again, other = small(), small(), small(seed=4)
    assert (first.adata.X != again.adata.X).nnz == 0
    pd.testing.assert_frame_equal(first.effects, again.effects)
    assert (first.adata.X != other.adata.X).nnz > 0


def test_the_global_random_state_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    small()
    assert np.random.random() == expected  # noqa: NPY002


def test_a_count_panel_looks_like_one():
    adata = simulate_screen(seed=0, n_perturbations=5).adata
    assert 0.3 < 1 - adata.X.nnz / np.prod(adata.shape) < 0.8
    assert abs(np.log(adata.obs["library"]).std() - 0.45) < 0.05
    normalized = np.ravel((sparse.diags_array(1e4 / adata.obs["library"].to_numpy()) @ adata.X).mean(0))
    assert 1.0 < normalized.mean() < 3.0
    assert np.log(normalized).std() > 0.5


def test_unmeasured_states_correlate_genes_without_edges():
    empty = pd.DataFrame({"source": ["A"], "target": ["B"], "weight": [0.0]})
    arguments = {"graph": empty, "n_genes": 8, "perturbations": ["A"], "n_control": 3000, "mean_expression": 50.0}
    plain = simulate_screen(**arguments, library_sd=0.0)
    hidden = simulate_screen(**arguments, library_sd=0.0, n_factors=1, factor_sd=0.8)

    def correlation(screen):
        control = (screen.adata.obs["perturbation"] == "control").to_numpy()
        return np.abs(np.corrcoef(np.log1p(screen.adata.X[control].toarray()).T)[np.triu_indices(8, 1)]).max()

    assert correlation(plain) < 0.1
    assert correlation(hidden) > 0.3


def test_table_of_perturbations_and_per_token_numbers():
    table = pd.DataFrame({"token": ["drug", "drug", "A"], "gene": ["A", "B", "A"], "shift": [1.0, -1.0, 2.0]})
    screen = simulate_screen(graph=CHAIN, perturbations=table, penetrance={"drug": 0.0}, n_control=10)
    np.testing.assert_allclose(screen.total_effects.loc["drug", ["A", "B", "C"]], [1.0, -0.5, 0.2])
    np.testing.assert_allclose(screen.effects.loc["drug"], 0.0, atol=1e-12)
    activated = simulate_screen(graph=CHAIN, perturbations=["A", "B"], shift={"A": 1.0, "B": -1.0}, n_control=10)
    assert activated.targets.set_index("token")["shift"].to_dict() == {"A": 1.0, "B": -1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_perturbations": 13}, "exceeds the 12 genes"),
        ({"perturbations": ["G00", "nope"]}, "nope"),
        ({"perturbations": ["G00", "G00"]}, "named twice"),
        ({"penetrance": 1.5}, "penetrance must lie in"),
        ({"penetrance": {"nope": 0.5}}, "nope"),
        ({"n_combinations": 7}, "4 tokens make 6"),
        ({"n_combinations": ["G00+nope"]}, "must join"),
        ({"dosages": [0.0, 1.0]}, "other than 0"),
        ({"mean_expression": 1000.0}, "at most 833"),
        ({"graph": CHAIN.drop(columns="target")}, "lacks the columns"),
        ({"graph": pd.concat([CHAIN, CHAIN])}, "repeated"),
        ({"graph": CHAIN.assign(weight=np.nan)}, "missing values"),
        ({"graph": CHAIN, "n_genes": 2}, "alone has 3 genes"),
        ({"graph": CHAIN.assign(weight=50.0), "n_perturbations": 1}, "standard deviation"),
        (
            {"graph": pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"], "weight": [1.0, 1.2]})},
            "does not die out",
        ),
        ({"library_size": 1.0, "mean_expression": 0.1}, "without a single count"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


# ---------------------------------------------------------------------------------------------------------- the graphs
def test_random_grn_is_acyclic_sparse_and_has_hubs():
    genes = [f"G{i}" for i in range(300)]
    grn = random_grn(genes, 2.0, seed=0)
    assert topological_order(grn) is not None
    assert not grn.duplicated(["source", "target"]).any()
    assert 1.5 < len(grn) / 300 < 2.2
    assert grn["source"].value_counts().iloc[0] > 10 * len(grn) / 300
    assert grn["target"].value_counts().iloc[0] < 12
    assert (grn["weight"] ** 2).groupby(grn["target"]).sum().max() < 0.82


def test_topological_order_names_regulators_first_and_finds_cycles():
    grn = random_grn([f"G{i}" for i in range(40)], seed=2)
    position = {gene: i for i, gene in enumerate(topological_order(grn))}
    assert all(position[a] < position[b] for a, b in zip(grn["source"], grn["target"], strict=True))
    assert topological_order(pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"]})) is None


@pytest.mark.parametrize("seed", range(5))
def test_degree_matched_graph_keeps_degrees_and_is_another_graph(seed):
    grn = random_grn([f"G{i}" for i in range(50)], seed=seed)
    wrong = degree_matched_random_grn(grn, seed=seed)
    for end in ("source", "target"):
        pd.testing.assert_series_equal(wrong[end].value_counts().sort_index(), grn[end].value_counts().sort_index())
    assert not wrong.duplicated(["source", "target"]).any()
    assert (wrong["source"] != wrong["target"]).all()
    assert topological_order(wrong) is not None
    assert grn_overlap(wrong, grn) < 0.3
    pd.testing.assert_frame_equal(wrong, degree_matched_random_grn(grn, seed=seed))


def test_corrupt_grn_drops_and_adds_as_many_as_asked():
    genes = [f"G{i}" for i in range(40)]
    grn = random_grn(genes, seed=0)
    corrupted = corrupt_grn(grn, drop=0.25, add=0.5, genes=genes, seed=1)
    n_kept = len(grn) - round(0.25 * len(grn))
    assert grn_overlap(corrupted.iloc[:n_kept], grn) == 1.0
    assert grn_overlap(corrupted.iloc[n_kept:], grn) == 0.0
    assert len(corrupted) == n_kept + round(0.5 * len(grn))
    assert topological_order(corrupted) is not None
    assert corrupted["weight"].notna().all()
    with pytest.raises(ValueError, match="no room"):
        corrupt_grn(CHAIN, add=5.0)
    with pytest.raises(ValueError, match="drop must lie"):
        corrupt_grn(CHAIN, drop=1.5)

"""SCCVAE as a user has it: construction, graphs, what it learns, unseen tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_causal import SCCVAE

from .conftest import TINY, TINY_PAPER, fit, make_counts


@pytest.fixture(scope="module")
def plain():
    """Two tokens that are genes and one that is not; no network. Not to be trained."""
    adata = make_counts(["control", "g01", "drug"] * 10)
    SCCVAE.setup_anndata(adata)
    return adata


def effect_of(model, label, **kwargs) -> np.ndarray:
    """Mean over training controls of the drawn log1p under a target, minus that of the same cells."""
    cells = model.predict_counterfactual([label, "control"], output="log1p", sample=True, **kwargs)
    half = cells.n_obs // 2
    return cells.X[:half].mean(0) - cells.X[half:].mean(0)


# ---------------------------------------------------------------------- construction


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "papper"}, "'papper' is not one of"),
        ({"graph": "dense"}, "'dense' is not one of"),
        ({"graph": "prior"}, "graph='prior' needs a network.*uns\\['grn'\\].*graph='none'"),
        ({"graph": "random"}, "none is registered"),
        ({"graph": "full"}, "decoder can absorb"),
        ({"gene_likelihood": "zinb"}, "'zinb' is not one of"),
        ({"data_type": "count"}, "'count' is not one of"),
        ({"preset": "paper", "gene_likelihood": "nb"}, "published squared error"),
        ({"data_type": "continuous", "gene_likelihood": "nb"}, "needs raw counts.*layer="),
    ],
)
def test_options_that_cannot_be(plain, options, message):
    with pytest.raises(ValueError, match=message):
        SCCVAE(plain, **options)


def test_defaults_follow_the_data(plain):
    model = SCCVAE(plain, **TINY)
    assert model.module.gene_likelihood == "nb"
    assert model.module.scale == "counts"
    assert model.module.sem is None
    continuous = make_counts(["control", "g01"] * 5)
    continuous.X = continuous.X * 0.3
    SCCVAE.setup_anndata(continuous)
    model = SCCVAE(continuous, **TINY)
    assert model.module.scale == "continuous"
    assert SCCVAE(plain, gene_likelihood="normal", **TINY).module.scale == "log1p"


def test_the_state_has_one_axis_fewer_than_contexts():
    adata = make_counts(["control", "g01"] * 12)
    adata.obs["kind"] = np.repeat(["a", "b", "c"], 8)
    SCCVAE.setup_anndata(adata, categorical_covariate_keys=["kind"])
    assert SCCVAE(adata, **TINY).module.n_state == 2
    assert SCCVAE(adata, state_dependent=False, **TINY).module.n_state == 0


def test_training_needs_perturbed_cells():
    adata = make_counts(["control", "g01"] * 10)
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "train", "test")
    with pytest.raises(ValueError, match="None of the 10 training cells is perturbed"):
        fit(adata, train={"split_key": "split"}, **TINY)


# ---------------------------------------------------------------------- what it learns


def test_effects_of_seen_tokens(model, simulation):
    for token in model.seen_tokens_:
        true = simulation.effects.loc[token, model.adata.var_names]
        assert np.corrcoef(effect_of(model, token), true)[0, 1] > 0.9


def test_control_gives_each_control_cell_back(model):
    controls = np.flatnonzero(model.adata.obs["perturbation"] == "control")[:30]
    observed = model.adata.X[controls].toarray()
    for options in ({}, {"sample": True}):
        found = model.predict_counterfactual("control", indices=controls, output="counts", key_added=None, **options)
        np.testing.assert_array_equal(found.X, observed)
    found = model.simulate_penetrance(str(model.seen_tokens_[0]), [0.0], indices=controls, output="counts", sample=True)
    np.testing.assert_array_equal(found.X, observed)


def test_effect_vectors_of_combinations_add_up(model):
    first, second, third = model.seen_tokens_[:3]
    labels = [first, second, third, f"{first}+{second}", f"{first}+{second}+{third}"]
    found = model.get_perturbation_embedding(labels)
    assert found.var_names.tolist() == model.adata.var_names.tolist()
    vectors = dict(zip(found.obs_names, found.X, strict=True))
    np.testing.assert_allclose(vectors[f"{first}+{second}"], vectors[first] + vectors[second], atol=1e-5)
    np.testing.assert_allclose(vectors[f"{first}+{second}+{third}"], sum(vectors[t] for t in labels[:3]), atol=1e-5)
    assert found.obs["seen"].all()
    assert found.obs["combination_seen"].tolist() == [True] * 3 + [False] * 2


def test_effect_vectors_of_the_paper_are_nodes(paper):
    first, second = paper.seen_tokens_[:2]
    found = paper.get_perturbation_embedding([first, second, f"{first}+{second}"])
    assert found.var_names.tolist() == [f"node_{i}" for i in range(6)]
    np.testing.assert_allclose(found.X[2], found.X[0] + found.X[1], atol=1e-6)


# ---------------------------------------------------------------------- unseen tokens


def test_an_unseen_gene_is_predicted(model, held_out, simulation):
    table = model.can_predict([held_out, f"{held_out}+{model.seen_tokens_[0]}"])
    assert not table["seen"].any()
    assert table["predictable"].all()
    assert table["reason"].str.contains("not seen|combination").all()
    found, true = effect_of(model, held_out), simulation.effects.loc[held_out, model.adata.var_names]
    own = list(model.adata.var_names).index(held_out)
    assert found[own] < -0.3  # a knock-down like the others
    assert np.corrcoef(found, true)[0, 1] > 0.5


@pytest.fixture(scope="module")
def with_features():
    """Features of some tokens, a network that knows another, and a seen token that neither knows."""
    adata = make_counts(["control", "g01", "drug1", "drug2", "drug3", "drug4", "bare"] * 12)
    rng = np.random.default_rng(0)
    tokens = ["g01", "drug1", "drug2", "drug3", "drug4", "new"]
    adata.uns["features"] = pd.DataFrame(rng.normal(size=(6, 2)), index=tokens, columns=["a", "b"])
    edges = [("g03", "g05", 1.0), ("g05", "g06", 1.0), ("drug1", "g03", -1.0)]
    adata.uns["grn"] = pd.DataFrame(edges, columns=["source", "target", "weight"])
    return fit(adata, setup={"perturbation_features_key": "features"}, **TINY)


def test_what_can_be_predicted_and_why(with_features):
    table = with_features.can_predict(["bare", "new", "g05", "g09", "nowhere", "bare+nowhere", "g01+new"])
    assert table["predictable"].tolist() == [True, True, True, False, False, False, True]
    for label, text in {
        "bare": "seen in training",
        "new": "gets the mean response: its features predict no better",
        "g05": "from its place in the graph",
        "g09": "unknown token.*give it features",
        "nowhere": "unknown token.*give it features",
        "bare+nowhere": "nowhere: unknown token",
    }.items():
        assert pd.Series([table.loc[label, "reason"]]).str.contains(text).all(), table.loc[label, "reason"]
    with pytest.raises(ValueError, match="cannot predict 1 of 2 targets: 'nowhere' .*give it features"):
        with_features.predict_counterfactual(["bare", "nowhere"])


def test_informative_features_are_named_as_grounds(with_features):
    feature_map = with_features.module.feature_map
    assert not feature_map.any()  # two tokens teach nothing
    feature_map += 1.0
    table = with_features.can_predict(["new", "g05"])
    feature_map.zero_()
    assert table.loc["new", "reason"] == "not seen in training, predicted from its features"
    assert table.loc["g05", "reason"] == "not seen in training, predicted from its place in the graph"


def test_features_of_the_call_describe_a_new_token(with_features):
    features = pd.DataFrame([[0.5, -0.5]], index=["nowhere"], columns=["a", "b"])
    assert with_features.can_predict("nowhere", features)["predictable"].all()
    found = with_features.predict_counterfactual(["nowhere"], features=features, output="counts", indices=[0, 7])
    assert np.isfinite(found.X).all()


def test_an_unseen_token_of_the_graph_moves_its_descendants(with_features):
    """g05 -> g06: the prediction differs from that of a token without a place in the graph there and only there."""
    model = with_features
    features = pd.DataFrame(np.zeros((2, 2)), index=["g05", "stranger"], columns=["a", "b"])
    by_graph, without = model.get_perturbation_embedding(["g05", "stranger"], features=features).X
    moved = {gene for gene, d in zip(model.adata.var_names, by_graph - without, strict=True) if abs(d) > 1e-6}
    assert "g05" in moved
    assert moved <= {"g05", "g06", "g03"}


def test_default_features_are_of_genes_only():
    model = fit(make_counts(["control", "g01", "drug"] * 10), **TINY)
    table = model.can_predict(["g05", "other drug"])
    assert table["predictable"].tolist() == [True, False]
    assert "features" in table["reason"].iloc[0]


def test_without_features_or_network_an_unseen_gene_cannot_be_predicted():
    model = fit(make_counts(["control", "g01", "drug"] * 10), n_features=0, **TINY)
    table = model.can_predict(["g01", "g05", "g01+drug"])
    assert table["predictable"].tolist() == [True, False, True]


# ---------------------------------------------------------------------- the graph


def test_learned_network(model, simulation):
    table = model.get_grn()
    assert table.columns.tolist() == ["source", "target", "weight", "prior"]
    assert (table["weight"].abs().diff().dropna() <= 0).all()
    pairs = set(zip(table["source"], table["target"], strict=True))
    assert pairs <= set(zip(simulation.grn["source"], simulation.grn["target"], strict=True))
    assert len(pairs) + model._network.n_removed == len(simulation.grn)
    true = simulation.grn.set_index(["source", "target"])["weight"]
    prior = table.set_index(["source", "target"])["prior"]
    np.testing.assert_allclose(prior, true[prior.index] / true.abs().max(), rtol=1e-5)
    strong = model.get_grn(threshold=0.3)
    assert 0 < len(strong) < len(table)
    assert (strong["weight"].abs() >= 0.3).all()
    assert len(model.get_grn(level="gene")) == len(table)


def test_graphs_that_are_not_there(model, paper):
    with pytest.raises(NotImplementedError, match="no graph on the level 'latent', but one on the level 'gene'"):
        model.get_grn(level="latent")
    with pytest.raises(NotImplementedError, match="'gene'.*'latent'"):
        paper.get_grn(level="gene")
    without = fit(make_counts(["control", "g01"] * 10), **TINY)
    with pytest.raises(NotImplementedError, match="no regulatory network"):
        without.get_grn()


def test_latent_graph_of_the_paper(paper):
    table = paper.get_grn()
    assert len(table) == 15
    place = lambda column: table[column].str.removeprefix("node_").astype(int)
    assert (place("source") < place("target")).all()
    dense = paper.module.sem.adjacency().detach().numpy()
    np.testing.assert_array_equal(dense[place("source"), place("target")], table["weight"])


@pytest.fixture(scope="module")
def random_models(screen):
    options = {"setup": {"size_factor_key": "library"}, "train": {"split_key": "split"}, "graph": "random"}
    return [fit(screen.copy(), graph_seed=seed, **options, **TINY) for seed in (0, 1)]


def test_random_graphs_are_others(model, random_models):
    edges = [set(zip(m.get_grn()["source"], m.get_grn()["target"], strict=True)) for m in (model, *random_models)]
    for i in range(3):
        assert len(edges[i] & edges[i - 1]) < 0.6 * len(edges[i])
    # as many edges, of which cycles take a few
    assert [len(e) + m._network.n_removed for e, m in zip(edges, (model, *random_models), strict=True)] == [
        len(edges[0]) + model._network.n_removed
    ] * 3


@pytest.mark.parametrize("which", ["prior", "random", "paper random"])
def test_the_graph_is_saved_with_the_model(which, model, random_models, screen, fresh):
    trained = model if which == "prior" else random_models[1]
    if which == "paper random":
        trained = fit(
            screen.copy(),
            setup={"size_factor_key": "library"},
            graph="random",
            graph_seed=3,
            **TINY_PAPER | {"n_latent": 40},
        )
    token = str(trained.seen_tokens_[0])
    before = trained.predict_counterfactual([token, "control"], sample=True, seed=1, output="log1p")
    loaded = fresh(trained)
    after = loaded.predict_counterfactual([token, "control"], sample=True, seed=1, output="log1p")
    np.testing.assert_array_equal(after.X, before.X)
    pd.testing.assert_frame_equal(loaded.get_grn(), trained.get_grn())


def test_the_published_model_without_features_has_one_hot_codes():
    model = fit(
        make_counts(["control", "g01", "drug"] * 20), train={"batch_size": 32}, **TINY_PAPER | {"n_features": 0}
    )
    np.testing.assert_array_equal(model.module.token_features, np.eye(2))
    assert model.can_predict(["g01", "drug", "g05"])["predictable"].tolist() == [True, True, False]

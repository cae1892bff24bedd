"""GraphVCI: aggregators and heads in closed form, the graph and its absence, saving, queries."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
import torch.nn.functional as F

import scvi_causal
from scvi_causal.data import simulate_screen
from scvi_causal.model.vci._graph_module import GraphVCIModule
from scvi_causal.model.vci._graph_options import resolve_graph_options

EDGES = torch.tensor([[0, 0, 1], [1, 2, 2]])
TINY = {"n_latent": 4, "n_hidden": 8, "n_graph": 6, "n_node_features": 5}
TRAIN = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}


def module_of(preset="recommended", graph=None, n_genes=6, **options) -> GraphVCIModule:
    graph = {"n_graph": 6, "n_node_features": 5, **(graph or {})}
    options = resolve_graph_options(preset, {"n_latent": 4, "n_hidden": 8, **options}, graph)
    torch.manual_seed(0)
    return GraphVCIModule(n_genes, 3, edge_index=EDGES, gene_likelihood="normal", log_normalize=False, options=options)


def inputs_of(module, n_cells=5):
    return torch.randn(n_cells, module.encoder["body"][0].in_features)


@pytest.fixture(scope="module")
def screen():
    simulation = simulate_screen(
        n_genes=24, n_perturbations=4, n_cells_per_perturbation=20, n_control=60, library_size=2_000.0, seed=0
    )
    return simulation.adata


@pytest.fixture
def adata(screen):
    return screen.copy()


def fit(adata, seed=0, train=None, **options):
    scvi.settings.seed = seed
    scvi_causal.GraphVCI.setup_anndata(adata, size_factor_key="library")
    model = scvi_causal.GraphVCI(adata, **{**TINY, **options})
    model.train(**{**TRAIN, **(train or {})})
    return model


# ---------------------------------------------------------------------- closed forms


def test_sum_aggregator_as_published_ties_mean_and_scale():
    """Where both are above 0, mean and raw scale differ by the same vector in every cell."""
    module = module_of("paper")
    module.eval()
    step = module._per_step()
    mean, raw = module._posterior(module.encoder, inputs_of(module), step)
    shift = torch.relu(module.encoder["readout"](step["pooled"])).chunk(2)
    torch.testing.assert_close(mean - raw, (shift[0] - shift[1]).expand_as(mean), atol=1e-6, rtol=1e-5)
    # and encode() puts the published ReLU on both, so that the scale cannot fall below ln 2
    _, scale = module.encode(torch.randn(5, 6), torch.zeros(5, module.treatment_code.n_code), torch.zeros(5, 0), step)
    assert scale.min() >= 0.6941471806 - 1e-6


def test_recommended_sum_has_a_head_for_each():
    module = module_of()
    module.eval()
    step = module._per_step()
    mean, raw = module._posterior(module.encoder, inputs_of(module), step)
    assert (mean - raw).std(0).max() > 1e-3


def test_mlp_aggregator_is_one_linear_layer():
    module = module_of(graph={"aggregator": "mlp"})
    module.eval()
    step, hidden_input = module._per_step(), inputs_of(module)
    hidden = module.encoder["head"](module.encoder["body"](hidden_input))
    both = torch.cat([hidden, step["pooled"].expand(5, -1)], 1)
    expected = F.linear(both, module.encoder["readout"].weight, module.encoder["readout"].bias)
    torch.testing.assert_close(torch.cat(module._posterior(module.encoder, hidden_input, step), 1), expected)


def test_pooled_code_is_the_mean_over_genes():
    module = module_of()
    torch.testing.assert_close(module._per_step()["pooled"], module.graph().mean(0))


def test_attention_decoder_reads_between_the_extremes():
    module = module_of("paper")
    module.eval()
    hidden = torch.randn(5, 8)
    h = module.decoder_last(hidden)
    for output in module._outcome_head(hidden, module._per_step()):
        assert (output >= h.amin(1, keepdim=True) - 1e-6).all()
        assert (output <= h.amax(1, keepdim=True) + 1e-6).all()


def test_one_pass_through_the_graph_per_step(adata, monkeypatch):
    scvi_causal.GraphVCI.setup_anndata(adata, size_factor_key="library")
    model = scvi_causal.GraphVCI(adata, **TINY)
    graph, calls = model.module.graph, []
    forward = graph.forward
    monkeypatch.setattr(graph, "forward", lambda: calls.append(graph.training) or forward())
    steps = []
    train_step = model._training_plan_cls.training_step

    def count(plan, *args, **kwargs):
        steps.append(1)
        return train_step(plan, *args, **kwargs)

    monkeypatch.setattr(model._training_plan_cls, "training_step", count)
    model.train(max_epochs=2, train_size=1.0, batch_size=40, accelerator="cpu", enable_progress_bar=False)
    assert sum(calls) == len(steps)
    calls.clear()
    model.predict_counterfactual(batch_size=10)
    model.predict_counterfactual("control", batch_size=10)
    assert len(calls) <= 1  # kept between batches and calls


def test_kept_codes_follow_the_parameters():
    module = module_of()
    module.eval()
    before = module.inference_step()["basis"]
    assert module.inference_step()["basis"] is before
    with torch.no_grad():
        module.graph.features.mul_(2.0)
    assert not torch.equal(module.inference_step()["basis"], before)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["graph.weight"] = state["graph.weight"] * 3
    middle = module.inference_step()["basis"]
    module.load_state_dict(state)
    assert not torch.equal(module.inference_step()["basis"], middle)


# ---------------------------------------------------------------------- training


def test_groups_of_the_optimizer(adata):
    """Features and logits are trained with the published decay; the frozen copy is not, and follows after each epoch."""
    model = fit(adata, preset="paper", second_encoder="frozen", train={"max_epochs": 1, "keep_best": False})
    module = model.module
    plan = model._training_plan_cls(module, **model._plan_defaults)
    optimizer = plan.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    trained = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter in (module.graph.features, module.graph.logits):
        assert trained[id(parameter)]["weight_decay"] == 4e-7
        assert trained[id(parameter)]["lr"] == 3e-4
    frozen = list(module.frozen_encoder.parameters())
    assert not any(id(p) in trained for p in frozen)
    for copy, live in zip(frozen, module.encoder.parameters(), strict=True):
        assert torch.equal(copy, live)


@pytest.mark.parametrize("options", [{}, {"gene_decoder": "att"}, {"aggregator": "mlp"}, {"preset": "paper"}])
def test_everything_of_the_graph_learns(adata, options):
    scvi.settings.seed = 0
    scvi_causal.GraphVCI.setup_anndata(adata, size_factor_key="library")
    model = scvi_causal.GraphVCI(adata, **{**TINY, **options})
    graph = model.module.graph
    start = {name: value.clone() for name, value in graph.state_dict().items()}
    model.train(**TRAIN)
    for name, value in graph.state_dict().items():
        assert not torch.equal(value, start[name]), name
    assert all(np.isfinite(np.asarray(values, dtype=float)).all() for values in model.history.values())


# ---------------------------------------------------------------------- graphs


def test_attention_is_reported_with_names_and_direction(adata):
    model = fit(adata)
    grn = model.get_grn()
    given = set(map(tuple, adata.uns["grn"][["source", "target"]].to_numpy()))
    assert set(map(tuple, grn[["source", "target"]].to_numpy())) == given
    assert grn["prior"].all()
    total = model.get_grn(self_loops=True).groupby("target")["weight"].sum()
    np.testing.assert_allclose(total.to_numpy(), 1.0, atol=1e-5)
    assert len(total) == adata.n_vars
    assert (model.get_grn(threshold=0.3)["weight"] >= 0.3).all()


def test_attention_before_training_is_refused(adata):
    scvi_causal.GraphVCI.setup_anndata(adata)
    with pytest.raises(RuntimeError, match="weights of edges are learned"):
        scvi_causal.GraphVCI(adata, **TINY).get_grn()


def test_without_a_graph_no_other_gene_matters(adata):
    """Every gene is coded by itself: no off-diagonal entry of the Jacobian."""
    del adata.uns["grn"]
    model = fit(adata)
    assert model._n_edges() == 0
    assert model.get_grn().empty
    graph = model.module.graph
    jacobian = torch.autograd.functional.jacobian(
        lambda features: torch.func.functional_call(graph, {"features": features}, ()).sum(1), graph.features.detach()
    )
    across = jacobian.abs().sum(2)
    assert not across[~torch.eye(adata.n_vars, dtype=torch.bool)].any()


def test_genes_without_edges_are_fine(adata):
    adata.uns["grn"] = adata.uns["grn"].iloc[:1]
    model = fit(adata)
    model.predict_counterfactual()
    assert np.isfinite(adata.layers["counterfactual"]).all()
    assert model._n_edges() == 1


def test_drugs_of_the_network_are_left_out(adata):
    labels = adata.obs["perturbation"].astype(str)
    adata.obs["perturbation"] = labels.where(labels != labels[labels != "control"].iloc[0], "drug x")
    extra = pd.DataFrame({"source": ["drug x"], "target": [adata.var_names[0]], "weight": [1.0]})
    n_edges = len(adata.uns["grn"])
    adata.uns["grn"] = pd.concat([adata.uns["grn"], extra], ignore_index=True)
    assert fit(adata)._n_edges() == n_edges


@pytest.mark.parametrize("graph", ["prior", "refined"])
def test_a_graph_has_to_be_there(adata, graph):
    del adata.uns["grn"]
    scvi_causal.GraphVCI.setup_anndata(adata)
    with pytest.raises(ValueError, match=rf"GraphVCI needs a prior network for graph='{graph}'"):
        scvi_causal.GraphVCI(adata, graph=graph, **TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "prio"}, "graph='prio' is not one of"),
        ({"gene_decoder": "mlp"}, "gene_decoder='mlp' is not one of"),
        ({"aggregator": "mean"}, "aggregator='mean' is not one of"),
        ({"n_graph": 0}, "n_graph=0: pass at least 1"),
        (
            {"refine_kwargs": {"keep_others": 0.1}},
            "'keep_others' is no option of a refinement. Did you mean 'keep_other'",
        ),
    ],
)
def test_wrong_options(adata, options, message):
    scvi_causal.GraphVCI.setup_anndata(adata)
    with pytest.raises(ValueError, match=message):
        scvi_causal.GraphVCI(adata, **options)


def test_refined_graph_knows_training_cells_only_and_is_saved(adata, tmp_path):
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 4 == 0, "test", "train")
    options = {"graph": "refined", "refine_kwargs": {"max_epochs": 3, "n_edges": 20}, "train": {"split_key": "split"}}
    model = fit(adata, **options)
    edges = model.get_grn()
    assert len(edges) == 20
    other = adata.copy()
    x = other.X.toarray()
    x[np.asarray(other.obs["split"] == "test")] = 1.0
    other.X = x
    again = fit(other, **options).get_grn()
    assert set(map(tuple, edges[["source", "target"]].to_numpy())) == set(
        map(tuple, again[["source", "target"]].to_numpy())
    )
    model.predict_counterfactual()
    expected = adata.layers["counterfactual"].copy()
    model.save(str(tmp_path / "model"))
    loaded = scvi_causal.GraphVCI.load(str(tmp_path / "model"), adata=adata, accelerator="cpu")
    pd.testing.assert_frame_equal(loaded.get_grn(), edges)
    loaded.predict_counterfactual()
    np.testing.assert_array_equal(adata.layers["counterfactual"], expected)


def test_query_without_a_graph(adata):
    model = fit(adata)
    query = ad.AnnData(adata.X[:10].copy(), obs=adata.obs.iloc[:10].copy(), var=adata.var.copy())
    model.predict_counterfactual(str(model.seen_tokens_[0]), adata=query)
    assert query.layers["counterfactual"].shape == (10, adata.n_vars)
    assert "grn" not in query.uns


def test_published_configuration(adata):
    scvi_causal.GraphVCI.setup_anndata(adata)
    model = scvi_causal.GraphVCI(adata, preset="paper")
    o = model._options
    assert (o.gene_decoder, o.aggregator, o.n_graph, o.n_node_features) == ("att", "sum", 128, 128)
    assert (o.n_draws, o.relu_heads, o.divergence, o.distribution_loss) == (3, True, "published", "match")
    assert not o.gene_bias
    assert o.shared_heads
    assert model._plan_defaults["distribution_weight"] == 10.0
    assert model.module.graph.features.abs().max() <= 1 / 256


def test_takes_every_option_of_vci():
    from inspect import signature

    plain, graph = (set(signature(cls.__init__).parameters) for cls in (scvi_causal.VCI, scvi_causal.GraphVCI))
    assert plain <= graph

"""VCI as a whole: options, training, what it recovers."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch

from scvi_causal import VCI
from scvi_causal.metrics import r2_score_genes
from scvi_causal.train import AdversarialCausalTrainingPlan

from .conftest import TINY, fit


def held_out_of(simulation) -> str:
    return sorted(simulation.tokens)[0]


def test_counterfactual_populations_are_learned(simulation, screen):
    """Effects of single perturbations on drawn cells, from controls, after enough steps."""
    token = held_out_of(simulation)
    model = fit(
        screen,
        {"categorical_covariate_keys": ["cell_type"]},
        {"max_epochs": 60, "plan_kwargs": {"lr": 5e-3}},
        n_hidden=32,
    )
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    controls = np.flatnonzero(labels == "control")
    x = screen.X.toarray()
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    drawn = model.predict_counterfactual([token], indices=controls, output="log1p", sample=True).X
    predicted, observed = drawn.mean(0) - x[controls].mean(0), x[labels == token].mean(0) - x[controls].mean(0)
    assert np.corrcoef(predicted, observed)[0, 1] > 0.8
    # a perturbed cell, taken back
    back = model.predict_counterfactual(
        "control", indices=np.flatnonzero(labels == token), output="log1p", key_added=None
    )
    returned = back.X.mean(0) - x[labels == token].mean(0)
    assert np.corrcoef(returned, -observed)[0, 1] > 0.6


def test_untrained_model_scores_as_the_group_mean(screen):
    """Robust effects of a model that knows nothing are those of the group means, and so is their score."""
    model = fit(
        screen,
        train={"max_epochs": 1, "plan_kwargs": {"lr": 1e-12}, "train_size": 0.5, "validation_size": 0.1},
        gene_likelihood="normal",
    )
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    token = model.seen_tokens_[0]
    x = screen.X.toarray()
    x = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    training = np.zeros(screen.n_obs, dtype=bool)
    training[model.train_indices] = True
    table = model.get_marginal_effects(
        [token], contrast=None, method=["robust", "group", "mean"], indices=training, output="log1p"
    )
    means = {name: part["estimate"].to_numpy() for name, part in table.groupby("method")}
    truth = x[~training & (labels == token)].mean(0)
    assert r2_score_genes(truth, means["group"]) > 0.5
    assert abs(r2_score_genes(truth, means["robust"]) - r2_score_genes(truth, means["group"])) < 2e-6
    np.testing.assert_allclose(means["group"], x[training & (labels == token)].mean(0), rtol=1e-4)


@pytest.mark.parametrize("loss", ["moments", "match", "kernel", "energy", "discriminator"])
def test_every_distribution_loss_trains(screen, loss):
    model = fit(screen, distribution_loss=loss, train={"batch_size": 128})
    history = model.history["distribution_loss_train"].iloc[:, 0].astype(float)
    assert np.isfinite(history).all()
    assert np.isfinite(model.predict_counterfactual([model.seen_tokens_[0]], indices=[0, 1]).X).all()


def test_same_seed_same_model(screen):
    one, two, other = (
        fit(screen.copy(), seed=seed).predict_counterfactual(["control"], indices=[0, 1], seed=0).X
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


# ---------------------------------------------------------------------- the plan


def test_the_discriminator_has_its_own_optimizer(screen):
    VCI.setup_anndata(screen)
    module = VCI(screen, **TINY, distribution_loss="discriminator").module
    plan = AdversarialCausalTrainingPlan(module, lr=1e-3, discriminator_lr=5e-4)
    of_model, of_discriminator = plan.configure_optimizers()
    mine = {id(p) for group in of_model.param_groups for p in group["params"]}
    its = {id(p) for group in of_discriminator.param_groups for p in group["params"]}
    assert its == {id(p) for p in module.discriminator.parameters()}
    assert not mine & its
    assert mine | its == {id(p) for p in module.parameters() if p.requires_grad}
    assert of_discriminator.param_groups[0]["lr"] == 5e-4
    with pytest.raises(ValueError, match="discriminator_cycle=3"):
        AdversarialCausalTrainingPlan(module, discriminator_steps=4)


def test_the_discriminator_learns_in_some_steps_only(screen, monkeypatch):
    calls = []
    original = AdversarialCausalTrainingPlan.training_step

    def watched(self, batch, batch_idx):
        before = self.module.discriminator["body"][0].weight.detach().clone()
        loss = original(self, batch, batch_idx)
        calls.append(not torch.equal(before, self.module.discriminator["body"][0].weight))
        return loss

    monkeypatch.setattr(AdversarialCausalTrainingPlan, "training_step", watched)
    fit(screen, distribution_loss="discriminator", train={"max_epochs": 1, "batch_size": 64})
    assert calls[:6] == [False, True, True, False, True, True]


def test_frozen_encoder_follows_after_each_epoch(screen):
    model = fit(screen, second_encoder="frozen", train={"max_epochs": 1, "keep_best": False})
    module = model.module
    for old, new in zip(module.frozen_encoder.parameters(), module.encoder.parameters(), strict=True):
        assert torch.equal(old, new)
        assert not old.requires_grad
    plan = AdversarialCausalTrainingPlan(module, weight_decay=4e-7)
    group = plan.configure_optimizers()["optimizer"].param_groups
    assert [g["weight_decay"] for g in group] == [4e-7]
    assert not {id(p) for g in group for p in g["params"]} & {id(p) for p in module.frozen_encoder.parameters()}


def test_paper_preset(screen):
    model = fit(screen, preset="paper", n_draws=2, train={"max_epochs": 1})
    assert model._plan_defaults["lr"] == 3e-4
    assert model._plan_defaults["weight_decay"] == 4e-7
    assert model._plan_defaults["distribution_weight"] == 1.7
    assert model._default_max_epochs(None) == 1000
    assert model.module.scale == "log1p"
    with pytest.raises(ValueError, match="no gradient"):
        VCI(screen, preset="paper", gene_likelihood="nb")
    counts = VCI(screen, **TINY, preset="paper", gene_likelihood="nb", counterfactual_outcome="mean")
    counts.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    drawn = counts.predict_counterfactual(["control"], indices=[0, 1], sample=True, output="counts").X
    assert (drawn == np.round(drawn)).all()


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"preset": "papers"}, "'recommended', 'paper'"),
        ({"distribution_loss": "mmd"}, "'moments'"),
        ({"divergence": "js"}, "'published'"),
        ({"counterfactual_treatments": "all"}, "treatments='all'.*'observed'"),
        ({"n_latent": 0}, "at least 1"),
    ],
    ids=str,
)
def test_options_are_checked(screen, option, match):
    VCI.setup_anndata(screen)
    with pytest.raises(ValueError, match=match):
        VCI(screen, **option)


# ---------------------------------------------------------------------- covariates and tokens


def test_the_encoder_is_told_contexts_only_if_asked(screen):
    VCI.setup_anndata(screen, categorical_covariate_keys=["cell_type"])
    widths = {told: VCI(screen, encode_covariates=told).module.covariate_code.n_code for told in (False, True)}
    assert widths == {False: 0, True: 16}


def test_unseen_tokens_are_mixtures_of_seen_ones(simulation, screen):
    """Where features say which tokens are alike, an unseen one is like its twin; where they do not, it is the mean."""
    import pandas as pd

    tokens, held = sorted(simulation.tokens), held_out_of(simulation)
    labels = screen.obs["perturbation"].astype(str)
    screen.obs["split"] = np.where(labels == held, "test", "train")
    random = np.random.default_rng(0).normal(size=(len(tokens), 2))
    screen.uns["features"] = pd.DataFrame(random, index=tokens, columns=["f1", "f2"]).astype(np.float32)
    model = fit(
        screen, {"perturbation_features_key": "features"}, {"split_key": "split", "max_epochs": 1, "batch_size": 128}
    )
    code = model.module.treatment_code
    vocabulary = code.tokens(torch.arange(len(tokens)), code.features)
    dosage = torch.rand(3, len(tokens))
    torch.testing.assert_close(code.of_vocabulary(dosage), code(dosage, vocabulary))
    place = tokens.index(held)
    assert not code.trained[place]
    torch.testing.assert_close(vocabulary[code.trained], torch.eye(len(tokens))[code.trained])
    assert vocabulary[place].sum().item() == pytest.approx(1.0, abs=1e-4)
    assert vocabulary[place, place] == 0
    assert model.can_predict([held])["predictable"].item()
    assert np.isfinite(model.predict_counterfactual([held], indices=[0]).X).all()
    code.set_mixture(code.trained.clone())
    assert "mean response" in model.can_predict([held])["reason"].item()
    torch.testing.assert_close(
        code.tokens(torch.tensor([place]), 0 * code.features[:1])[0][code.trained], torch.full((5,), 0.2)
    )


def test_best_epoch_is_kept_where_there_are_cells_to_tell(screen):
    model = fit(screen, train={"max_epochs": 3})
    assert model._keeps_best(type("splitter", (), {"n_val": 3}))
    assert not model._keeps_best(type("splitter", (), {"n_val": 0}))
    losses = model.history["validation_loss"].iloc[:, 0].astype(float)
    assert len(losses) == 3
    scvi.settings.seed = 0

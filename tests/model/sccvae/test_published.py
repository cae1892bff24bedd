"""The published equations: P5 to P7, P10 to P12 and P14 of the checks against the publication."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_causal import SCCVAE
from scvi_causal.model.sccvae import PublishedSCCVAEModule

from .conftest import fit, make_counts

N_GENES, N_TOKENS, N_FEATURES, N_NODES = 7, 3, 4, 6


def make_module(mask=None, **kwargs) -> PublishedSCCVAEModule:
    """Small, in double precision, with features and strengths that differ."""
    torch.manual_seed(0)
    mask = torch.ones(N_NODES, N_NODES).triu(1) if mask is None else mask
    module = PublishedSCCVAEModule(
        N_GENES, N_TOKENS, N_FEATURES, mask, **{"n_hidden": 8, "log_normalize": False, "init_sd": 0.5, **kwargs}
    ).double()
    module.token_features.copy_(torch.randn(N_TOKENS, N_FEATURES))
    module.strength.data = torch.tensor([2.0, -0.7, 1.3], dtype=torch.float64)
    return module


def make_tensors(tokens, n=4, seed=0) -> dict[str, torch.Tensor]:
    """Blocks of ``n`` cells, one of each token; ``None`` is control."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n * len(tokens), N_GENES, generator=generator, dtype=torch.float64) * 3
    dosage = torch.zeros(len(tokens), N_TOKENS, dtype=torch.float64)
    for row, token in enumerate(tokens):
        if token is not None:
            dosage[row, token] = 1.0
    group = torch.arange(len(tokens)).repeat_interleave(n)
    return {"X": y, "control_X": x, "perturbation": dosage.repeat_interleave(n, 0), "group": group}


def run(module, tensors, **loss_kwargs):
    torch.manual_seed(1)
    return module(tensors, loss_kwargs=loss_kwargs)


# ---------------------------------------------------------------------- the equations


def test_training_and_inference_follow_the_equation():
    """u = (z + c p)(I - B)^-1 by the explicit inverse, with strengths of both signs, one and two tokens."""
    module = make_module()
    tensors = make_tensors([0, 1, None])
    tensors["perturbation"] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, 1, 1]], dtype=torch.float64).repeat_interleave(
        4, 0
    )
    inferred, generated, _ = run(module, tensors)
    strength, features = module.strength, module.token_features
    direction = torch.softmax(module.shift_encoder(features), 1)
    inverse = torch.linalg.inv(torch.eye(N_NODES, dtype=torch.float64) - module.sem.weight.triu(1))
    by_hand = lambda z, dosage: module.decoder((z + (dosage * strength) @ direction) @ inverse).detach()
    z, dosage = inferred["z"], tensors["perturbation"]
    np.testing.assert_allclose(generated["prediction"].detach(), by_hand(z, dosage), atol=1e-13)
    np.testing.assert_allclose(generated["reconstruction"].detach(), by_hand(z, 0 * dosage), atol=1e-13)
    inputs = {"strength": strength, "features": features}
    found = module.counterfactual({"X": tensors["control_X"]}, dosage, inputs)
    np.testing.assert_allclose(found.mean.detach(), by_hand(inferred["qz_mean"], dosage), atol=1e-13)


def test_p05_no_strength_is_the_reconstruction():
    module = make_module()
    module.strength.data.zero_()
    _, generated, _ = run(module, make_tensors([0, 1]))
    np.testing.assert_allclose(generated["prediction"].detach(), generated["reconstruction"].detach(), atol=1e-14)


def test_p05_shifts_are_linear_in_dosage_and_strength_and_add_up():
    module = make_module()
    of = lambda *dosage: module.shift(
        torch.tensor([dosage], dtype=torch.float64), module.strength, module.token_features
    ).detach()
    np.testing.assert_allclose(of(1, 1, 0), of(1, 0, 0) + of(0, 1, 0), atol=1e-15)
    np.testing.assert_allclose(of(-2.5, 0, 0), -2.5 * of(1, 0, 0), atol=1e-15)
    z = torch.randn(1, N_NODES, dtype=torch.float64)
    u = lambda shift: module.sem(z + shift) - module.sem(z)
    np.testing.assert_allclose(u(of(1, 1, 0)).detach(), (u(of(1, 0, 0)) + u(of(0, 1, 0))).detach(), atol=1e-14)


def test_p06_shift_has_the_size_of_the_strength():
    module = make_module()
    direction = module.direction(module.token_features)
    np.testing.assert_allclose(direction.sum(1).detach(), 1, rtol=1e-14)
    assert (direction > 0).all()
    shift = module.shift(torch.eye(N_TOKENS, dtype=torch.float64), module.strength, module.token_features)
    np.testing.assert_allclose(shift.abs().sum(1).detach(), [2.0, 0.7, 1.3], rtol=1e-14)


def test_p06_controls_are_not_shifted_whatever_strengths_and_features():
    module = make_module()
    module.strength.data.fill_(1e3)
    module.token_features.fill_(1e3)
    _, generated, _ = run(module, make_tensors([None]))
    np.testing.assert_allclose(generated["prediction"].detach(), generated["reconstruction"].detach(), atol=1e-14)
    tensors = make_tensors([None])
    inputs = {"strength": module.strength, "features": module.token_features}
    found = module.counterfactual(tensors, torch.zeros(4, N_TOKENS, dtype=torch.float64), inputs)
    assert torch.equal(found.mean, module.decoder(module.sem(module.latent(tensors))))


def test_p07_variance_and_divergence_of_the_posterior():
    module = make_module()
    for head in (module.encoder_mean, module.encoder_log_variance):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    _, _, loss = run(module, make_tensors([0]))
    np.testing.assert_allclose(loss.kl_local["kl_local"].detach(), 2.5e-9, rtol=1e-3)
    _, variance = module.encode(make_tensors([0])["X"])
    np.testing.assert_allclose(variance.detach(), 1.0001, rtol=1e-12)
    module.encoder_mean.bias.data.fill_(1.0)
    _, _, loss = run(module, make_tensors([0]))
    np.testing.assert_allclose(loss.kl_local["kl_local"].detach(), 0.5, rtol=1e-6)  # a mean over nodes, not a sum


def test_p08_bandwidths_of_the_training_kernel():
    assert make_module().bandwidths.tolist() == [31.25 * 2**i for i in range(10)]


# ---------------------------------------------------------------------- the loss


def published_loss(x, reconstruction, y, prediction, mean, variance, beta) -> float:
    """Spelled out for one block, with every pair of cells."""
    squared = lambda a, b: ((a - b) ** 2).mean()
    kl = (0.5 * (variance + mean**2 - 1) - 0.5 * np.log(variance)).mean()

    def kernel(a, b):
        distance = ((a[:, None] - b[None]) ** 2).sum(-1)
        return sum(np.exp(-distance / (31.25 * 2**i)) for i in range(10)).mean()

    mmd = kernel(prediction, prediction) + kernel(y, y) - 2 * kernel(prediction, y)
    return 0.25 * squared(reconstruction, x) + squared(prediction, y) + beta * kl + 10 * mmd


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_p10_loss_from_given_pieces(beta):
    module = make_module()
    rng = np.random.default_rng(0)
    x, reconstruction, y, prediction = rng.normal(0, 4, (4, 5, N_GENES))
    mean, variance = rng.normal(size=(5, N_NODES)), rng.gamma(2, 1, (5, N_NODES))
    tensor = functools.partial(torch.tensor, dtype=torch.float64)
    found = module.loss(
        {"X": tensor(y), "control_X": tensor(x), "perturbation": tensor(np.ones((5, N_TOKENS)))},
        {"qz_mean": tensor(mean), "qz_variance": tensor(variance), "expression": tensor(x)},
        {"reconstruction": tensor(reconstruction), "prediction": tensor(prediction)},
        kl_weight=beta,
    )
    expected = published_loss(x, reconstruction, y, prediction, mean, variance, beta)
    assert float(found.loss) == pytest.approx(expected, rel=1e-12)


def test_p10_loss_of_a_batch_of_blocks_is_the_mean_over_blocks():
    """The publication has one block a batch; several take the populations apart for the MMD."""
    module = make_module()
    tensors = make_tensors([0, 2, None], n=5)
    inferred, generated, found = run(module, tensors, kl_weight=0.4)
    parts = {"x": tensors["control_X"], "y": tensors["X"], "mean": inferred["qz_mean"]}
    parts |= {"variance": inferred["qz_variance"]} | {k: generated[k] for k in ("reconstruction", "prediction")}
    parts = {name: value.detach().numpy().reshape(3, 5, -1) for name, value in parts.items()}
    blocks = [published_loss(**{name: value[b] for name, value in parts.items()}, beta=0.4) for b in range(3)]
    assert found.loss.item() == pytest.approx(np.mean(blocks), rel=1e-12)


def test_p10_schedule_of_a_training():
    """One epoch of weight t / 99 after the other, through model.train() as it is: 100 epochs, Adam as published."""
    adata = make_counts(["control", "A"] * 8)
    SCCVAE.setup_anndata(adata)
    model = SCCVAE(adata, preset="paper", n_latent=4, n_hidden=4, n_features=2)
    weights, loss = [], model.module.loss

    @functools.wraps(loss)
    def spy(*args, kl_weight, **kwargs):
        weights.append(float(kl_weight))
        return loss(*args, kl_weight=kl_weight, **kwargs)

    model.module.loss = spy
    model.train(
        accelerator="cpu",
        enable_progress_bar=False,
        train_size=1.0,
        batch_size=16,
        datasplitter_kwargs={"cells_per_group": 8},
    )
    np.testing.assert_allclose(weights, np.arange(100) / 99, atol=1e-12)
    plan = model.trainer.lightning_module
    (optimizer,) = model.trainer.optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert {k: optimizer.defaults[k] for k in ("lr", "eps", "weight_decay")} == {
        "lr": 5e-4,
        "eps": 0.01,
        "weight_decay": 1e-6,
    }
    assert (plan.gradient_clip_val, plan.clip_per_tensor) == (1.0, True)


# ---------------------------------------------------------------------- masks and gradients


@pytest.fixture(scope="module")
def registered():
    adata = make_counts(["control", "g00", "g03"] * 4, n_genes=12)
    edges = [("g00", "g01"), ("g01", "g05"), ("g05", "g00"), ("g03", "g04"), ("g11", "g02"), ("g03", "g02")]
    adata.uns["grn"] = pd.DataFrame(edges, columns=["source", "target"])
    SCCVAE.setup_anndata(adata)
    return adata


def mask_of(adata, graph, n_latent=512, **kwargs) -> torch.Tensor:
    return SCCVAE(adata, preset="paper", graph=graph, n_latent=n_latent, n_hidden=2, **kwargs).module.sem.mask


@pytest.mark.parametrize(
    ("graph", "low", "high"),
    # the estimated graph of the paper (3,929 edges) is data, not code; random graphs have its density
    [("full", 130_816, 130_816), ("none", 0, 0), ("random", 3_700, 4_150), ("prior", 5, 5)],
)
def test_p11_masks(registered, graph, low, high):
    mask = mask_of(registered, graph)
    assert mask.shape == (512, 512)
    assert low <= int(mask.sum()) <= high
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert not mask.tril().any()


def test_p11_full_is_the_default_and_random_follows_its_seed(registered):
    assert torch.equal(mask_of(registered, None), torch.ones(512, 512).triu(1))
    assert torch.equal(mask_of(registered, "random", graph_seed=1), mask_of(registered, "random", graph_seed=1))
    assert not torch.equal(mask_of(registered, "random", graph_seed=1), mask_of(registered, "random", graph_seed=2))


def test_p11_a_network_larger_than_the_latent_space_is_refused(registered):
    with pytest.raises(ValueError, match="has 7 nodes.*n_latent=4.*n_latent=7"):
        mask_of(registered, "prior", n_latent=4)


@pytest.mark.parametrize(("tokens", "used"), [([1], [1]), ([0, 2], [0, 2]), ([None], []), ([2, None], [2])])
def test_p11_gradients(tokens, used):
    mask = torch.zeros(N_NODES, N_NODES)
    mask[[0, 0, 2], [1, 4, 5]] = 1.0
    module = make_module(mask)
    _, _, loss = run(module, make_tensors(tokens))
    loss.loss.backward()
    gradient = module.sem.weight.grad
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1] != 0).all()
    strength = torch.zeros(N_TOKENS) if module.strength.grad is None else module.strength.grad
    assert strength.nonzero().ravel().tolist() == used


def test_p12_the_decoder_absorbs_any_graph():
    """``full`` with (B, W) is ``conditional`` with W (I - B)^-T: such a graph among latent nodes says nothing about genes."""
    module, other = make_module(), make_module(torch.zeros(N_NODES, N_NODES))
    other.load_state_dict({**module.state_dict(), "sem.mask": other.sem.mask})
    system = torch.eye(N_NODES, dtype=torch.float64) - module.sem.adjacency().detach()
    other.decoder[0].weight.data = module.decoder[0].weight.data @ torch.linalg.inv(system).T
    tensors = make_tensors([0, 1, 2, None])
    _, ours, _ = run(module, tensors)
    _, absorbed, _ = run(other, tensors)
    for name in ("reconstruction", "prediction"):
        np.testing.assert_allclose(absorbed[name].detach(), ours[name].detach(), atol=1e-14)
    assert (ours["prediction"] - ours["reconstruction"]).abs().max() > 1e-2


# ---------------------------------------------------------------------- sizes


def test_p14_number_of_parameters_at_the_published_sizes():
    module = PublishedSCCVAEModule(8563, 512, 50, torch.ones(512, 512).triu(1))
    count = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())
    assert count(module.encoder, module.encoder_mean, module.encoder_log_variance) == 10_868_736
    assert count(module.shift_encoder) == 1_626_624
    assert count(module.sem) == 262_144
    assert module.strength.numel() == 512
    assert count(module.decoder) == 10_351_987
    assert count(module) == 23_110_003
    assert torch.equal(module.strength, torch.ones(512))
    assert module.sem.weight.std().item() == pytest.approx(0.1, rel=0.02)
    slopes = {layer.negative_slope for layer in module.modules() if isinstance(layer, torch.nn.LeakyReLU)}
    assert slopes == {0.2}


def test_p14_published_sizes_are_the_defaults_of_the_preset(registered):
    module = SCCVAE(registered, preset="paper").module
    assert (module.sem.n_nodes, module.encoder[0].out_features, module.token_features.shape[1]) == (512, 1024, 50)
    assert (module.recon_weight, module.mmd_weight) == (0.25, 10.0)


# ---------------------------------------------------------------------- as a model


def test_cells_are_drawn_by_drawing_their_noise(paper):
    token = str(paper.seen_tokens_[0])
    ask = functools.partial(paper.predict_counterfactual, [token], output="log1p", indices=np.arange(20), seed=0)
    np.testing.assert_array_equal(ask().X, ask().X)
    assert np.abs(ask(sample=True).X - ask().X).mean() > 1e-3


def test_unseen_tokens_get_the_median_strength(paper, held_out):
    table = paper.get_strengths([str(paper.seen_tokens_[0]), held_out])
    assert table["seen"].tolist() == [True, False]
    learned = paper.get_strengths()["strength"]
    assert table["strength"].iloc[1] == pytest.approx(np.median(learned))


def test_tokens_that_are_no_genes_get_a_one_hot_code():
    adata = make_counts(["control", "g01", "drug", "other"] * 8)
    model = fit(adata, preset="paper", n_latent=4, n_hidden=4, n_features=3, train={"batch_size": 32})
    assert model.module.token_features.shape == (3, 5)
    codes = model.module.token_features[:, 3:].numpy()  # in the order of the vocabulary: drug, g01, other
    np.testing.assert_array_equal(codes, [[1, 0], [0, 0], [0, 1]])
    assert (model.module.token_features[[0, 2], :3] == 0).all()
    assert (model.module.token_features[1, :3] != 0).any()
    table = model.can_predict(["drug", "drug+g01", "g05", "nowhere"])
    assert table["predictable"].tolist() == [True, True, True, False]  # g05 from its expression
    assert "unknown token" in table["reason"].iloc[3]

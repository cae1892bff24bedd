"""CPU-seconds and memory of a training step of CRADLE-VAE at the published size, against the published formulas written plainly.

    python benchmarks/cradlevae_speed.py

512 cells x 1,187 genes, 722 perturbations, 100 latent dimensions, 5 particles; one thread. The plain form is first held against the known loss
of a small fixture, and against the loss of ``preset="paper"`` with the same parameters.
"""

from __future__ import annotations

import time
from functools import partial

import pandas as pd
import torch
from _common import write_page
from _published_cradle import PlainCRADLEVAE, make_optimizer, step
from _speed_tools import alternate
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.cradlevae._module import CRADLEVAEModule
from scvi_causal.model.cradlevae._options import artifact_options

N_CELLS, N_GENES, N_TOKENS, N_LATENT, N_HIDDEN, N_STEPS = 512, 1187, 722, 100, 400, 4
N_DRAWS = 3_000  # of the losses that are compared
PLAIN = "published formulas, written plainly"
FORMS = {
    'preset="paper"': {"preset": "paper"},
    "the same, own draws of each cell": {"preset": "paper", "shared_draws": False},
    "default with 5 draws": {"preset": "recommended", "n_particles": 5},
    "default (1 draw)": {"preset": "recommended"},
}
TEXT = """Forward, backward, clipping and Adam; the smallest of {n} steps in {rounds} alternated rounds. `MB`: tensors of a forward pass that autograd keeps, each once.
Counts are sparse (90 % zeros), 15 % of the cells failed. The plain form draws masks and embeddings of all {tokens} tokens twice, evaluates both branches of the decoder for
all cells, and draws counts from both; `preset="paper"` has the same loss, of the tokens in the batch and of the branch that the quality of a cell selects. The default is another
objective (exact KL divergences, a draw for each cell, a smaller guide)."""
CHECK = """The plain form gives {fixture:.4f} on the fixture of four cells (6.5163 expected). With the same parameters and a mask prior of 0.2, over {draws} draws each, its loss is
{plain:.3f} ± {plain_error:.3f} and that of `preset="paper"` {paper:.3f} ± {paper_error:.3f}."""


# ---------------------------------------------------------------------- is it the same loss?


def fixture_loss() -> float:
    """Four cells, three genes, two tokens; all parameters 0, log odds of masks 20."""
    model = PlainCRADLEVAE(3, 2, n_latent=2, n_hidden=4, n_guide_hidden=4, n_particles=5, mask_prior=0.01)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.mask_logits.fill_(20.0)
        return model.loss(**fixture()).item()


def fixture(copies: int = 1) -> dict:
    """The batch of the fixture, as the plain form takes it."""
    x = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 0.0], [0.0, 5.0, 1.0], [4.0, 1.0, 1.0]])
    log = x.log1p()
    mean, scale = log.mean(0), log.std(0)
    profile = torch.tensor([[1.0] * 3] * 3 + [[0.0] * 3])
    dosage = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    return {
        "x": x,
        "standard": (log - mean) / scale,
        "dosage": dosage,
        "failed": torch.tensor([[0.0], [1.0], [0.0], [0.0]]),
        "reference": (profile.log1p() - mean) / scale,
        "has_reference": (profile.sum(1) > 0).float(),
        "n_token": dosage.sum(0),
        "n_failed": 1,
    }


def compare(n_draws: int = N_DRAWS) -> dict[str, float]:
    """Mean losses of the plain form and of the preset, over the draws of one batch with the same random parameters."""
    torch.manual_seed(1)
    options = artifact_options("paper", n_guide_hidden=5, n_guide_layers=4, mask_prior=0.2)
    module = CRADLEVAEModule(3, 2, 2, 4, 1, options=options)
    plain = PlainCRADLEVAE(3, 2, n_latent=2, n_hidden=4, n_guide_hidden=5, mask_prior=0.2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.4)
    for mine, theirs in (
        (plain.embedding, module.mechanisms.network),
        (plain.artifact, module.artifacts.network),
        (plain.encoder, module.encoder),
    ):
        _copy(mine.hidden, theirs.hidden)
        mine.mean.load_state_dict(theirs.mean.state_dict())
        mine.log_variance.load_state_dict(theirs.log_variance.state_dict())
    _copy(plain.decoder, module.decoder.hidden)
    plain.output.load_state_dict(module.decoder.output.state_dict())
    plain.mask_logits.data.copy_(module.mechanisms.mask_logits)
    plain.log_dispersion.data.copy_(module.log_dispersion)
    batch = fixture()
    log = batch["x"].log1p()
    module.input_mean.copy_(log.mean(0))
    module.input_scale.copy_(log.std(0))
    module.cells_per_token.copy_(batch["n_token"])
    module.cells_per_quality.copy_(torch.tensor([3.0, 1.0]))
    module.reference_expression = batch["reference"][:1]
    module.reference_of_cell, module.other_quality_of_cell = torch.tensor([0, 0, 0, -1]), torch.tensor([1, 0, 1, 1])
    tensors = {
        REGISTRY_KEYS.X_KEY: batch["x"],
        CAUSAL_KEYS.PERTURBATION: batch["dosage"],
        CAUSAL_KEYS.QUALITY: batch["failed"].long(),
        CAUSAL_KEYS.INDICES: torch.arange(4)[:, None],
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(4, 1, dtype=torch.int64),
    }
    with torch.no_grad():
        mine = torch.stack([plain.loss(**batch) for _ in range(n_draws)])
        theirs = torch.stack([module(tensors)[2].loss for _ in range(n_draws)])
    found = {"plain": mine, "paper": theirs}
    return {name: float(v.mean()) for name, v in found.items()} | {
        f"{name}_error": float(v.std() / n_draws**0.5) for name, v in found.items()
    }


def _copy(mine, theirs) -> None:
    for a, b in zip(mine.blocks, theirs.layers, strict=True):
        a.load_state_dict(b.state_dict())


# ---------------------------------------------------------------------- what does a step cost?


def make_counts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counts, tokens and quality of a batch."""
    torch.manual_seed(0)
    x = torch.poisson(torch.rand(N_CELLS, N_GENES).square() * 0.3)
    return x, torch.randint(N_TOKENS, (N_CELLS,)), (torch.rand(N_CELLS, 1) < 0.15).long()


def plain_form():
    """A model and a function that makes one step of it; the second returns the loss alone."""
    x, token, failed = make_counts()
    log = x.log1p()
    batch = {
        "x": x,
        "standard": (log - log.mean(0)) / log.std(0).clamp_min(0.1),
        "dosage": torch.eye(N_TOKENS)[token],
        "failed": failed.float(),
        "reference": torch.randn(N_CELLS, N_GENES),
        "has_reference": torch.ones(N_CELLS),
        "n_token": torch.full((N_TOKENS,), 160.0),
        "n_failed": 17_000,
    }
    model = PlainCRADLEVAE(N_GENES, N_TOKENS, N_LATENT, N_HIDDEN)
    optimizer = make_optimizer(model)
    return model, partial(step, model, optimizer, batch), partial(model.loss, **batch)


def our_form(preset: str, **options):
    """The same of a form of the package."""
    x, token, failed = make_counts()
    options = artifact_options(preset, mask_prior=0.001, **options)
    module = CRADLEVAEModule(N_GENES, N_TOKENS, N_LATENT, N_HIDDEN, 1, options=options)
    module.cells_per_token.fill_(160.0)
    module.cells_per_quality.copy_(torch.tensor([1e5, 17_000.0]))
    module.reference_expression = torch.randn(2 * N_TOKENS, N_GENES)
    module.reference_of_cell, module.other_quality_of_cell = 2 * token + failed[:, 0], 1 - failed[:, 0]
    batch = {
        REGISTRY_KEYS.X_KEY: x,
        CAUSAL_KEYS.PERTURBATION: torch.eye(N_TOKENS)[token],
        CAUSAL_KEYS.QUALITY: failed,
        CAUSAL_KEYS.INDICES: torch.arange(N_CELLS)[:, None],
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(N_CELLS, 1, dtype=torch.int64),
    }
    optimizer = make_optimizer(module)

    def one_step():
        optimizer.zero_grad()
        module(batch)[2].loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 100.0)
        optimizer.step()

    return module, one_step, lambda: module(batch)[2].loss


def seconds(one_step) -> list[float]:
    """CPU-seconds of some steps."""
    found = []
    for _ in range(N_STEPS):
        started = time.process_time()
        one_step()
        found.append(time.process_time() - started)
    return found


def kept(loss) -> float:
    """MB that autograd keeps from forward to backward."""
    places = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        places[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    del value
    return sum(places.values()) / 2**20


def main() -> None:
    """Check, measure, and write the page."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fixture_value, checked = fixture_loss(), compare()
    forms = {PLAIN: plain_form(), **{name: our_form(**options) for name, options in FORMS.items()}}
    best = alternate({name: partial(seconds, form[1]) for name, form in forms.items()})
    table = pd.DataFrame(
        {
            name: {
                "CPU-seconds": best[name],
                "times faster": best[PLAIN] / best[name],
                "MB": kept(form[2]),
                "parameters": sum(p.numel() for p in form[0].parameters()),
            }
            for name, form in forms.items()
        }
    ).T.rename_axis("form")
    table["parameters"] = table["parameters"].astype(int)
    text = TEXT.format(n=N_STEPS, rounds=3, tokens=N_TOKENS)
    check = CHECK.format(fixture=fixture_value, draws=f"{N_DRAWS:,}", **checked)
    write_page("cradlevae_speed", "CRADLE-VAE: a training step", [(text, table), (check, None)], 0)


if __name__ == "__main__":
    main()

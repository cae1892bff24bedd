"""CPA (cpa-tools): an autoencoder of counts whose latent cells are freed of their perturbations by an adversary.

Settings of its tutorial on Norman 2019, at most 2,000 epochs, stopped after 25 without progress. CPA returns the mean of a
negative binomial; here the counts are drawn from it, since the log of a mean is not the mean of logs.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from _exchange import serve
from cpa import CPA
from cpa._utils import CPA_REGISTRY_KEYS as KEYS

MODEL = {
    "n_latent": 128,
    "recon_loss": "nb",
    "doser_type": "linear",
    "n_hidden_encoder": 512,
    "n_layers_encoder": 2,
    "n_hidden_decoder": 256,
    "n_layers_decoder": 2,
    "use_batch_norm_decoder": False,
    "dropout_rate_decoder": 0.2,
}
PLAN = {
    "n_epochs_pretrain_ae": 30,
    "n_epochs_adv_warmup": 100,
    "n_epochs_mixup_warmup": 10,
    "mixup_alpha": 0.2,
    "adv_steps": 2,
    "n_hidden_adv": 128,
    "n_layers_adv": 2,
    "dropout_rate_adv": 0.2,
    "reg_adv": 50.0,
    "pen_adv": 1.0,
    "lr": 3e-4,
    "wd": 4e-7,
    "adv_lr": 3e-4,
    "adv_wd": 4e-7,
    "adv_loss": "cce",
    "doser_lr": 3e-4,
    "doser_wd": 4e-7,
    "step_size_lr": 45,
}


def fit(train, job):
    """Train on counts; cells marked for validation stop the training."""
    scvi.settings.seed = job.seed
    adata = _plain(train, train.obs["perturbation"].astype(str).to_numpy())
    split = train.obs["split"].astype(str).to_numpy(dtype=object)
    if not (split == "valid").any():
        split[np.random.default_rng(job.seed).random(len(split)) < 0.1] = "valid"
    adata.obs["split"] = split
    CPA.setup_anndata(
        adata,
        perturbation_key="perturbation",
        control_group="ctrl",
        dosage_key="dose",
        categorical_covariate_keys=["context"],
        is_count_data=True,
        max_comb_len=2,
    )
    model = CPA(
        adata, split_key="split", train_split="train", valid_split="valid", test_split="test", seed=job.seed, **MODEL
    )
    model.train(
        max_epochs=job.options.get("epochs", 2000),
        use_gpu=False,
        batch_size=job.options.get("batch_size", 1024),
        plan_kwargs=PLAN,
        early_stopping_patience=5,  # in checks, of which there is one in 5 epochs
        check_val_every_n_epoch=5,
        save_path=False,
        enable_progress_bar=False,
        logger=False,
    )
    return model


def _plain(adata, labels) -> ad.AnnData:
    """Counts as CPA wants them, every token at dose 1."""
    obs = pd.DataFrame({"perturbation": labels, "context": adata.obs["context"].astype(str)}, index=adata.obs_names)
    obs["dose"] = ["+".join(["1.0"] * len(label.split("+"))) for label in labels]
    x = adata.layers["counts"].toarray().astype(np.float32)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=adata.var_names))


def predict(model, source, targets, job):
    """Draw every control cell under every target, with the library that the cell has."""
    rng, theta = np.random.default_rng(job.seed), np.exp(model.module.px_r.detach().numpy())
    library, found = source.obs["library"].to_numpy()[:, None], {}
    for target in targets:
        # CPA has no query data: these columns are those that it made of its training cells. It decodes by the two arrays.
        query = _plain(source, ["ctrl"] * source.n_obs)
        query.obs[KEYS.CONTROL_KEY] = 1
        query.obs[KEYS.CATEGORY_KEY] = [f"{context}_ctrl" for context in query.obs["context"]]
        codes = sorted(model.pert_encoder[token] for token in target.split("+"))
        padding = [0] * (2 - len(codes))
        query.obsm[KEYS.PERTURBATIONS] = np.tile([*codes, *padding], (source.n_obs, 1))
        query.obsm[KEYS.PERTURBATIONS_DOSAGES] = np.tile([*[1.0] * len(codes), *map(float, padding)], (source.n_obs, 1))
        model.predict(query, batch_size=1024)
        mean = query.obsm["CPA_pred"].astype(np.float64)
        counts = rng.poisson(rng.gamma(theta, mean / theta))
        found[target] = np.log1p(counts * (1e4 / library))
    return found


serve(fit, predict)

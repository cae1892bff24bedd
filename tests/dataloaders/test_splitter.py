import numpy as np
import pytest
import scvi
import torch
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from scvi.model import SCVI

from scvi_causal.dataloaders import CausalDataSplitter, _splitter
from scvi_causal.train import CausalTrainingPlan

from .conftest import make_adata, register


def rows(loader, key="ind_x") -> np.ndarray:
    return np.concatenate([batch[key].ravel().numpy() for batch in loader])


def at_epoch(splitter, epoch):
    loader = splitter.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_partners_are_training_controls_of_the_same_stratum(adata, manager, dense):
    splitter = CausalDataSplitter(manager, batch_size=32, pair_controls=True, seed=0)
    stratum = (adata.obs["donor"].astype(str) + adata.obs["cell_type"].astype(str)).to_numpy()
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    for loader in (splitter.train_dataloader(), splitter.val_dataloader()):
        for batch in loader:
            cells, partners = batch["ind_x"].ravel().numpy(), batch["control_ind_x"].ravel().numpy()
            assert is_control[partners].all()
            assert np.isin(partners, splitter.train_idx).all()
            assert (stratum[partners] == stratum[cells]).all()
            assert (batch["X"].numpy() == dense[cells]).all()
            assert (batch["control_X"].numpy() == dense[partners]).all()
            assert torch.equal(batch["control_batch"], batch["batch"])
            assert torch.equal(batch["control_extra_categorical_covs"], batch["extra_categorical_covs"])
            assert (
                batch["control_size_factor"].ravel().numpy() == adata.obs["total"].to_numpy(np.float32)[partners]
            ).all()


def test_partners_are_redrawn_each_epoch_and_fixed_in_validation(manager):
    splitter = CausalDataSplitter(manager, batch_size=32, pair_controls=True, seed=0)
    of_cell = []
    for epoch in range(2):
        batches = at_epoch(splitter, epoch)
        pairs = torch.cat([torch.hstack([batch["ind_x"], batch["control_ind_x"]]) for batch in batches])
        of_cell.append(pairs[pairs[:, 0].argsort(), 1])
    assert (of_cell[0] != of_cell[1]).float().mean() > 0.5
    validation = []
    for epoch in range(2):
        loader = splitter.val_dataloader()
        loader.sampler.set_epoch(epoch)
        validation.append((rows(loader).tolist(), rows(loader, "control_ind_x").tolist()))
    assert validation[0] == validation[1]
    assert sorted(validation[0][0]) == sorted(splitter.val_idx)


@pytest.mark.parametrize("grouped", [False, True])
def test_same_seed_same_batches(manager, grouped):
    def run(seed):
        splitter = CausalDataSplitter(
            manager, batch_size=32, pair_controls=True, grouped=grouped, cells_per_group=8, seed=seed
        )
        return [
            (b["ind_x"].tolist(), b["control_ind_x"].tolist()) for epoch in range(2) for b in at_epoch(splitter, epoch)
        ]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_the_seed_of_scvi_tools_is_used(manager):
    before = scvi.settings.seed
    try:
        scvi.settings.seed = 5
        splits = [CausalDataSplitter(manager) for _ in range(2)]
    finally:
        scvi.settings.seed = before
    assert splits[0].seed == splits[1].seed == 5
    assert splits[0].val_idx.tolist() == splits[1].val_idx.tolist()


def test_without_a_seed_splits_differ(manager):
    splits = [CausalDataSplitter(manager, seed=None).val_idx.tolist() for _ in range(3)]
    assert not splits[0] == splits[1] == splits[2]


def test_blocks_hold_one_condition_in_one_stratum(adata, manager):
    splitter = CausalDataSplitter(manager, batch_size=24, grouped=True, cells_per_group=6, pair_controls=True, seed=0)
    kind = (
        adata.obs["perturbation"].astype(str) + adata.obs["donor"].astype(str) + adata.obs["cell_type"].astype(str)
    ).to_numpy()
    for loader, cells in (
        (splitter.train_dataloader(), splitter.train_idx),
        (splitter.val_dataloader(), splitter.val_idx),
    ):
        for batch in loader:
            group = batch["group"]
            assert group.dtype == torch.int64
            assert group.shape == (len(batch["X"]),)
            assert len(group) <= 24
            for block in range(int(group.max()) + 1):
                members = batch["ind_x"].ravel().numpy()[group == block]
                assert len(members) == 6
                assert len(set(kind[members])) == 1
        assert set(rows(loader)) == set(cells)


def test_dosage_makes_conditions(adata):
    dosage = register(adata).get_from_registry("perturbation")
    dosage.data[::2] *= 3  # half of the perturbed cells at three times the dosage
    splitter = CausalDataSplitter(register_again(adata, dosage), batch_size=8, grouped=True, cells_per_group=4, seed=0)
    for batch in splitter.train_dataloader():
        blocks = batch["perturbation"].reshape(-1, 4, 3)
        assert (blocks == blocks[:, :1]).all()


def register_again(adata, dosage):
    manager = register(adata)
    adata.obsm["_scvi_perturbation"] = dosage
    return manager


def test_ranks_share_no_cell_and_have_as_many_batches(manager, monkeypatch):
    for grouped in (False, True):
        seen, lengths, conditions = [], [], []
        for rank in range(2):
            monkeypatch.setattr(_splitter, "process_rank", lambda rank=rank: (rank, 2))
            splitter = CausalDataSplitter(
                manager, batch_size=16, distributed_sampler=True, grouped=grouped, cells_per_group=4, pair_controls=True
            )
            loader = splitter.train_dataloader()
            seen.append(set(rows(loader)))
            lengths.append((len(loader), len(list(loader)), len(splitter.val_dataloader())))
            conditions.append(splitter.train_idx.tolist())
        assert conditions[0] == conditions[1]  # also without a seed, all processes agree on the split
        assert not seen[0] & seen[1]
        assert seen[0] | seen[1] == set(conditions[0])
        assert lengths[0] == lengths[1]


def test_split_key_and_external_indexing_reach_the_loaders(adata, manager):
    part = np.array(["train", "valid", "test"])[np.arange(adata.n_obs) % 3]
    adata.obs["split"] = part
    splitter = CausalDataSplitter(manager, split_key="split", batch_size=10)
    splitter.setup()
    for name, loader in zip(
        ("train", "valid", "test"),
        (splitter.train_dataloader(), splitter.val_dataloader(), splitter.test_dataloader()),
        strict=True,
    ):
        assert sorted(rows(loader)) == np.flatnonzero(part == name).tolist()
    assert (splitter.n_train, splitter.n_val) == (43, 43)
    given = CausalDataSplitter(manager, external_indexing=[splitter.train_idx, splitter.val_idx])
    assert given.train_idx.tolist() == splitter.train_idx.tolist()
    assert given.test_dataloader() == []
    with pytest.raises(ValueError, match="not both"):
        CausalDataSplitter(manager, split_key="split", external_indexing=[splitter.train_idx])


def test_no_training_control(adata, manager):
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "test", "train")
    with pytest.raises(
        ValueError, match=r"None of the 69 training cells is a control: adata.obs\['split'\] puts all 60"
    ):
        CausalDataSplitter(manager, split_key="split")
    perturbed = np.flatnonzero(adata.obs["perturbation"] != "control")
    with pytest.raises(ValueError, match="None of the 69 training cells"):
        CausalDataSplitter(manager, external_indexing=[perturbed])


def test_a_stratum_without_training_control_is_named_once():
    adata = make_adata()
    lonely = (adata.obs["cell_type"] == "NK") & (adata.obs["donor"] == "d1")
    adata.obs.loc[lonely, "perturbation"] = "A"
    manager = register(adata)
    with pytest.warns(UserWarning, match=rf"1 strata.*donor=d1, cell_type=NK \({lonely.sum()} cells\)"):
        splitter = CausalDataSplitter(manager, pair_controls=True, seed=0)
    batches = list(splitter.train_dataloader())  # a second warning would be an error
    cells, partners = (np.concatenate([b[key].ravel().numpy() for b in batches]) for key in ("ind_x", "control_ind_x"))
    fallen_back = adata.obs.iloc[partners[lonely.to_numpy()[cells]]]
    assert set(fallen_back["cell_type"]) == {"NK"}
    assert set(fallen_back["donor"]) == {"d2"}


def test_sparse_batches_arrive_dense(manager):
    plain, sent_sparse = (
        CausalDataSplitter(manager, pair_controls=True, seed=0, load_sparse_tensor=s) for s in (False, True)
    )
    for a, b in zip(plain.train_dataloader(), sent_sparse.train_dataloader(), strict=True):
        b = sent_sparse.on_after_batch_transfer(b, 0)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_bad_arguments(manager):
    with pytest.raises(ValueError, match="batch_size=16 does not hold one block of cells_per_group=32"):
        CausalDataSplitter(manager, batch_size=16, grouped=True)


def test_works_without_perturbations_unless_they_are_needed(adata, dense):
    manager = AnnDataManager(fields=[LayerField("X", None, is_count_data=False)])
    manager.register_fields(adata)
    assert (
        next(iter(CausalDataSplitter(manager, shuffle_set_split=False).val_dataloader()))["X"].numpy() == dense[:12]
    ).all()
    with pytest.raises(ValueError, match="none are registered"):
        CausalDataSplitter(manager, pair_controls=True)


def test_serves_the_train_method_of_scvi_tools(adata):
    class Model(SCVI):
        _data_splitter_cls = CausalDataSplitter
        _training_plan_cls = CausalTrainingPlan

    Model.setup_anndata(adata)
    model = Model(adata, n_hidden=4, n_latent=2)
    model.train(
        max_epochs=2,
        train_size=0.8,
        batch_size=32,
        accelerator="cpu",
        enable_progress_bar=False,
        check_val_every_n_epoch=1,
    )
    assert sorted(np.concatenate([model.train_indices, model.validation_indices])) == list(range(adata.n_obs))
    assert np.isfinite(model.history["elbo_validation"].to_numpy(float)).all()
    model.train(max_epochs=1, train_size=1.0, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ValueError, match="elbo_validation cannot be monitored"):
        model.train(max_epochs=1, train_size=1.0, accelerator="cpu", enable_progress_bar=False, early_stopping=True)

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scvi_causal.model.base._training import KeepBest

from .conftest import Toy, make_cells

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": 32}


class Record(Callback):
    """Notes the validation loss and the parameters of each epoch, and spoils the parameters after the second."""

    def __init__(self):
        self.values, self.states = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            with torch.no_grad():
                pl_module.module.log_fold += 5.0

    def on_validation_end(self, trainer, pl_module):
        self.values.append(float(trainer.callback_metrics["validation_loss"]))
        self.states.append(pl_module.module.log_fold.detach().clone())


@pytest.fixture
def untrained():
    adata = make_cells()
    Toy.setup_anndata(adata)
    return Toy(adata)


def test_best_epoch_is_put_back(untrained):
    record = Record()
    untrained.train(max_epochs=4, keep_best=True, callbacks=[record], **QUIET)
    best = int(np.argmin(record.values))
    assert best == 1
    assert torch.equal(untrained.module.log_fold.detach(), record.states[best])


def test_last_epoch_stays_without(untrained):
    record = Record()
    untrained.train(max_epochs=4, callbacks=[record], check_val_every_n_epoch=1, **QUIET)
    assert torch.equal(untrained.module.log_fold.detach(), record.states[-1])


def test_early_stopping_monitors_the_loss_and_keeps_the_best(untrained):
    record = Record()
    untrained.train(max_epochs=50, early_stopping=True, early_stopping_patience=2, callbacks=[record], **QUIET)
    assert len(record.values) < 50
    assert torch.equal(untrained.module.log_fold.detach(), record.states[int(np.argmin(record.values))])


def test_best_by_a_metric_that_is_not_logged(untrained):
    with pytest.raises(ValueError, match=r"'no_such_metric' is not logged.*validation_loss"):
        untrained.train(max_epochs=1, callbacks=[KeepBest("no_such_metric")], check_val_every_n_epoch=1, **QUIET)


def test_keep_best_reads_its_mode():
    with pytest.raises(ValueError, match="mode"):
        KeepBest(mode="lowest")


def test_nan_is_named(untrained):
    with torch.no_grad():
        untrained.module.log_theta[0] = float("nan")
    with pytest.raises(ValueError, match="log_theta"):
        untrained.train(max_epochs=1, **QUIET)


def test_options_reach_splitter_and_plan(untrained):
    seen = {}

    class Plan(Toy._training_plan_cls):
        def __init__(self, module, **kwargs):
            seen.update(kwargs)
            super().__init__(module, **kwargs)

    untrained._training_plan_cls = Plan
    untrained.train(max_epochs=1, plan_kwargs={"eps": 1e-3}, datasplitter_kwargs={"seed": 3}, train_size=0.5, **QUIET)
    assert seen == {"lr": 0.05, "eps": 1e-3}
    assert len(untrained.train_indices) == pytest.approx(60, abs=2)


def test_no_data_to_train_on(untrained, tmp_path):
    untrained.train(max_epochs=1, **QUIET)
    untrained.save(str(tmp_path / "m"))
    with pytest.raises(ValueError, match="AnnData"):
        Toy.load(str(tmp_path / "m"), adata=False, accelerator="cpu").train(max_epochs=1)


def test_default_number_of_epochs(untrained):
    assert untrained._default_max_epochs(None) == 400


def test_split_key_is_kept(untrained):
    untrained.adata.obs["part"] = np.where(np.arange(120) % 10 == 0, "test", "train")
    untrained.train(max_epochs=1, split_key="part", **QUIET)
    assert untrained.split_key_ == "part"
    assert len(untrained.test_indices) == 12


def test_trainer_config_is_honoured_and_arguments_win(untrained):
    from scvi.train import TrainerConfig

    config = TrainerConfig(early_stopping_monitor="reconstruction_loss_validation", max_epochs=7)
    untrained.train(max_epochs=2, early_stopping=True, trainer_config=config, **QUIET)
    assert untrained.trainer.early_stopping_callback.monitor == "reconstruction_loss_validation"
    assert untrained.trainer.max_epochs == 2

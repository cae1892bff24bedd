import pytest
import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from scvi.train import Trainer
from torch.utils.data import DataLoader


class TinyModule(BaseModuleClass):
    """Two layers whose loss can be told to fail in a given way."""

    def __init__(self, fails: str = ""):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.fails = fails
        self.kl_weights = []
        self.modes = []

    def _get_inference_input(self, tensors, full_forward_pass=False):
        return {"x": tensors["X"]}

    @auto_move_data
    def inference(self, x):
        z = self.encoder(x)
        if self.fails == "distribution":
            torch.distributions.Normal(z, 1.0)
        if self.fails == "inference":
            z = z / 0
        return {"z": z}

    def _get_generative_input(self, tensors, inference_outputs):
        return {"z": inference_outputs["z"]}

    @auto_move_data
    def generative(self, z):
        return {"mean": self.decoder(z)}

    def loss(self, tensors, inference_outputs, generative_outputs, kl_weight=1.0):
        self.kl_weights.append(float(kl_weight))
        self.modes.append(self.training)
        reconstruction = (generative_outputs["mean"] - tensors["X"]).square().sum(1)
        mmd = inference_outputs["z"].mean()
        loss = reconstruction.mean() + kl_weight * 0
        if self.fails == "component":
            mmd = mmd / 0
            return LossOutput(loss=loss + mmd, extra_metrics={"fine": loss, "mmd": mmd}, n_obs_minibatch=4)
        if self.fails == "gradient":
            loss = loss + (self.decoder.bias * 0).square().sum().sqrt()  # finite, but its derivative is 0 / 0
        if self.fails == "loss":
            loss = loss * float("inf")
        return LossOutput(loss=loss, reconstruction_loss=reconstruction, extra_metrics={"mmd": mmd})

    def sample(self):
        raise NotImplementedError


def make_batch(seed: int = 0) -> dict:
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    return {"X": x, "control_X": x.clone(), "ind_x": torch.arange(10, 14)[:, None], "batch": torch.zeros(4, 1).long()}


@pytest.fixture
def fit(tmp_path):
    def run(plan, batches=None, max_epochs=1, accelerator="cpu", **kwargs):
        batches = batches if batches is not None else [make_batch(0), make_batch(1)]
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_epochs=max_epochs,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
            **kwargs,
        )
        loader = DataLoader(batches, batch_size=None)
        trainer.fit(plan, loader, loader)  # the trainer validates only where it is asked to
        return trainer

    return run

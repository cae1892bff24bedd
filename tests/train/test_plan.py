import numpy as np
import pytest
import torch

from scvi_causal.train import CausalTrainingPlan

from .conftest import TinyModule, make_batch


def test_optimizer_defaults_are_those_of_the_papers(fit):
    plan = CausalTrainingPlan(TinyModule())
    (optimizer,) = fit(plan).optimizers
    assert isinstance(optimizer, torch.optim.Adam)
    assert (optimizer.defaults["lr"], optimizer.defaults["eps"], optimizer.defaults["weight_decay"]) == (1e-3, 1e-8, 0)
    assert optimizer.defaults["fused"]
    assert not optimizer.defaults["decoupled_weight_decay"]


@pytest.mark.parametrize("options", [{}, {"optimizer": "AdamW", "weight_decay": 0.1}])
def test_a_fused_step_is_the_plain_step(fit, options):
    trained = []
    for fused in (True, False):
        plan = CausalTrainingPlan(TinyModule(), fused=fused, lr=0.1, **options)
        fit(plan, max_epochs=5)
        trained.append(torch.nn.utils.parameters_to_vector(plan.module.parameters()))
    assert torch.allclose(*trained, atol=1e-6)


@pytest.mark.parametrize(
    ("warmup", "weights"),
    [
        ("auto", [0, 1 / 2, 1, 1, 1, 1, 1]),
        (1.0, [t / 6 for t in range(7)]),
        (0.5, [0, 1 / 3, 2 / 3, 1, 1, 1, 1]),
        (4, [0, 1 / 4, 1 / 2, 3 / 4, 1, 1, 1]),
        (1, [0, 1, 1, 1, 1, 1, 1]),
        (0, [1] * 7),
        (0.0, [1] * 7),
        (None, [1] * 7),
    ],
)
def test_weight_of_the_divergence(fit, warmup, weights):
    module = TinyModule()
    fit(CausalTrainingPlan(module, n_epochs_kl_warmup=warmup), batches=[make_batch()], max_epochs=7)
    assert module.kl_weights == pytest.approx(weights)


def test_one_epoch_trains_at_full_weight(fit):
    module = TinyModule()
    fit(CausalTrainingPlan(module), max_epochs=1)
    assert module.kl_weights == [1, 1]


@pytest.mark.parametrize("warmup", [-1, 1.5, "half", True])
def test_warmup_that_is_none(warmup):
    with pytest.raises(ValueError, match="n_epochs_kl_warmup.*got"):
        CausalTrainingPlan(TinyModule(), n_epochs_kl_warmup=warmup)


def test_relative_warmup_needs_a_number_of_epochs(fit):
    with pytest.raises(ValueError, match="'auto' is relative"):
        fit(CausalTrainingPlan(TinyModule()), max_epochs=-1, max_steps=3)


class Recorder(CausalTrainingPlan):
    def configure_gradient_clipping(self, optimizer, *args, **kwargs):
        params = dict(self.module.named_parameters())
        for scale, (_, p) in enumerate(params.items()):
            if p.grad is not None:
                p.grad.fill_(10.0**scale)
        self.before = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        self.after = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}


@pytest.mark.parametrize("per_tensor", [False, True])
def test_clipping(fit, per_tensor):
    plan = Recorder(TinyModule(), gradient_clip_val=2.5, clip_per_tensor=per_tensor)
    fit(plan, batches=[make_batch()])
    total = np.sqrt(sum(float(g.square().sum()) for g in plan.before.values()))
    for name, before in plan.before.items():
        norm = float(before.norm()) if per_tensor else total
        assert torch.allclose(plan.after[name], before * min(1, 2.5 / norm), rtol=1e-4)


def test_the_trainer_can_clip_instead(fit):
    plan = Recorder(TinyModule())
    fit(plan, batches=[make_batch()], gradient_clip_val=0.5)
    assert sum(float(g.square().sum()) for g in plan.after.values()) == pytest.approx(0.25, rel=1e-4)
    plan = Recorder(TinyModule())
    fit(plan, batches=[make_batch()])
    assert all(torch.equal(plan.before[name], plan.after[name]) for name in plan.before)


def test_clipping_each_tensor_needs_a_norm():
    with pytest.raises(ValueError, match="needs a `gradient_clip_val`"):
        CausalTrainingPlan(TinyModule(), clip_per_tensor=True)


def test_misspelt_arguments_are_named():
    with pytest.raises(ValueError, match=r"'weight_decy'.*Did you mean 'weight_decay'"):
        CausalTrainingPlan(TinyModule(), weight_decy=0.1)


def test_a_trained_module_is_trained_again_in_train_mode(fit):
    module = TinyModule()
    fit(CausalTrainingPlan(module))
    module.eval()
    fit(CausalTrainingPlan(module))
    assert all(module.modes)


def test_nothing_of_a_step_is_kept(fit):
    plan = CausalTrainingPlan(TinyModule())
    trainer = fit(plan)
    assert plan.step_outputs is None
    assert all(callback._batch is None for callback in trainer.callbacks if hasattr(callback, "_batch"))


@pytest.mark.gpu
def test_on_a_gpu(fit):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    plan = CausalTrainingPlan(TinyModule(), gradient_clip_val=1.0)
    trainer = fit(plan, accelerator="gpu")
    assert trainer.optimizers[0].defaults["fused"]
    assert np.isfinite(float(trainer.callback_metrics["train_loss"]))

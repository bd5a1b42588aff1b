"""The same estimate on a CUDA device as on the CPU. Skipped without one."""

import pytest
import torch

import zorn


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("perturbation", [zorn.RankOne(), zorn.RankOne(noise="gaussian"), zorn.Dense()])
@pytest.mark.parametrize("estimator", [zorn.CDRGE, zorn.FDRGE, zorn.SPSA15])
def test_an_estimate_is_that_of_the_cpu(estimator, perturbation):
    found = {}
    for device in ("cpu", "cuda"):
        model = zorn.LanguageModel(29, 16, num_heads=2, seed=1).double().to(device)
        batch = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0).training_batch(0)
        batch = zorn.Batch(*(part.to(device) for part in batch))
        own = estimator(population=8, epsilon=0.01, group_size=1, perturbation=perturbation)
        estimate = own.estimate(model, batch, zorn.TokenCrossEntropy())
        found[device] = (estimate.coefficients, [p.grad.cpu() for p in model.parameters()])
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_fused_update_in_bfloat16_runs_on_the_device():
    model = zorn.LanguageModel(29, 16).bfloat16().cuda()
    before = [p.clone() for p in model.parameters()]
    batch = zorn.tasks.CopyTask(batch=8, minimum_length=2, maximum_length=4, seed=0).training_batch(0)
    batch = zorn.Batch(*(part.cuda() for part in batch))
    estimator = zorn.CDRGE(population=8, epsilon=0.02, group_size=1)
    estimator.estimate(
        model, batch, zorn.TokenCrossEntropy(), update=zorn.estimators.FusedSGD(learning_rate=0.1)
    )
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))

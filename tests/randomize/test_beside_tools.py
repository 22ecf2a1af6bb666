"""Averaged weights, scaled losses and exported graphs of models under a preset."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import randbp

PRESETS = ("exact", "memory", "time")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_moving_average_of_weights_is_one_of_the_plain_model(preset: str) -> None:
    images, model = torch.randn(4, 3, 12, 12), network()
    handle = randbp.randomize(model, preset=preset)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        with handle.lean():
            model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        for name, value in model.named_parameters():  # the first average is the weights themselves
            expected[name].copy_(value.detach() if step == 0 else 0.9 * expected[name] + 0.1 * value.detach())
    plain = network()
    plain.load_state_dict(average.module.state_dict())
    for name, value in plain.named_parameters():
        torch.testing.assert_close(value, expected[name])
    assert torch.equal(average.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_in_eval_mode_is_exported_without_anything_of_ours(preset: str) -> None:
    images, model = torch.randn(4, 3, 12, 12), network()
    handle = randbp.randomize(model, preset=preset)
    exported = torch.export.export(model.eval(), (images,))
    assert not [node for node in exported.graph.nodes if "randbp" in str(node.target)]
    handle.remove()
    assert torch.equal(exported.module()(images), model(images))


@pytest.mark.parametrize(
    "estimators",
    [{"preset": "memory"}, {"weight_vjp": randbp.Importance(0.5), "input_vjp": randbp.Importance(0.5)}],
    ids=["memory", "importance"],
)
def test_a_scaled_loss_has_scaled_gradients_and_overflow_skips_the_step(estimators: dict[str, object]) -> None:
    images, found = torch.randn(4, 3, 12, 12), []
    for scale in (1.0, 2.0**10):
        model = network()
        with randbp.randomize(model, seed=0, **estimators):  # type: ignore[arg-type]
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            scaler.scale(model(images).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append([parameter.detach().clone() for parameter in model.parameters()])
            scaler.scale(model(images).square().mean() * torch.inf).backward()
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == scale / 2
            assert all(torch.equal(a, b) for a, b in zip(found[-1], model.parameters(), strict=True))
    for plain, scaled in zip(*found, strict=True):  # a power of two changes no digit
        torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-7)

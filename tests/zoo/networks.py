"""Small networks of other libraries, with random weights, a batch of random numbers and the loss of their kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .without_torchvision import without_torchvision

with without_torchvision():
    import segmentation_models_pytorch as smp
    import timm
import diffusers
import transformers
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.losses import DiceCELoss
from monai.networks import nets


class Task(nn.Module):
    """A network together with its loss, so that both are measured, and lean."""

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, **batch: Any) -> Tensor:
        return self.loss(self.network, **batch)


@dataclass(frozen=True)
class Case:
    """How a network is made, and its batch; ``library`` says whose it is."""

    library: str
    name: str
    make: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    batch: Callable[[], dict[str, Tensor]]
    frozen: bool = False

    def task(self) -> tuple[Task, dict[str, Tensor]]:
        """The network, in training mode, and its batch."""
        torch.manual_seed(0)
        task = Task(self.make(), self.loss).train()
        if self.frozen:
            task.requires_grad_(False)
        return task, self.batch()


def _classified(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(images), labels)


def _segmented(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    output = network(images)
    output = output[0] if isinstance(output, list | tuple) else output
    if output.dim() == labels.dim() + 1:  # the deep supervision of DynUNet has a dimension for it
        output = output[:, 0]
    loss: Tensor = DiceCELoss(to_onehot_y=True, softmax=True)(output, labels)
    return loss


def _own(network: nn.Module, **batch: Any) -> Tensor:
    loss: Tensor = network(**batch).loss
    return loss


def _denoised(network: nn.Module, images: Tensor, noise: Tensor, **keywords: Tensor) -> Tensor:
    return F.mse_loss(network(images, **keywords).sample, noise)


def _autoencoded(network: Any, images: Tensor) -> Tensor:
    latents = network.encode(images).latent_dist
    return F.mse_loss(network.decode(latents.sample()).sample, images) + 1e-3 * latents.kl().mean()


def _decoded(network: Any, latents: Tensor, images: Tensor) -> Tensor:
    return F.mse_loss(network.decode(latents).sample, images)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _numbers(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(2))


def _images(size: int, examples: int = 4) -> dict[str, Tensor]:
    return {"images": _noise(examples, 3, size, size), "labels": _numbers(10, examples)}


def _maps(classes: int, examples: int, channels: int, *size: int) -> dict[str, Tensor]:
    return {"images": _noise(examples, channels, *size), "labels": _numbers(classes, examples, 1, *size)}


def _tokens(length: int = 64, examples: int = 4) -> dict[str, Tensor]:
    tokens = _numbers(100, examples, length)
    padded = torch.arange(length)[None] < torch.tensor([length] * (examples - 1) + [length // 2])[:, None]
    return {"input_ids": tokens, "attention_mask": padded.long(), "labels": tokens}


def _of_timm(name: str, **options: Any) -> Case:
    make = partial(timm.create_model, name, num_classes=10, **options)
    return Case("timm", name, make, _classified, partial(_images, 64))


def _of_transformers(kind: str, config: Any, batch: Callable[[], dict[str, Tensor]], name: str = "") -> Case:
    return Case("transformers", name or kind, lambda: getattr(transformers, kind)(config), _own, batch)


def _yolos() -> dict[str, Any]:
    boxes = [{"class_labels": torch.tensor([1, 2]), "boxes": torch.rand(2, 4) / 2 + 0.25} for _ in range(2)]
    return {"pixel_values": _noise(2, 3, 64, 64), "labels": boxes}


_TEXT = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = transformers.BertConfig(**_TEXT, intermediate_size=256)
_GPT2 = transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0)
_LLAMA = transformers.LlamaConfig(**_TEXT, intermediate_size=192, num_key_value_heads=2, use_cache=False)
_MAMBA = transformers.MambaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, state_size=8, use_cache=False)
_VISION = {"image_size": 64, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VIT = transformers.ViTConfig(**_VISION, intermediate_size=256, num_labels=10)
_YOLOS = transformers.YolosConfig(**(_VISION | {"image_size": [64, 64]}), intermediate_size=256, num_labels=5)
_STAGES = {"n_stages": 3, "features_per_stage": (16, 32, 64), "kernel_sizes": 3, "strides": (1, 2, 2), "num_classes": 3}
_NNUNET = {"conv_op": nn.Conv3d, "conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}}
_NNUNET |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "n_conv_per_stage_decoder": 2}
_BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
_CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 32}
_CROSS |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4}
_LAYERS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_VAE = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def _noised(size: int = 32, **more: Tensor) -> dict[str, Tensor]:
    return {
        "images": _noise(2, 3, size, size),
        "noise": _noise(2, 3, size, size),
        "timestep": torch.tensor([3, 7]),
    } | more


def _autoencoder() -> nn.Module:
    return diffusers.AutoencoderKL(**_VAE, **_LAYERS, latent_channels=4)


def _latents() -> dict[str, Tensor]:
    return {"latents": _noise(2, 4, 16, 16).requires_grad_(), "images": _noise(2, 3, 32, 32)}


def _mixer() -> nn.Module:
    return timm.models.mlp_mixer.MlpMixer(num_classes=10, img_size=64, patch_size=8, num_blocks=4, embed_dim=128)


def _dyn_unet() -> nn.Module:
    kernels, strides = [3, 3, 3], [1, 2, 2]
    return nets.DynUNet(3, 1, 3, kernels, strides, strides[1:], [16, 32, 64], deep_supervision=True, deep_supr_num=1)


_volumes = partial(_maps, 3, 2, 1, 16, 16, 16)
CASES = (
    _of_timm("resnet18"),
    _of_timm("convnext_atto"),
    _of_timm("mobilenetv3_small_100"),
    _of_timm("efficientnet_b0"),
    _of_timm("regnety_002"),
    _of_timm("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=4),
    _of_timm("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 2, 1), embed_dim=48),
    Case("timm", "mixer", _mixer, _classified, partial(_images, 64)),
    _of_transformers("BertForMaskedLM", _BERT, _tokens),
    _of_transformers("GPT2LMHeadModel", _GPT2, _tokens),
    _of_transformers("LlamaForCausalLM", _LLAMA, _tokens, "LlamaForCausalLM, grouped queries"),
    _of_transformers("MambaForCausalLM", _MAMBA, partial(_tokens, 32)),
    _of_transformers(
        "ViTForImageClassification",
        _VIT,
        lambda: {"pixel_values": _noise(4, 3, 64, 64), "labels": _numbers(10, 4)},
    ),
    Case(
        "diffusers",
        "UNet2DModel",
        lambda: diffusers.UNet2DModel(sample_size=32, attention_head_dim=8, **_BLOCKS, **_LAYERS),
        _denoised,
        _noised,
    ),
    Case(
        "diffusers",
        "UNet2DConditionModel",
        lambda: diffusers.UNet2DConditionModel(sample_size=32, in_channels=3, out_channels=3, **_CROSS, **_LAYERS),
        _denoised,
        lambda: _noised(encoder_hidden_states=_noise(2, 8, 32)),
    ),
    Case("diffusers", "AutoencoderKL", _autoencoder, _autoencoded, lambda: {"images": _noise(2, 3, 32, 32)}),
    Case("diffusers", "AutoencoderKL, frozen decoder", _autoencoder, _decoded, _latents, frozen=True),
    Case(
        "monai",
        "UNet, 2-d",
        lambda: nets.UNet(2, 1, 3, (16, 32, 64), (2, 2), num_res_units=2),
        _segmented,
        partial(_maps, 3, 4, 1, 64, 64),
    ),
    Case("monai", "UNet, 3-d", lambda: nets.UNet(3, 1, 3, (16, 32, 64), (2, 2), num_res_units=2), _segmented, _volumes),
    Case("monai", "DynUNet", _dyn_unet, _segmented, _volumes),
    Case(
        "monai",
        "SwinUNETR",
        lambda: nets.SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=3, window_size=4),
        _segmented,
        partial(_maps, 3, 1, 1, 64, 64, 64),
    ),
    Case("monai", "AttentionUnet", lambda: nets.AttentionUnet(3, 1, 3, (16, 32, 64), (2, 2)), _segmented, _volumes),
    Case(
        "nnU-Net",
        "PlainConvUNet",
        lambda: PlainConvUNet(1, n_conv_per_stage=2, **_STAGES, **_NNUNET),
        _segmented,
        _volumes,
    ),
    Case(
        "nnU-Net",
        "ResidualEncoderUNet",
        lambda: ResidualEncoderUNet(1, n_blocks_per_stage=(1, 2, 2), **_STAGES, **_NNUNET),
        _segmented,
        _volumes,
    ),
    Case(
        "smp",
        "Unet",
        lambda: smp.Unet("tu-resnet18", encoder_weights=None, classes=3),
        _segmented,
        partial(_maps, 3, 2, 3, 64, 64),
    ),
    Case(
        "smp",
        "DeepLabV3Plus",
        lambda: smp.DeepLabV3Plus("tu-resnet18", encoder_weights=None, classes=3),
        _segmented,
        partial(_maps, 3, 2, 3, 64, 64),
    ),
    _of_transformers(
        "YolosForObjectDetection",
        _YOLOS,
        _yolos,
    ),
)

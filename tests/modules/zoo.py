"""Healthy architectures with random weights, small enough for a test: builders of (model, batch)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lipadvisor.modules import ResNetBlock, TransformerBlock

VOCABULARY, CLASSES = 32, 4
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (4, 8), generator=torch.Generator().manual_seed(0))


def _images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=16, **special)
    return GPT2LMHeadModel(config), _tokens()


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=CLASSES, **SMALL)), _tokens()


def t5() -> tuple[nn.Module, Any]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5ForConditionalGeneration(config), {"input_ids": _tokens(), "decoder_input_ids": _tokens()}


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SMALL)), _tokens()


def vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=CLASSES, **SMALL)), _images()


def resnet() -> tuple[nn.Module, Any]:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [2, 2, 2, 2], "num_labels": CLASSES}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)), _images()


def convnext() -> tuple[nn.Module, Any]:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[2, 2, 2, 2], num_labels=CLASSES)
    return ConvNextForImageClassification(config), _images()


def encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 3), _vectors(4, 8, 32)


def transformer() -> tuple[nn.Module, Any]:
    return nn.Transformer(32, 4, 2, 2, 64, batch_first=True), (_vectors(4, 8, 32), _vectors(4, 6, 32))


def mlp() -> tuple[nn.Module, Any]:
    layers = [nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, CLASSES)), _vectors(16, 20)


def own_resnet() -> tuple[nn.Module, Any]:
    blocks = [ResNetBlock(3, 8), ResNetBlock(8, 16, 2), ResNetBlock(16, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)), _vectors(8, 3, 12, 12)


def own_transformer() -> tuple[nn.Module, Any]:
    return nn.Sequential(*(TransformerBlock(32) for _ in range(4)), nn.LayerNorm(32)), _vectors(4, 8, 32)


HUGGING_FACE: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    build.__name__: build for build in (gpt2, bert, t5, llama, vit, resnet, convnext)
}
TORCH: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    build.__name__: build for build in (encoder, transformer, mlp, own_resnet, own_transformer)
}

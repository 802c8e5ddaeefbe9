"""The members as PyTorch modules, layer for layer and name for name those of torchvision.

Written out so that torchvision need not be installed. `forward` returns features; the head, which
follows the dropout, is applied by whoever takes the samples.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 16


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if (inputs, stride) != (outputs, 1):
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(images)))))
        return functional.relu(residual + self.downsample(images))


class ResNet18(nn.Module):
    """Images (batch, band, S, S) -> features (batch, 512)."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.fc = nn.Linear(512, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return features.mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        return self.fc(features)


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        # Torchvision's perceptron has dropouts at places 2 and 4, all of rate zero here.
        layers = (nn.Linear(width, 4 * width), nn.GELU(), nn.Identity())
        self.mlp = nn.Sequential(*layers, nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.self_attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class Encoder(nn.Module):
    """Adds the positions, runs the blocks and normalises: (batch, token, width) to the same."""

    def __init__(self, tokens: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.layers = nn.Sequential()
        for layer in range(depth):
            self.layers.add_module(f"encoder_layer_{layer}", EncoderBlock(width, heads))
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.ln(self.layers(tokens + self.pos_embedding))


class VitB16(nn.Module):
    """Images (batch, band, S, S) -> features (batch, 768): the class token after 12 blocks."""

    def __init__(self, bands: int, size: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, 768))
        self.conv_proj = nn.Conv2d(bands, 768, PATCH, PATCH)
        self.encoder = Encoder(1 + (size // PATCH) ** 2, 768, 12, 12)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(768, 1))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        return self.encoder(tokens)[:, 0]

    def head(self, features: Tensor) -> Tensor:
        return self.heads(features)


Network = ResNet18 | VitB16


def build(architecture: str, *, bands: int, size: int) -> Network:
    """Returns the network called `architecture`, in evaluation mode, its weights undefined."""
    with torch.device("meta"):
        network = ResNet18(bands) if architecture == "resnet18" else VitB16(bands, size)
    return network.to_empty(device="cpu").eval()

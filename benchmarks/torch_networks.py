"""The members as PyTorch modules: torchvision's layers and names, without the need to install it.

`forward` returns features; `head`, which follows the dropout, is applied once a sample.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH, WIDTH, DEPTH, HEADS = 16, 768, 12, 12


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(*(shortcut if stride == 2 else ()))

    def forward(self, images: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(images)))))
        return functional.relu(residual + self.downsample(images))


class ResNet18(nn.Module):
    """Images (batch, band, S, S) -> features (batch, 512)."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.fc = nn.Linear(512, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer2(self.layer1(functional.max_pool2d(features, 3, 2, 1)))
        return self.layer4(self.layer3(features)).mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        return self.fc(features)


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised first and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-6)
        # The identity is torchvision's dropout, of rate zero here.
        first, last = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.mlp = nn.Sequential(first, nn.GELU(), nn.Identity(), last)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln_1(tokens)
        tokens = tokens + self.self_attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class VitB16(nn.Module):
    """Images (batch, band, S, S) -> features (batch, 768): the class token after 12 blocks."""

    def __init__(self, bands: int, size: int) -> None:
        super().__init__()
        blocks = {f"encoder_layer_{layer}": EncoderBlock() for layer in range(DEPTH)}
        self.class_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.conv_proj = nn.Conv2d(bands, WIDTH, PATCH, PATCH)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.empty(1, 1 + (size // PATCH) ** 2, WIDTH))
        self.encoder.layers = nn.ModuleDict(blocks)
        self.encoder.ln = nn.LayerNorm(WIDTH, eps=1e-6)
        self.heads = nn.ModuleDict({"head": nn.Linear(WIDTH, 1)})

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        tokens = tokens + self.encoder.pos_embedding
        for block in self.encoder.layers.values():
            tokens = block(tokens)
        return self.encoder.ln(tokens[:, 0])

    def head(self, features: Tensor) -> Tensor:
        return self.heads["head"](features)


Network = ResNet18 | VitB16

"""PyTorch as a benchmarked program: as older systems ran an ensemble, at its best, and reading."""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from astropy.io import fits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks import workload
from benchmarks.worker import Outputs, Program

try:
    from torchvision import models
except RuntimeError:
    # Its operators, which no network here uses, are of another build than torch, as beside a CPU's
    # from PyTorch's own index.
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    from torchvision import models

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cuda":
    # TensorFloat-32, as JAX computes float32 on a GPU by default.
    torch.set_float32_matmul_precision("high")


class Network(NamedTuple):
    """A network's layers before the dropout, and after it."""

    backbone: nn.Module
    head: nn.Module


def scoring(
    members: Sequence[str], size: int, batch: int, samples: int, precision: str, loop: bool
) -> Program:
    """Returns the ensemble by torch.compile, each backbone run once and the head once a sample.

    As a `loop` it is not compiled, and each sample is a full pass. Of the passes, which are all
    alike, two are run and count as all: two say how far samples lie apart.
    """
    import torch._inductor.config as inductor

    inductor.freezing = True  # weights are constants: convolution and normalisation become one
    # The other attention is written for eager evaluation and cannot be fused with its neighbours.
    torch.backends.mha.set_fastpath_enabled(loop)
    dtype = getattr(torch, precision)
    networks = [network(name, size) for name in members]
    for each in networks:
        nn.Sequential(*each).to(dtype)
    backbones = [each.backbone if loop else torch.compile(each.backbone) for each in networks]
    heads = [each.head for each in networks]
    images = workload.images(batch, size)
    passes, repeats = (min(samples, 2), 1) if loop else (1, samples)

    def logits(backbone: Callable, head: Callable, given: Tensor) -> Tensor:
        features = backbone(given)
        repeated = features.expand(repeats, *features.shape)
        return head(functional.dropout(repeated, workload.DROPOUT, samples > 1))[..., 0]

    @torch.no_grad()
    def run(count: int) -> Outputs:
        for _ in range(count):
            given = on_device(images).to(dtype)
            every = [
                torch.cat([logits(backbone, head, given) for _ in range(passes)])
                for backbone, head in zip(backbones, heads, strict=True)
            ]
            values = torch.stack(every).float().cpu().numpy()
        return mean_over_samples(values)

    return Program(run, batch * passes * repeats / samples, device_peak_bytes)


def training(name: str, size: int, batch: int) -> Program:
    """Returns training steps (forward, backward, AdamW) of one network."""
    trained = nn.Sequential(*network(name, size)).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), 1e-3, weight_decay=1e-2)
    images = workload.images(batch, size)
    labels = torch.arange(batch, device=DEVICE) % 2
    losses: list[float] = []

    def run(count: int) -> Outputs:
        for _ in range(count):
            logits = trained(on_device(images))[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits, labels.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return Outputs(np.array([losses]))

    return Program(run, batch, device_peak_bytes)


def cutouts(folder: str, size: int, batch: int) -> Program:
    """Returns cutouts read, stretched and batched, by as many workers as there are cores."""
    loader: DataLoader = DataLoader(
        sorted(map(str, Path(folder).iterdir())),  # type: ignore[arg-type]
        batch,
        collate_fn=_read,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def run(count: int) -> Outputs:
        for _ in range(count):
            means = next(batches).mean((1, 2, 3))
        return Outputs(means.numpy()[None])

    return Program(run, batch)


def _read(paths: list[str]) -> Tensor:
    """Returns cutouts (batch, band, S, S) as arcsinh((image - level) / (softening noise))."""
    stretched = []
    for path in paths:
        image = fits.getdata(path).astype(np.float32)
        level = np.median(image, axis=(1, 2), keepdims=True)
        noise = 1.4826 * np.median(np.abs(image - level), axis=(1, 2), keepdims=True)
        stretched.append(np.arcsinh((image - level) / (workload.SOFTENING * noise)))
    return torch.from_numpy(np.stack(stretched))


def mean_over_samples(logits: np.ndarray) -> Outputs:
    """Returns the mean of logits (member, sample, batch); one sample stands for itself."""
    samples = logits.shape[1]
    if samples == 1:
        return Outputs(logits[:, 0])
    return Outputs(logits.mean(1), logits.std(1, ddof=1) / np.sqrt(samples))


def network(name: str, size: int) -> Network:
    """Returns torchvision's network of the member called `name` with the weights drawn for it."""
    is_resnet = workload.architecture_of(name) == "resnet18"
    vit = functools.partial(models.vit_b_16, image_size=size)
    built = (models.resnet18 if is_resnet else vit)(num_classes=1).eval().requires_grad_(False)
    shapes = {key: tuple(t.shape) for key, t in built.state_dict().items() if t.shape}
    weights = workload.state_dict(name, shapes)
    built.load_state_dict({k: torch.from_numpy(w) for k, w in weights.items()}, strict=False)
    built.to(DEVICE, memory_format=torch.channels_last)
    head = built.fc if is_resnet else built.heads
    setattr(built, "fc" if is_resnet else "heads", nn.Identity())
    return Network(built, head)


def on_device(images: np.ndarray) -> Tensor:
    """Returns images (batch, S, S, band) as (batch, band, S, S), channels last as they were."""
    return torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)


def device_peak_bytes() -> int | None:
    """Returns the most memory that PyTorch has held on the GPU, None without one."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None

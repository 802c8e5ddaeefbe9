"""PyTorch as a contender: as older systems ran an ensemble, and at its best."""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lensjax.benchmark import drawn, torch_networks
from lensjax.benchmark.contract import Loaded, Outputs, Precision, Program, mean_over_samples
from lensjax.benchmark.torch_networks import Network

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cuda":
    # TensorFloat-32, as JAX computes float32 on a GPU by default.
    torch.set_float32_matmul_precision("high")


def before(members: Sequence[str], size: int) -> Loaded:
    """Returns the ensemble as each model walking all of the data alone, once for each sample."""
    networks = [network(name, size) for name in members]

    def prepare(samples: int, batch: int) -> Program:
        images, passes = drawn.images(batch, size), timed_passes(samples)

        def run(count: int) -> Outputs:
            walks = [
                [full_pass(each, images, samples > 1) for _ in range(count * passes)]
                for each in networks
            ]
            return mean_over_samples(np.array(walks)[:, :passes])

        return Program(run, batch * passes / samples)

    return Loaded(prepare, device(), device_peak_bytes)


def after(members: Sequence[str], size: int) -> Loaded:
    """Returns the ensemble as models in threads on one batch, each passing it once a sample."""
    networks = [network(name, size) for name in members]

    def prepare(samples: int, batch: int) -> Program:
        images, passes = drawn.images(batch, size), timed_passes(samples)

        def all_passes(each: Network) -> list[np.ndarray]:
            return [full_pass(each, images, samples > 1) for _ in range(passes)]

        def run(count: int) -> Outputs:
            with ThreadPoolExecutor(len(networks)) as pool:
                for _ in range(count):
                    walks = list(pool.map(all_passes, networks))
            return mean_over_samples(np.array(walks))

        return Program(run, batch * passes / samples)

    return Loaded(prepare, device(), device_peak_bytes)


def timed_passes(samples: int) -> int:
    """Returns how many of the passes that `samples` take are run in a turn.

    They are all alike: ten take five times as long as two. Two at the least say how far samples
    lie apart.
    """
    return min(samples, 2)


def best(
    members: Sequence[str], size: int, compiled: bool, precision: Precision = "float32"
) -> Loaded:
    """Returns the ensemble with each backbone run once and the head alone once a sample."""
    dtype = getattr(torch, precision)
    networks = [network(name, size).to(dtype) for name in members]

    @functools.cache
    def backbones(batch: int) -> tuple[list[Callable[[Tensor], Tensor]], float]:
        """Returns what makes features of images, and the seconds that compiling it took."""
        if not compiled:
            return list(networks), 0.0
        return compile_all(networks, on_device(drawn.images(batch, size)).to(dtype))

    def prepare(samples: int, batch: int) -> Program:
        features_of, compile_seconds = backbones(batch)
        images = drawn.images(batch, size)

        @torch.no_grad()
        def run(count: int) -> Outputs:
            for _ in range(count):
                given = on_device(images).to(dtype)
                logits = [
                    head_samples(each, features(given), samples)
                    for each, features in zip(networks, features_of, strict=True)
                ]
                values = torch.stack(logits).float().cpu().numpy()
            return mean_over_samples(values)

        return Program(run, batch, compile_seconds)

    return Loaded(prepare, device(), device_peak_bytes)


def compile_all(
    networks: Sequence[nn.Module], images: Tensor
) -> tuple[list[Callable[[Tensor], Tensor]], float]:
    """Returns the compiled `networks` and the seconds that it took.

    Weights are made constants: convolution and normalisation become one, and weights are laid out
    as the kernels like them. Nothing is taken from an earlier run.
    """
    import torch._inductor.config as inductor

    inductor.freezing = True
    # The other attention is written for eager evaluation and cannot be fused with its neighbours.
    torch.backends.mha.set_fastpath_enabled(False)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        with torch.no_grad():
            compiled = [torch.compile(each) for each in networks]
            for each in compiled:
                each(images)
    return compiled, time.perf_counter() - start


def training(members: Sequence[str], size: int) -> Loaded:
    """Returns training steps (forward, backward, AdamW) of the one network in `members`."""
    (name,) = members
    trained = network(name, size).train().requires_grad_(True)

    def prepare(batch: int) -> Program:
        optimizer = torch.optim.AdamW(trained.parameters(), 1e-3, weight_decay=1e-2)
        images = drawn.images(batch, size)
        labels = torch.arange(batch, device=DEVICE) % 2
        losses: list[float] = []

        def run(count: int) -> Outputs:
            for _ in range(count):
                logits = trained.head(trained(on_device(images)))[:, 0]
                loss = functional.binary_cross_entropy_with_logits(logits, labels.float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            return Outputs(np.array([losses]))

        return Program(run, batch)

    return Loaded(prepare, device(), device_peak_bytes)


def matrix_product() -> Loaded:
    """Returns float32 products of square matrices, in operations."""
    side = 2048 if DEVICE == "cpu" else 8192

    def prepare() -> Program:
        matrix = torch.full((side, side), 1.0 / side, device=DEVICE)

        def run(count: int) -> Outputs:
            for _ in range(count):
                result = matrix @ matrix
            return Outputs(result[:1, :1].cpu().numpy())

        return Program(run, 2.0 * side**3)

    return Loaded(prepare, device(), device_peak_bytes)


def network(name: str, size: int) -> Network:
    """Returns the network of the member called `name` with the weights drawn for it."""
    built = torch_networks.build(drawn.architecture_of(name), bands=drawn.BANDS, size=size)
    shapes = {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()}
    shapes = {key: shape for key, shape in shapes.items() if "num_batches" not in key}
    tensors = drawn.state_dict(name, shapes)
    built.load_state_dict({key: torch.from_numpy(tensors[key]) for key in tensors}, strict=False)
    built.requires_grad_(False).to(DEVICE)
    return cast(Any, built).to(memory_format=torch.channels_last)


@torch.no_grad()
def full_pass(each: Network, images: np.ndarray, dropout: bool) -> np.ndarray:
    """Returns the logits (batch,) of images after one pass through the whole network."""
    features = functional.dropout(each(on_device(images)), drawn.DROPOUT, dropout)
    return each.head(features)[:, 0].cpu().numpy()


def head_samples(each: Network, features: Tensor, samples: int) -> Tensor:
    """Returns the logits (sample, batch) of the head alone, each sample with masks of its own."""
    repeated = features.expand(samples, *features.shape)
    return each.head(functional.dropout(repeated, drawn.DROPOUT, samples > 1))[..., 0]


def on_device(images: np.ndarray) -> Tensor:
    """Returns images (batch, S, S, band) as (batch, band, S, S), channels last as they were."""
    return torch.from_numpy(images).to(DEVICE).permute(0, 3, 1, 2)


def device() -> str:
    """Returns where PyTorch computes, in words."""
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} cores"
    return f"PyTorch on {DEVICE}: {where}"


def device_peak_bytes() -> int | None:
    """Returns the most memory that PyTorch has held on the GPU, None without one."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None

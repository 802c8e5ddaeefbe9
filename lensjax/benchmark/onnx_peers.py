"""ONNX Runtime and OpenVINO as contenders, both on networks that PyTorch has written as ONNX.

The files hold the backbones and lie in the temporary folder, which both find them in; the samples
of the head are drawn here by NumPy.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from lensjax.benchmark import drawn
from lensjax.benchmark.contract import Loaded, Outputs, Program, mean_over_samples

Backbone = Callable[[np.ndarray], np.ndarray]


def onnxruntime(members: Sequence[str], size: int) -> Loaded:
    """Returns the ensemble by ONNX Runtime, on a GPU where it was built for one."""
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    providers = [name for name in providers if name in onnxruntime.get_available_providers()]

    def backbone(path: Path) -> Backbone:
        options = onnxruntime.SessionOptions()
        # Waiting threads must not take the processor from whoever's turn it is.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        return lambda images: session.run(None, {"images": images})[0]

    return _ensemble(members, size, backbone, f"ONNX Runtime, {providers[0]}")


def openvino(members: Sequence[str], size: int) -> Loaded:
    """Returns the ensemble by OpenVINO on the CPU."""
    from openvino import Core

    core = Core()
    # Left alone it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

    def backbone(path: Path) -> Backbone:
        compiled = core.compile_model(path, "CPU", settings)
        return lambda images: compiled(images)[0]

    return _ensemble(members, size, backbone, "OpenVINO on cpu")


def _ensemble(
    members: Sequence[str],
    size: int,
    backbone: Callable[[Path], Backbone],
    device: str,
) -> Loaded:
    """Returns the ensemble whose features come from what `backbone` makes of an ONNX file."""

    @functools.cache
    def backbones(batch: int) -> tuple[list[Backbone], float]:
        """Returns what makes features of images, and the seconds that opening the files took."""
        paths = [Path(tempfile.gettempdir()) / f"{name}-{size}-{batch}.onnx" for name in members]
        for name, path in zip(members, paths, strict=True):
            if not path.exists():
                # Elsewhere: PyTorch's memory is not this library's.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    pool.submit(write_onnx, name, size, batch, path).result()
        start = time.perf_counter()
        return [backbone(path) for path in paths], time.perf_counter() - start

    def prepare(samples: int, batch: int) -> Program:
        features_of, compile_seconds = backbones(batch)
        heads = [drawn.head(name) for name in members]
        # NumPy's channels last to ONNX's channels first, once: images could be kept in that order.
        images = np.ascontiguousarray(drawn.images(batch, size).transpose(0, 3, 1, 2))
        rng = np.random.default_rng(0)

        def run(count: int) -> Outputs:
            for _ in range(count):
                logits = [
                    head_samples(features(images), *head, samples, rng)
                    for features, head in zip(features_of, heads, strict=True)
                ]
            return mean_over_samples(np.stack(logits))

        return Program(run, batch, compile_seconds)

    return Loaded(prepare, device)


def head_samples(
    features: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    samples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns the logits (sample, batch) of features (batch, feature), with dropout if many."""
    if samples > 1:
        kept = rng.random((samples, *features.shape), np.float32) >= drawn.DROPOUT
        features = np.where(kept, features / np.float32(1 - drawn.DROPOUT), np.float32(0))
    return (features @ weight[0] + bias).reshape(samples, -1)


def write_onnx(name: str, size: int, batch: int, path: Path) -> None:
    """Writes the backbone of a member as ONNX, for batches of `batch` images."""
    import torch

    from lensjax.benchmark import torch_peers

    # The attention of eager evaluation is one operation that ONNX does not have.
    torch.backends.mha.set_fastpath_enabled(False)
    network = torch_peers.network(name, size).cpu()
    images = torch.zeros(batch, drawn.BANDS, size, size)
    # The exporter of old: the newer one wants a package that the extra `peers` can do without.
    torch.onnx.export(
        network, (images,), path, dynamo=False, input_names=["images"], output_names=["features"]
    )

"""PyTorch's names into the models: every spelling, every adaptation, all complaints at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensjax.errors import LensjaxError
from lensjax.models.resnet import ResNet
from lensjax.models.torch_import import fits, load_torch_weights
from lensjax.models.vit import VisionTransformer, interpolate_position_embedding
from tests.models.built import logits, random


def vit(bands: int = 3, input_size: int = 48) -> VisionTransformer:
    return random(
        lambda rngs: VisionTransformer(
            width=8,
            depth=3,
            heads=2,
            bands=bands,
            input_size=input_size,
            dropout=0.0,
            block_dropout=0.0,
            rngs=rngs,
        ),
        seed=1,
    )


def resnet(bands: int = 3) -> ResNet:
    return random(lambda rngs: ResNet((1, 1, 1, 1), bands=bands, dropout=0.0, rngs=rngs), seed=1)


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.abs(rng.standard_normal(shape, np.float32)) * 0.1 for name, shape in shapes.items()
    }


def torchvision_vit(outputs: int = 1) -> dict[str, np.ndarray]:
    """Weights of a transformer 8 wide with 3 blocks on 3x3 patches, as torchvision names them."""
    shapes = {
        "class_token": (1, 1, 8),
        "conv_proj.weight": (8, 3, 16, 16),
        "conv_proj.bias": (8,),
        "encoder.pos_embedding": (1, 10, 8),
        "encoder.ln.weight": (8,),
        "encoder.ln.bias": (8,),
        "heads.head.weight": (outputs, 8),
        "heads.head.bias": (outputs,),
    }
    for block in range(3):
        prefix = f"encoder.layers.encoder_layer_{block}"
        for name, shape in {
            "ln_1": (8,),
            "self_attention.in_proj": (24, 8),
            "self_attention.out_proj": (8, 8),
            "ln_2": (8,),
            "mlp.0": (32, 8),
            "mlp.3": (8, 32),
        }.items():
            joint = "_" if name.endswith("in_proj") else "."
            shapes[f"{prefix}.{name}{joint}weight"] = shape
            shapes[f"{prefix}.{name}{joint}bias"] = shape[:1]
    return drawn(shapes)


def torchvision_resnet(outputs: int = 1) -> dict[str, np.ndarray]:
    """Weights of a residual network with one block a stage, as torchvision names them."""
    convolutions = {"conv1": (64, 3, 7, 7)}
    inputs = 64
    for stage, outputs_of_stage in enumerate((64, 128, 256, 512), start=1):
        block = f"layer{stage}.0"
        convolutions[f"{block}.conv1"] = (outputs_of_stage, inputs, 3, 3)
        convolutions[f"{block}.conv2"] = (outputs_of_stage, outputs_of_stage, 3, 3)
        if stage > 1:
            convolutions[f"{block}.downsample.0"] = (outputs_of_stage, inputs, 1, 1)
        inputs = outputs_of_stage
    shapes = {"fc.weight": (outputs, 512), "fc.bias": (outputs,)}
    for name, shape in convolutions.items():
        shapes[f"{name}.weight"] = shape
        norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{leaf}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()
    return drawn(shapes)


def renamed(tensors: dict[str, np.ndarray], *pairs: tuple[str, str]) -> dict[str, np.ndarray]:
    result = {}
    for name, array in tensors.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = array
    return result


def same(one: nnx.Module, other: nnx.Module) -> bool:
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(one), nnx.state(other))
    return all(jax.tree.leaves(equal))


def test_every_array_lands_where_it_belongs():
    tensors, model = torchvision_vit(), vit()
    assert load_torch_weights(model, tensors) == ()
    block = "encoder.layers.encoder_layer"
    for index, of_block in enumerate([lambda leaf: leaf[0], lambda leaf: leaf[1], None]):
        ours = model.last if of_block is None else model.blocks
        pick = of_block or (lambda leaf: leaf[...])
        fused = tensors[f"{block}_{index}.self_attention.in_proj_weight"]
        np.testing.assert_array_equal(pick(ours.attention.query.kernel), fused[:8].T)
        np.testing.assert_array_equal(pick(ours.attention.key_value.kernel), fused[8:].T)
        np.testing.assert_array_equal(
            pick(ours.contract.kernel), tensors[f"{block}_{index}.mlp.3.weight"].T
        )
        np.testing.assert_array_equal(
            pick(ours.norm2.scale), tensors[f"{block}_{index}.ln_2.weight"]
        )


def test_names_of_timm_and_old_torchvision():
    expected = vit()
    load_torch_weights(expected, torchvision_vit())
    timm = renamed(
        torchvision_vit(),
        ("class_token", "cls_token"),
        ("conv_proj", "patch_embed.proj"),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.ln", "norm"),
        ("heads.head", "head"),
        ("encoder.layers.encoder_layer_", "blocks."),
        ("ln_", "norm"),
        ("self_attention.in_proj_", "attn.qkv."),
        ("self_attention.out_proj", "attn.proj"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.3", "mlp.fc2"),
    )
    assert "blocks.2.attn.qkv.weight" in timm
    old = renamed(torchvision_vit(), ("mlp.0", "mlp.linear_1"), ("mlp.3", "mlp.linear_2"))
    for tensors in (timm, old):
        model = vit()
        assert load_torch_weights(model, tensors) == ()
        assert same(model, expected)


@pytest.mark.parametrize(
    ("prefix", "of"),
    [("_orig_mod.model.backbone.", "resnet"), ("encoder.", "vit"), ("module.", "average")],
)
def test_wrappers_are_stripped(prefix, of):
    make, tensors = (vit, torchvision_vit()) if of == "vit" else (resnet, torchvision_resnet())
    expected, model = make(), make()
    load_torch_weights(expected, tensors)
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    if of == "average":  # as torch.optim.swa_utils saves it
        tensors["n_averaged"] = np.array(7)
    assert load_torch_weights(model, tensors) == ()
    assert same(model, expected)


@pytest.mark.parametrize(
    ("make", "body", "other"),
    [
        ("resnet", "", "fc.1."),
        ("resnet", "backbone.", "classifier."),
        ("resnet", "model.backbone.", "model.head.fc."),
        ("vit", "", "heads.0."),
        ("vit", "", "head.1."),
        ("vit", "module.", "module.classifier.1."),
    ],
)
def test_heads_in_a_sequential_or_beside_the_backbone_are_found(make, body, other):
    make, tensors, head = {
        "resnet": (resnet, torchvision_resnet(), "fc."),
        "vit": (vit, torchvision_vit(), "heads.head."),
    }[make]
    expected, model = make(), make()
    load_torch_weights(expected, tensors)
    renamed = {
        other + name.removeprefix(head) if name.startswith(head) else body + name: tensor
        for name, tensor in tensors.items()
    }
    assert load_torch_weights(model, renamed) == ()
    assert same(model, expected)


def test_a_head_of_two_layers_is_refused():
    tensors = torchvision_resnet()
    tensors["fc.2.weight"], tensors["fc.2.bias"] = np.ones((1, 64)), np.ones(1)
    tensors["fc.0.weight"], tensors["fc.0.bias"] = np.ones((64, 512)), np.ones(64)
    del tensors["fc.weight"], tensors["fc.bias"]
    with pytest.raises(
        LensjaxError, match="unexpected: fc.0.bias, fc.0.weight, fc.2.bias, fc.2.weight$"
    ):
        load_torch_weights(resnet(), tensors)


def test_two_outputs_become_the_log_odds_of_their_softmax():
    tensors, model = torchvision_resnet(2), resnet()
    (note,) = load_torch_weights(model, tensors)
    assert note.startswith("head with 2 outputs made one log-odds")
    features = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
    of_both = np.exp(features @ tensors["fc.weight"].T + tensors["fc.bias"])
    ours = features @ np.asarray(model.head.linear.kernel) + np.asarray(model.head.linear.bias)
    np.testing.assert_allclose(ours[:, 0], np.log(of_both[:, 1] / of_both[:, 0]), rtol=1e-4)


def test_half_precision_becomes_single():
    model = resnet()
    half = {name: tensor.astype(np.float16) for name, tensor in torchvision_resnet().items()}
    load_torch_weights(model, half)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize("bands", [1, 5])
def test_other_bands_keep_the_response_to_a_grey_image(bands):
    grey = jax.random.normal(jax.random.key(0), (2, 48, 48, 1))
    for make, tensors in ((resnet, torchvision_resnet()), (vit, torchvision_vit())):
        model, original = make(bands=bands), make()
        (note,) = load_torch_weights(model, tensors)
        load_torch_weights(original, tensors)
        assert f"from 3 bands to {bands}" in note
        ours, expected = (
            logits(m, jnp.repeat(grey, n, axis=3)) for m, n in ((model, bands), (original, 3))
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("outputs", [0, 3, 1000])
def test_a_head_of_other_outputs_stays_fresh(outputs):
    for make, tensors, weight in (
        (resnet, torchvision_resnet(outputs), "fc.weight"),
        (vit, torchvision_vit(outputs), "heads.head.weight"),
    ):
        if outputs == 0:  # as timm saves a backbone
            del tensors[weight], tensors[weight.replace("weight", "bias")]
        model, fresh = make(), make()
        (note,) = load_torch_weights(model, tensors)
        assert note.startswith(f"head with {outputs} outputs")
        assert same(model.head, fresh.head)


def test_positions_are_interpolated_to_the_grid_of_the_model():
    model, tensors = vit(input_size=80), torchvision_vit()
    (note,) = load_torch_weights(model, tensors)
    assert "3x3 to 5x5" in note
    expected = interpolate_position_embedding(tensors["encoder.pos_embedding"][0], 3, 5)
    np.testing.assert_array_equal(model.embedding.positions[...], expected)


def test_every_complaint_is_made_at_once_and_nothing_is_loaded():
    tensors = torchvision_vit()
    del tensors["encoder.ln.bias"], tensors["encoder.layers.encoder_layer_1.mlp.3.bias"]
    tensors["encoder.ln.weight"] = np.ones(9, np.float32)
    tensors["conv_proj.weight"] = np.ones((8, 3, 14, 14), np.float32)
    tensors["heads.head.weight"] = np.ones((1, 9), np.float32)
    tensors |= {"extra.weight": np.ones(1), "encoder.pos_bias": np.ones(1)}
    model, untouched = vit(), vit()
    with pytest.raises(LensjaxError) as error:
        load_torch_weights(model, tensors)
    message = str(error.value)
    assert "\n" not in message
    assert "missing: encoder.layers.encoder_layer_1.mlp.3.bias, encoder.ln.bias;" in message
    assert "unexpected: encoder.pos_bias, extra.weight;" in message
    assert "encoder.ln.weight (is (9,), should be (8,))" in message
    assert "conv_proj.weight (is (8, 3, 14, 14), should be (8, 3, 16, 16))" in message
    assert "heads.head.weight (is (1, 9), should be (1, 8))" in message
    assert same(model, untouched)


@pytest.mark.parametrize("name", list(torchvision_vit())[:8])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 0, 8), (8, 0, 16, 16)], ids=str)
def test_nonsense_in_a_place_of_adaptation_is_a_complaint(name, shape):
    with pytest.raises(LensjaxError, match=rf"of the wrong shape:.*{name} \(is"):
        load_torch_weights(vit(), torchvision_vit() | {name: np.zeros(shape, np.float32)})


def test_weights_of_another_kind_of_network_are_refused():
    with pytest.raises(LensjaxError, match=r"missing: bn1.bias.*unexpected: class_token"):
        load_torch_weights(resnet(), torchvision_vit())


def test_one_name_twice_is_refused():
    tensors = {f"module.{name}": tensor for name, tensor in torchvision_resnet().items()}
    tensors["conv1.weight"] = tensors["module.conv1.weight"]
    with pytest.raises(LensjaxError, match="'conv1.weight' twice"):
        load_torch_weights(resnet(), tensors)


def test_long_lists_are_counted():
    with pytest.raises(LensjaxError) as error:
        load_torch_weights(resnet(), torchvision_vit())
    counted = r"missing: bn1.bias, bn1.running_mean, bn1.running_var, bn1.weight and \d\d more;"
    assert re.search(counted, str(error.value)) and len(str(error.value)) < 500


def test_weights_that_are_not_finite_are_refused():
    tensors = torchvision_resnet()
    tensors["bn1.bias"][3] = np.nan
    with pytest.raises(LensjaxError, match="not finite: bn1.bias$"):
        load_torch_weights(resnet(), tensors)


def test_what_fits_is_known_before_anything_is_built():
    outline = nnx.eval_shape(resnet)
    assert fits(outline, torchvision_resnet(5)) and not fits(outline, torchvision_vit())

"""Names, sizes and settings of the architectures."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lensjax.errors import UsageError
from lensjax.models import registry


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_parameters_are_as_many_as_stated(name):
    architecture = registry.resolve(name)
    model = nnx.eval_shape(lambda: registry.create(name, bands=3, input_size=224, rngs=nnx.Rngs(0)))
    built = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert built == architecture.parameters


def test_parameters_are_those_of_torchvision_and_timm():
    """Published counts, less a head of 1000 classes, plus one of one logit."""
    published = {"resnet18": (11_689_512, 512), "resnet34": (21_797_672, 512)}
    published |= {"vit_b16": (86_567_656, 768), "vit_ti16": (5_717_416, 192)}
    for name, (count, features) in published.items():
        expected = count - 1000 * (features + 1) + features + 1
        assert registry.ARCHITECTURES[name].parameters == expected


@pytest.mark.parametrize("name", registry.ARCHITECTURES)
def test_every_architecture_gives_a_logit_an_image(name):
    def logits():
        model = registry.create(name, bands=5, input_size=32, rngs=nnx.Rngs(0))
        return model(jnp.zeros((2, 32, 32, 5)), rngs=nnx.Rngs(dropout=0))

    assert jax.eval_shape(logits).shape == (2,)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("vit_b_16", "vit_b16"),
        ("ViT-B/16", "vit_b16"),
        ("vit_base_patch16_224", "vit_b16"),
        ("ViT-S/16", "vit_s16"),
        ("deit_tiny_patch16_224", "vit_ti16"),
        ("ResNet-18", "resnet18"),
        ("resnet34", "resnet34"),
    ],
)
def test_spellings(spelling, name):
    assert registry.resolve(spelling).name == name


def test_an_unknown_name_is_told_the_known_and_the_nearest():
    with pytest.raises(UsageError) as error:
        registry.resolve("resnet81")
    message = str(error.value)
    assert "did you mean resnet18?" in message and "\n" not in message
    assert all(name in message for name in registry.ARCHITECTURES)
    with pytest.raises(UsageError, match="'???'".replace("?", r"\?")):
        registry.resolve("???")


def test_settings_that_an_architecture_cannot_take_are_refused():
    with pytest.raises(UsageError, match="block_dropout"):
        registry.create("resnet18", bands=3, input_size=64, block_dropout=0.1, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="96 or 112"):
        registry.create("vit_s16", bands=3, input_size=101, rngs=nnx.Rngs(0))

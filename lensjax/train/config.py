"""How a member is trained, as the options of scripts/train.py say it."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from lensjax.ensemble.step import Precision
from lensjax.errors import UsageError
from lensjax.train.augment import Augmentation
from lensjax.train.scales import Schedule


@dataclass(frozen=True)
class Hyperparameters(Augmentation):
    """How a member is trained; durations in epochs of the training data."""

    batch_size: Annotated[int, "cutouts a step"] = 32
    epochs: Annotated[float, "passes over the training data; may be a fraction"] = 20.0
    learning_rate: Annotated[float, "peak of the learning rate"] = 1e-3
    warmup: Annotated[float, "share of the steps in which the learning rate rises"] = 0.1
    weight_decay: Annotated[float, "decoupled weight decay of the kernels"] = 0.05
    label_smoothing: Annotated[float, "share of the labels spread over both classes"] = 0.0
    focusing: Annotated[float, "gamma of the focal loss, 0 for none: sure cutouts count less"] = 0.0
    balanced: Annotated[bool, "lenses count as much as all others together"] = False
    dropout: Annotated[
        float | None,
        "dropout rate before the last layer (default: of the members to start from, else 0.2)",
    ] = None
    block_dropout: Annotated[
        float | None,
        "dropout rate inside transformer blocks (default: of the members to start from, else 0)",
    ] = None
    patience: Annotated[
        int | None,
        "epochs without a better validation loss after which a member stops, once it is trained at "
        "its own size",
    ] = None
    scales: Annotated[
        str | None,
        "input sizes in pixels, comma separated; the largest is the member's own "
        "(default: of the members to start from, else the cutouts' size)",
    ] = None
    schedule: Annotated[
        Schedule,
        "all scales in every step, or one: each its share of the steps (also: --progressive), or "
        "drawn",
    ] = "joint"
    consistency_weight: Annotated[
        float, "of the divergence between the scales' predictions in the joint loss"
    ] = 0.0
    average_decay: Annotated[
        float | None,
        "decay of the moving average of weights and running statistics, which is then what is kept",
    ] = None
    bootstrap: Annotated[bool, "each member weighs the cutouts by a bootstrap of its own"] = False
    micro_batches: Annotated[
        int, "parts of a batch, computed one after the other, whose gradients are added"
    ] = 1
    start_from: Annotated[
        str | None,
        "folder of members to start from, or `demo` for the demonstration's; their input size, "
        "pixel scale, stretch and dropout are kept too where no option says otherwise",
    ] = None
    freeze: Annotated[
        str | None, "weights that stay as they are, by the beginning of their name: stem,stages.0"
    ] = None
    layer_decay: Annotated[
        float, "factor of the learning rate from each layer to the one before it"
    ] = 1.0
    precision: Annotated[Precision, "of the networks' arithmetic; weights are float32"] = "float32"

    def rates(self) -> tuple[float, float]:
        """Returns the dropout rates before the last layer and inside transformer blocks."""
        return 0.2 if self.dropout is None else self.dropout, self.block_dropout or 0.0

    def augmentation(self) -> Augmentation:
        """Returns how cutouts are changed."""
        names = [field.name for field in dataclasses.fields(Augmentation)]
        return Augmentation(**{name: getattr(self, name) for name in names})

    def sizes(self) -> list[int]:
        """Returns the input sizes, none where the cutouts' size is meant."""
        try:
            return [int(size) for size in self.scales.split(",")] if self.scales else []
        except ValueError as error:
            raise UsageError(f"--scales {self.scales}: give numbers as in 64,112,224") from error

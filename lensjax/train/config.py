"""How a member is trained, as the options of scripts/train.py say it."""

import dataclasses
from dataclasses import dataclass

from lensjax.ensemble.step import Precision
from lensjax.errors import UsageError
from lensjax.train.augment import Augmentation
from lensjax.train.schedule import Schedule


@dataclass(frozen=True)
class Hyperparameters(Augmentation):
    """How a member is trained; durations in epochs of the training data."""

    batch_size: int = 32
    """Cutouts per step."""
    epochs: float = 20.0
    """Passes over the training data; may be a fraction."""
    learning_rate: float = 1e-3
    """Peak of the learning rate."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the kernels."""
    label_smoothing: float = 0.0
    """Fraction of each label that is spread over both classes."""
    focusing: float = 0.0
    """Gamma of the focal loss, 0 for none: sure cutouts count less."""
    balanced: bool = False
    """Give lenses and non-lenses the same total weight."""
    dropout: float | None = None
    """Dropout rate before the last layer (None: of the members to start from, else 0.2)."""
    block_dropout: float | None = None
    """Dropout rate inside transformer blocks (None: of the members to start from, else 0)."""
    patience: int | None = None
    """Epochs without a better validation loss after which a member stops, once it is trained at its
    own size."""
    scales: str | None = None
    """Input sizes in pixels, comma separated; the largest is the member's own (None: of the members
    to start from, else the cutouts' size)."""
    schedule: Schedule = "joint"
    """All scales in every step, one scale after the other (also: --progressive), or one chosen at
    random in each step."""
    consistency_weight: float = 0.0
    """Weight of the divergence between the scales' predictions in the joint loss."""
    average_decay: float | None = None
    """Decay of the moving average of weights and running statistics, which is then saved."""
    bootstrap: bool = False
    """Each member weighs the cutouts by its own bootstrap resample."""
    micro_batches: int = 1
    """Parts of a batch, computed one after the other, whose gradients are added."""
    start_from: str | None = None
    """Folder of members, or of one, to start from; their input size, pixel scale, stretch and
    dropout are kept too where no option says otherwise."""
    keep_start: float = 0.0
    """Share of the weights of --start-from in those that are saved; the rest are what was learnt.
    Half keeps more of what the members could do on other data."""
    replay: str | None = None
    """Labelled cutouts of a sky that the members to start from know, mixed with graded ones so that
    what was learned is not forgotten; taken as the latter are."""
    replay_share: float = 0.8
    """Share of these in every batch."""
    head_only: bool = False
    """Learn the last layer alone, for a few hundred grades beside a replayed sky; it takes seconds,
    and epochs and learning rates do not matter."""
    grow_from: str | None = None
    """Folder of a member of a narrower architecture, as vit_ti16 for vit_b16, that is widened to
    start from; what --start-from keeps is kept too."""
    teachers: str | None = None
    """Folder of members, or of one, whose mean logit is learnt beside the labels."""
    teacher_ensemble: str | None = None
    """Which members of --teachers, as --ensemble of infer.py names them."""
    teacher_weight: float = 0.5
    """Weight of the teachers in the loss; that of the labels is the rest."""
    teacher_features: float = 0.0
    """Weight, beside these, of how unlike the teachers' layers those of the student are: 3 lets a
    transformer learn from far fewer cutouts."""
    freeze: str | None = None
    """Weights to freeze, by the beginning of their names: stem,stages.0."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it."""
    precision: Precision = "float32"
    """Precision of the networks' arithmetic; weights are float32."""

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

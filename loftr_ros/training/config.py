"""Settings of a training, one frozen dataclass per stage. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loftr_ros.matcher.checkpoints.recognition import WeightsError, config_from_metadata, metadata_of_config
from loftr_ros.matcher.config import DEFAULT_PRESET, PRESETS, EfficientConfig
from loftr_ros.matcher.config import NetworkConfig as NetworkPreset
from loftr_ros.settings import ConfigError, Settings, setting

# EfficientLoFTR runs with published weights, and can be a teacher; it cannot be trained here.
_TRAINED = tuple(name for name, config in PRESETS.items() if not isinstance(config, EfficientConfig))


@dataclass(frozen=True)
class NetworkConfig(Settings):
    """The network that is trained; `changes` in the file replaces fields of its preset."""

    preset: str = setting(DEFAULT_PRESET, "Preset of the trained network", choices=_TRAINED)
    initial: str = setting("", "Weights file of this network to start from; empty for random weights")


@dataclass(frozen=True)
class LossConfig(Settings):
    """Losses of the paper's section 3.5 and their weights."""

    coarse_weight: float = setting(1.0, "Weight of the coarse loss on cells with a partner", low=0.0, high=100.0)
    focal_alpha: float = setting(0.25, "Alpha of the focal loss", low=0.001, high=1.0)
    focal_gamma: float = setting(2.0, "Gamma of the focal loss; 0 for plain cross-entropy", low=0.0, high=10.0)
    negatives: str = setting(
        "hardest",
        "Wrong pairs that dual-softmax learns from: hardest for the most likely partner of each cell without one,"
        " dense for every wrong pair, none for no pair. Optimal transport uses its dustbins instead",
        choices=("hardest", "dense", "none"),
    )
    no_partner_weight: float = setting(
        1.0,
        "Weight of the loss on cells without a partner (of the dustbins with optimal transport)",
        low=0.0,
        high=100.0,
    )
    no_partner_samples: int = setting(
        64, "Number of cells without a partner that are taken from each image of a pair", low=1, high=10000
    )
    feature_weight: float = setting(
        0.0, "Weight of the coarse loss on the backbone's features before attention", low=0.0, high=100.0
    )
    cell_weight: float = setting(
        1.0, "Weight of the loss on the cells of a region, for networks that match regions first", low=0.0, high=100.0
    )
    cell_samples: int = setting(64, "Number of matched regions per pair in the cell loss", low=1, high=10000)
    fine_weight: float = setting(1.0, "Weight of the fine loss", low=0.0, high=100.0)
    heat_weight: float = setting(
        1.0,
        "Weight of the loss on the fine stage's heat map, for networks that use its peak alone",
        low=0.0,
        high=100.0,
    )
    fine_samples: int = setting(100, "Number of matches per pair in the fine loss", low=1, high=10000)


@dataclass(frozen=True)
class DistillationConfig(Settings):
    """Distillation from a trained network."""

    teacher: str = setting("", "Weights file of the teacher, or a name of `loftr_ros weights list`; empty for none")
    teacher_network: str = setting("", "Preset of the teacher; empty for the preset that its file names")
    weight: float = setting(0.5, "Weight of the teacher's soft targets beside the ground truth", low=0.0, high=100.0)
    temperature: float = setting(
        2.0, "Temperature that softens both confidences; 1 leaves them unchanged", low=0.1, high=20.0
    )


@dataclass(frozen=True)
class PhotosConfig(Settings):
    """Single photographs beside the pairs, to learn a teacher's dense features from; only for `compact`."""

    teacher: str = setting("", "File of XFeat's published weights; empty for no such teacher")
    aliked: str = setting(
        "", "File of ALIKED-n16's published weights, a teacher beside XFeat or alone; empty for no such teacher"
    )
    aliked_weight: float = setting(1.0, "Weight of ALIKED's losses, times those below", low=0.0, high=100.0)
    count: int = setting(4, "Number of photographs per batch, in each process", low=1, high=1024)
    light: float = setting(
        0.4, "Probability that the student sees a photograph in other light than the teacher", low=0.0, high=1.0
    )
    cell_weight: float = setting(1.0, "Weight of the teacher's features on cells of 8 px", low=0.0, high=100.0)
    region_weight: float = setting(1.0, "Weight of the teacher's features on regions of 16 px", low=0.0, high=100.0)
    likeness_weight: float = setting(
        10.0,
        "Weight of the similarity between regions as the teacher computes it; regions are matched by it",
        low=0.0,
        high=1000.0,
    )

    @property
    def has_teacher(self) -> bool:
        """Whether photographs are needed."""
        return bool(self.teacher or self.aliked)


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """AdamW, warm-up, then a cosine over the steps or minutes of the budget."""

    learning_rate: float = setting(1e-3, "Maximum learning rate", low=1e-7, high=1.0)
    weight_decay: float = setting(
        0.01, "Weight decay of matrices and kernels; biases and norms have none", low=0.0, high=1.0
    )
    warmup_steps: int = setting(200, "Number of steps in which the learning rate rises", low=0, high=1000000)
    final_fraction: float = setting(0.01, "Learning rate at the end as a fraction of the maximum", low=0.0, high=1.0)
    gradient_clip: float = setting(1.0, "Maximum norm of the gradient", low=0.001, high=1000.0)
    ema_decay: float = setting(
        0.999,
        "Decay of the moving average of the weights; the averaged weights are validated and exported",
        low=0.0,
        high=0.999999,
    )
    only: str = setting("", "Prefixes of the names of the trained weights, separated by spaces; empty for all weights")


@dataclass(frozen=True)
class BudgetConfig(Settings):
    """Length of the training without interruptions; the first limit ends it."""

    max_steps: int = setting(0, "Maximum number of steps; 0 for as many as fit into the minutes", low=0, high=100000000)
    max_minutes: float = setting(
        0.0,
        "Maximum time of all resumed parts together; 0 for as long as the steps take",
        unit="min",
        low=0.0,
        high=100000.0,
    )
    part_minutes: float = setting(
        0.0,
        "Time after which this process ends, with a checkpoint to resume from; 0 for the whole budget",
        unit="min",
        low=0.0,
        high=100000.0,
    )


@dataclass(frozen=True)
class ValidationConfig(Settings):
    """Validation on held-out pairs with the averaged weights."""

    every_steps: int = setting(1000, "Number of steps between two validations", low=1, high=10000000)
    batches: int = setting(8, "Number of batches of held-out pairs, the same ones every time", low=1, high=10000)


@dataclass(frozen=True)
class MachineConfig(Settings):
    """Devices, precision and processes."""

    accelerator: str = setting("auto", "Device of the training", choices=("auto", "cpu", "cuda"))
    devices: int = setting(1, "Number of GPUs of each machine", low=1, high=64)
    nodes: int = setting(1, "Number of machines", low=1, high=1024)
    precision: str = setting(
        "auto",
        "Precision of the autocast; auto for float16 on GPUs, bfloat16 on processors that have it, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    threads: int = setting(0, "Number of torch's threads; 0 for the number of cores", low=0, high=1024)
    workers: int = setting(
        1, "Number of processes that make the data; 0 to make it in the training's own process", low=0, high=256
    )
    checkpoint_minutes: float = setting(
        3.0,
        "Time between two checkpoints: a killed process loses at most this much",
        unit="min",
        low=0.0,
        high=600.0,
    )
    data_device: str = setting(
        "",
        "Device on which torch makes the pairs and photographs: auto for the training's, cpu for the data processes;"
        " empty for OpenCV in the data processes",
        choices=("", "auto", "cpu", "cuda"),
    )
    log_every_steps: int = setting(50, "Number of steps between two lines of the logs", low=1, high=100000)


# The largest difficulty of synthetic pairs: above 1 only their motion gets wider.
WIDEST = 1.6

# Names of the recorded sets in `data.recorded`: the classes in `recorded_sets`.
RECORDED_SETS = {
    "scannet": "ScanNetPairs",
    "megadepth": "MegaDepthPairs",
    "blendedmvs": "BlendedMvsPairs",
    "sevenscenes": "SevenScenesPairs",
}


@dataclass(frozen=True)
class MadeConfig(Settings):
    """Kinds of made pairs and their weights in the mixture; 0 leaves a kind out."""

    homography: float = setting(0.22, "Weight of views of a photo", low=0.0, high=1e6)
    room: float = setting(0.32, "Weight of rendered rooms", low=0.0, high=1e6)
    clutter: float = setting(0.22, "Weight of rendered objects close to the camera", low=0.0, high=1e6)
    street: float = setting(0.16, "Weight of rendered streets", low=0.0, high=1e6)
    interior: float = setting(
        0.0, "Weight of rendered corridors, halls and offices, which have hardly any texture", low=0.0, high=1e6
    )
    relief: float = setting(0.08, "Weight of rendered reliefs", low=0.0, high=1e6)


@dataclass(frozen=True)
class DataConfig(Settings):
    """The training pairs.

    `sizes` are (width, height), one per batch. An entry of `recorded` has `set` (of RECORDED_SETS), `weight` relative
    to the synthetic kinds, `held_out` if it is for validation, and its class's arguments.
    """

    assets: str = setting("", "Folder or pack of photos and textures; empty for the folder of `loftr_ros train assets`")
    batch_size: int = setting(4, "Number of pairs per batch, in each process", low=1, high=1024)
    sizes: tuple[tuple[int, int], ...] = setting(
        ((256, 192), (320, 240), (320, 192), (240, 320)), "Sizes of images (width, height); each batch has one of them"
    )
    start_difficulty: float = setting(0.3, "Difficulty of the hardest pairs at the start", low=0.0, high=WIDEST)
    end_difficulty: float = setting(
        1.0,
        "Difficulty of the hardest pairs at the end; above 1 only the motion gets wider: 90 degrees, scale 3",
        low=0.0,
        high=WIDEST,
    )
    rising_samples: int = setting(50000, "Number of pairs over which the difficulty rises", low=0, high=10**9)
    least_part: float = setting(0.25, "Difficulty of the easiest pairs as a fraction of the hardest", low=0.0, high=1.0)
    light: float = setting(
        0.0, "Probability that the two views of a made pair are in different light", low=0.0, high=1.0
    )
    held_out_difficulty: float = setting(0.7, "Difficulty of held-out pairs", low=0.0, high=WIDEST)
    recorded: tuple[Mapping[str, Any], ...] = setting((), "Recorded sets")

    def __post_init__(self) -> None:
        """Check settings that are not single values.

        Raises:
            ConfigError: a setting is invalid.
        """
        super().__post_init__()
        if not self.sizes or not all(
            isinstance(size, tuple) and len(size) == 2 and all(type(side) is int and side >= 32 for side in size)
            for size in self.sizes
        ):
            raise ConfigError(f"sizes is {self.sizes}; expected pairs of width and height of at least 32 px")
        for entry in self.recorded:
            if not isinstance(entry, Mapping):
                raise ConfigError(f"recorded: {entry!r}; expected settings by name")
            if entry.get("set") not in RECORDED_SETS:
                raise ConfigError(f"recorded: set is {entry.get('set')!r}; expected one of {', '.join(RECORDED_SETS)}")


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a training.

    Attributes:
        network_changes: replaced fields of the network's preset, nested as its configuration.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    made: MadeConfig = field(default_factory=MadeConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    photos: PhotosConfig = field(default_factory=PhotosConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    seed: int = 0
    network_changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check combinations of settings.

        Raises:
            ConfigError: they contradict each other.
        """
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"seed is {self.seed!r}; expected a whole number from 0")
        if not self.budget.max_steps and not self.budget.max_minutes:
            raise ConfigError("budget.max_steps and budget.max_minutes are both 0; set one, or both")
        config = self.network_config()
        side = config.coarse_stride
        # The truth of cells has no place for those of a region that reaches beyond the image.
        if side != config.backbone.stride and any(each % side for size in self.data.sizes for each in size):
            raise ConfigError(f"data.sizes is {self.data.sizes}; {config.name} needs multiples of {side} px")

    def network_config(self) -> NetworkPreset:
        """The network's preset with its changes.

        Raises:
            ConfigError: a change is of an unknown field, or of another type.
        """
        config = PRESETS[self.network.preset]
        if not self.network_changes:
            return config
        # Through the weights files' metadata, which checks names and types.
        metadata = metadata_of_config(config, "")
        changed = _merged(json.loads(metadata["config"]), self.network_changes)
        try:
            return config_from_metadata({**metadata, "config": json.dumps(changed)})
        except (WeightsError, TypeError) as error:
            raise ConfigError(f"network.changes: {error}") from error


def _merged(base: Any, changes: Mapping[str, Any]) -> Any:
    if not isinstance(base, dict):
        return dict(changes)
    return base | {
        name: _merged(base.get(name), value) if isinstance(value, Mapping) else value for name, value in changes.items()
    }

"""What a configuration may hold, field by field; main.py asks before it trains, checkpoint.py of a config.json it reads.

Upper bounds are far beyond any published setting: they keep a slip of a key from taking all memory, or for ever.
"""

from typing import Any

from diffusion_model.augment import AUGMENTATIONS
from diffusion_model.experiment import nearest
from diffusion_model.layers import EMBEDDINGS
from diffusion_model.objective import LEVELS, WEIGHTS
from diffusion_model.precondition import PRECONDITIONS
from diffusion_model.score_model import MODES

CHOICES = {
    "data.scaling": ("unit", "standardised"),
    "data.augmentation": tuple(AUGMENTATIONS),
    "model.mode": tuple(MODES),
    "model.precondition": tuple(PRECONDITIONS),
    "model.embedding": EMBEDDINGS,
    "objective.levels": tuple(LEVELS),
    "objective.weight": tuple(WEIGHTS),
    "training.precision": ("auto", "float32", "bfloat16"),
    "training.compile": ("auto", "none", "default", "graphs"),
}
MOST = 10**11  # images: a thousand times what the largest model of the papers has seen
# what is wanted, whether a value is that, the fields
BOUNDS = [
    (f"from 1 to {MOST:,}", lambda value: 1 <= value <= MOST,
        ("training.images", "logging.every", "logging.checkpoint_every", "logging.sample_every", "logging.keep")),
    ("from 1 to 1,048,576", lambda value: 1 <= value <= 2**20, ("training.batch", "training.accumulate")),
    ("from 1 to 64", lambda value: 1 <= value <= 64, ("model.blocks",)),
    ("above 0 and up to 1,000,000", lambda value: 0 < value <= 1e6, ("model.fourier_scale", "encoder.fourier_scale",
        "sde.sigma_min", "sde.sigma_max", "sde.beta_max")),
    ("above 0 and up to 100", lambda value: 0 < value <= 100, ("objective.std",)),
    ("from -100 to 100", lambda value: -100 <= value <= 100, ("objective.mean",)),
    ("above 0", lambda value: value > 0, ("optimiser.learning_rate", "optimiser.epsilon", "optimiser.clip")),
    (f"from 0 to {MOST:,}", lambda value: 0 <= value <= MOST, ("optimiser.warm_up",)),
    ("at least 0", lambda value: value >= 0, ("sde.beta_min",)),
    ("None or a number of at least 0", lambda value: value is None or value >= 0, ("objective.lambda_z",)),
    ("at least 0 and below 1", lambda value: 0 <= value < 1, ("model.dropout", "optimiser.beta1",
        "training.average_decay")),
    ("'data' or a number above 0", lambda value: value == "data" or value > 0, ("model.unit",)),
    ("a multiple of 4, up to 4,096", lambda value: 0 < value <= 4096 and value % 4 == 0, ("model.features",)),
    ("1 to 8 integers from 1 to 64", lambda value: 1 <= len(value) <= 8 and all(_is_count(entry, 64) for entry in value),
        ("model.multipliers",)),
    ("integers, the sides of maps", lambda value: all(_is_count(entry, 65_536) for entry in value), ("model.attention",)),
    ("0 or from 0.0625 to 64", lambda value: value == 0 or 0.0625 <= value <= 64, ("encoder.widen",)),
    ("an integer of 64 bits", lambda value: -(2**63) <= value < 2**63, ("seed",)),
]  # fmt: skip
FIELDS = {*CHOICES, *(name for _, _, names in BOUNDS for name in names)}


def fault(config: dict[str, Any]) -> str | None:
    """The first field {'section.field': value} that no stage can work with, as `NAME=VALUE: expected ...`; None for none."""
    for name, choices in CHOICES.items():
        if name in config and config[name] not in choices:
            return f"{name}: {config[name]!r} is not known; {nearest(config[name], choices)}"
    for wanted, holds, names in BOUNDS:
        for name in names:
            if name in config and not _holds(holds, config[name]):
                return f"{name}={config[name]}: expected {wanted}"
    for low, high in (("sde.sigma_min", "sde.sigma_max"), ("sde.beta_min", "sde.beta_max")):
        if low in config and high in config and config[low] >= config[high]:
            return f"{low}={config[low]}: expected below {high}, {config[high]}"
    return None


def _holds(holds: Any, value: Any) -> bool:
    """Whether a value of any type is what is wanted."""
    try:
        return bool(holds(value))
    except TypeError:
        return False


def _is_count(entry: Any, most: int) -> bool:
    return type(entry) is int and 1 <= entry <= most

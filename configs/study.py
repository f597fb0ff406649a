"""Studies: what `scripts/reproduce.sh PRESET` asks of every command; a section is named as its command's file.

A field is the name of an option (`learning_rate` is `--learning-rate`). A table holds one row a preset, so that the studies
can be compared column by column.
"""

from ml_collections import ConfigDict

PRESETS = ("embedded", "FashionMNIST", "smoke")

# estimate_mi                granularity  seeds      width  steps  batch  learning_rate  check_every
ESTIMATE_MI = {
    "embedded":              (10,         (0, 1),       64,   400,   128,          2e-3,          50),
    "FashionMNIST":          (10,         (0, 1),      128,   800,   256,          1e-3,          50),
    "smoke":                 (2,          (0,),         16,    20,    32,          2e-3,          10),
}  # fmt: skip

# write_report               check: whether a claim that does not hold ends the study with status 1
WRITE_REPORT = {
    "embedded":              True,
    "FashionMNIST":          False,
    "smoke":                 False,
}  # fmt: skip


def get_config(preset: str) -> ConfigDict:
    """The sections of one study."""
    granularity, seeds, width, steps, batch, learning_rate, check_every = ESTIMATE_MI[preset]
    return ConfigDict(
        {
            "estimate_mi": {
                "granularity": granularity,
                "seeds": seeds,
                "width": width,
                "steps": steps,
                "batch": batch,
                "learning_rate": learning_rate,
                "check_every": check_every,
            },
            "profile_attention": {"source": "encoder"},
            "write_report": {"check": WRITE_REPORT[preset]},
        }
    )

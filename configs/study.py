"""Studies: what `scripts/reproduce.sh PRESET` asks of every command; a section is named as its command's file.

A field is the name of an option (`learning_rate` is `--learning-rate`). A table holds one row a preset, so that the studies
can be compared column by column.
"""

from ml_collections import ConfigDict

PRESETS = ("embedded", "FashionMNIST", "smoke")

# estimate_mi                granularity  seeds      width  steps  batch  learning_rate  check_every
ESTIMATE_MI = {
    "embedded":              (5,          (0, 1),       64,   300,   128,          2e-3,          50),
    "FashionMNIST":          (5,          (0, 1),      128,   800,   256,          1e-3,          50),
    "smoke":                 (2,          (0,),         16,    20,    32,          2e-3,          10),
}  # fmt: skip

# classify                   rates        epochs  seeds   of heads that mix: rates, epochs, seeds  batch  dropout  mlp  transformer, inner
CLASSIFY = {
    "embedded":              ((3e-3, 1e-2),   18, (0, 1),       (3e-3,),         18,     (0,),           64,    0.0,  128,      32,     64),
    "FashionMNIST":          ((1e-3, 3e-3),   20, (0, 1),       (1e-3,),         30,     (0, 1),        128,   0.25,  256,      64,    128),
    "smoke":                 ((3e-3,),         1, (0,),         (3e-3,),          1,     (0,),          128,    0.0,   16,      16,     16),
}  # fmt: skip

# representations            images of each split that are encoded
LIMIT = {
    "embedded":              None,
    "FashionMNIST":          10_000,
    "smoke":                 None,
}  # fmt: skip

# train_features             images     width
TRAIN_FEATURES = {
    "embedded":              (40_000,      16),
    "FashionMNIST":          (180_000,     24),
    "smoke":                 (1_280,        8),
}  # fmt: skip

# sweep_skips                n    samplers               steps  skips                    other_skips  batch
SWEEP_SKIPS = {
    "embedded":              (500, ("heun",),              18, (0, 4, 6, 8, 10, 12),     (8, 12),       125),
    "FashionMNIST":          (500, ("heun", "dpmpp-2m"),   18, (0, 2, 4, 5, 6, 8, 10),   (6, 10),       125),
    "smoke":                 (40,  ("heun",),               4, (0, 1, 3),                (1,),           40),
}  # fmt: skip

# compare_scores             n    levels
COMPARE_SCORES = {
    "embedded":              (256,   16),
    "FashionMNIST":          (1024,  20),
    "smoke":                 (16,     4),
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
    rates, epochs, fits, mixing_rates, mixing_epochs, mixing_fits, images_a_step, dropout, *widths = CLASSIFY[preset]
    images, features_width = TRAIN_FEATURES[preset]
    n, samplers, solver_steps, skips, other_skips, samples = SWEEP_SKIPS[preset]
    compared, levels = COMPARE_SCORES[preset]
    return ConfigDict(
        {
            "classify": {
                "heads": ("mlp", "transformer"),
                "granularity": (granularity,),
                "learning_rates": rates,
                "epochs": epochs,
                "mixing_learning_rates": mixing_rates,
                "mixing_epochs": mixing_epochs,
                "mixing_seeds": mixing_fits,
                "seeds": fits,
                "batch": images_a_step,
                "dropout": dropout,
                "mlp_width": widths[0],
                "transformer_width": widths[1],
                "transformer_feedforward": widths[2],
            },
            "representations": {
                "granularities": (granularity,),
                "sources": ("encoder", "untrained", "pixels"),
                "limit": LIMIT[preset],
            },
            "tabulate": {"head": "mlp"},
            "train_features": {"images": images, "width": features_width},
            "get_parameters": {"split": "train"},
            "sweep_skips": {
                "n": n,
                "samplers": samplers,
                "steps": (solver_steps,),
                "skips": skips,
                "other_skips": other_skips,
                "batch": samples,
                "kinds": ("gaussian", "isotropic"),
                "features": "classifier",
            },
            "process_experiments_with_skips": {"margin": 0.01, "blocks": 20},
            "compare_scores": {"n": compared, "levels": levels},
            "plot_scores": {"pictures": 4},
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

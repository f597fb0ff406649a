"""Plain score models (mode none) for sampling, distances and the linear structure: EDM's preconditioning and objective.

NCSN++ with the preconditioning, level distribution and weights of Karras et al. 2022 (arXiv 2206.00364), the setting of
The Hidden Linear Structure in Score-Based Models (arXiv 2311.10892). The rows named `-study` are what
`scripts/reproduce.sh` trains on two CPU cores; the others take a GPU.

    python diffusion_model/main.py --mode train --config configs/edm.py:synthetic16-study --workdir runs/edm-synthetic16
"""

from ml_collections import ConfigDict

# preset                  data             nf  multipliers   blocks  attention  mean  std  batch       images    lr
PRESETS = {
    "synthetic":         ("synthetic",      32, (1, 2, 2, 2),   2,    (16,),    -1.2, 1.2,   128,  10_000_000, 1e-3),
    "synthetic16":       ("synthetic16",    32, (1, 2, 2),      2,    (8,),     -1.2, 1.2,   128,  10_000_000, 1e-3),
    "mnist":             ("mnist",          32, (1, 2, 2),      2,    (14,),    -1.2, 1.2,   128,  20_000_000, 1e-3),
    "fashion_mnist":     ("fashion_mnist",  32, (1, 2, 2),      2,    (14,),    -1.2, 1.2,   128,  20_000_000, 1e-3),
    "colored_mnist":     ("colored_mnist",  32, (1, 2, 2),      2,    (14,),    -1.2, 1.2,   128,  20_000_000, 1e-3),
    "cifar10":           ("cifar10",       128, (2, 2, 2),      4,    (16,),    -1.2, 1.2,   512, 200_000_000, 1e-3),
    "cifar100":          ("cifar100",      128, (2, 2, 2),      4,    (16,),    -1.2, 1.2,   512, 200_000_000, 1e-3),
    "mini_imagenet":     ("mini_imagenet", 128, (1, 2, 2),      4,    (21,),    -1.2, 1.2,   256, 200_000_000, 2e-4),
    "celeba":            ("celeba",        128, (1, 2, 2, 2),   4,    (16,),    -1.2, 1.2,   256, 200_000_000, 2e-4),
    "synthetic16-study": ("synthetic16",    16, (1, 2, 2),      1,    (),       -0.2, 1.8,    64,      66_000, 2e-3),
    "fashion_mnist-study": ("fashion_mnist", 16, (1, 2, 2),     1,    (),       -0.6, 1.5,    64,     150_000, 2e-3),
    "colored_mnist-study": ("colored_mnist", 16, (1, 2, 2),     1,    (),       -0.6, 1.5,    64,      40_000, 2e-3),
    "smoke":             ("synthetic16",     8, (1, 2),         1,    (),       -0.6, 1.5,    32,       1_280, 2e-3),
}  # fmt: skip


def get_config(preset: str) -> ConfigDict:
    """One row of the table with everything that all rows share."""
    data, features, multipliers, blocks, attention, mean, std, batch, images, learning_rate = PRESETS[preset]
    short = preset.endswith("-study") or preset == "smoke"
    return ConfigDict(
        {
            "seed": 0,
            "data": {"name": data, "scaling": "unit", "augmentation": "none"},
            "model": {
                "mode": "none",
                "precondition": "edm",
                "unit": 1.0,
                "features": features,
                "multipliers": multipliers,
                "blocks": blocks,
                "attention": attention,
                "dropout": 0.0 if short else 0.13,
                "embedding": "fourier",
                "fourier_scale": 1.0 if short else 16.0,  # smooth in the level, so that few images teach all levels
            },
            "encoder": {"widen": 1.0, "fourier_scale": 16.0},
            "sde": {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "beta_min": 0.1, "beta_max": 20.0},
            "objective": {"levels": "log-normal", "weight": "edm", "mean": mean, "std": std, "lambda_z": None},
            "optimiser": {
                "learning_rate": learning_rate,
                "beta1": 0.9,
                "epsilon": 1e-8,
                "clip": 1.0,
                "warm_up": 6_400 if short else 1_000_000,
            },
            "training": {
                "images": images,
                "batch": batch,
                "accumulate": 1,
                "average_decay": 0.995 if short else 0.9997,
                "mixup": False,
                "precision": "auto",
                "compile": "auto",
            },
            "logging": {
                "every": max(batch, images // 200),
                "checkpoint_every": max(batch, images // 20),
                "sample_every": max(batch, images // 4),
                "keep": 2,
            },
        }
    )

"""Score models with a time-conditioned encoder: From Points to Functions (arXiv 2210.13774), section 4.

The protocol's rows (lr 2e-4, batch 100, 250,000 iterations, NCSN++ small, VE noise in units of the data's standard
deviation) take a GPU for hours to days. The rows named `-study` are what `scripts/reproduce.sh` trains on two CPU cores:
reg-drl, with EDM's preconditioning and weights, and levels drawn mostly above the data's own scale, where the code alone
knows the image. They were chosen among seven settings tried on Synthetic; a run in the VE form knew less of the location
after 60,000 images (35 %) than an untrained encoder (44 %), but it also differed in mode, width, batch and learning rate.

Attention stands at the resolutions listed that a network has (the 84 and 42 pixels of mini-ImageNet have none).

    python diffusion_model/main.py --mode train --config configs/drl.py:synthetic16-study --workdir runs/drl-synthetic16
"""

from ml_collections import ConfigDict

# preset                  data             scaling        nf  multipliers   blocks  attention  widen  batch     images    lr
PRESETS = {
    "synthetic":         ("synthetic",     "unit",         16, (1, 2, 2, 2),   2,    (16,),     1.0,   100, 25_000_000, 2e-4),
    "synthetic16":       ("synthetic16",   "unit",         16, (1, 2, 2),      2,    (8,),      1.0,   100, 25_000_000, 2e-4),
    "mnist":             ("mnist",         "unit",         16, (1, 2, 2),      2,    (14,),     1.0,   100, 25_000_000, 2e-4),
    "fashion_mnist":     ("fashion_mnist", "unit",         16, (1, 2, 2),      2,    (14,),     1.0,   100, 25_000_000, 2e-4),
    "colored_mnist":     ("colored_mnist", "unit",         16, (1, 2, 2),      2,    (14,),     1.0,   100, 25_000_000, 2e-4),
    "cifar10":           ("cifar10",       "standardised", 16, (1, 2, 2, 2),   2,    (16,),     2.0,   100, 25_000_000, 2e-4),
    "cifar100":          ("cifar100",      "standardised", 16, (1, 2, 2, 2),   2,    (16,),     2.0,   100, 25_000_000, 2e-4),
    "mini_imagenet":     ("mini_imagenet", "standardised", 16, (1, 2, 2),      2,    (16,),     2.0,   100, 25_000_000, 2e-4),
    "celeba":            ("celeba",        "unit",         16, (1, 2, 2),      2,    (16,),     2.0,   100, 25_000_000, 2e-4),
    "synthetic16-study": ("synthetic16",   "unit",         16, (1, 2, 2),      1,    (),        1.0,    32,     50_000, 1e-3),
    "fashion_mnist-study": ("fashion_mnist", "unit",       16, (1, 2, 2),      1,    (),        1.0,    32,     32_000, 1e-3),
    "colored_mnist-study": ("colored_mnist", "unit",       16, (1, 2, 2),      1,    (),        1.0,    32,     32_000, 1e-3),
    "smoke":             ("synthetic16",   "unit",          8, (1, 2),         1,    (),        0.0625, 32,      1_280, 2e-3),
}  # fmt: skip


def get_config(preset: str) -> ConfigDict:
    """One row of the table with everything that all rows share."""
    data, scaling, features, multipliers, blocks, attention, widen, batch, images, learning_rate = PRESETS[preset]
    short = preset.endswith("-study") or preset == "smoke"
    scale = 4.0 if short else 16.0  # smoother in the level, so that few images teach all levels
    return ConfigDict(
        {
            "seed": 0,
            "data": {"name": data, "scaling": scaling, "augmentation": "none"},
            "model": {
                "mode": "reg-drl" if short else "probabilistic-drl",
                "precondition": "edm" if short else "ve",
                "unit": "data",
                "features": features,
                "multipliers": multipliers,
                "blocks": blocks,
                "attention": attention,
                "dropout": 0.0 if short else 0.1,
                "embedding": "fourier",
                "fourier_scale": scale,
            },
            "encoder": {"widen": widen, "fourier_scale": scale},
            "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0, "beta_min": 0.1, "beta_max": 20.0},
            "objective": {
                "levels": "log-normal" if short else "uniform-time",
                "weight": "edm" if short else "dsm",
                "mean": 1.0,
                "std": 1.5,
                "lambda_z": None,  # the mode's own: 1e-5 for the two drl modes with a regulariser, 1 for vae-*, else 0
            },
            "optimiser": {
                "learning_rate": learning_rate,
                "beta1": 0.9,
                "epsilon": 1e-8,
                "clip": 1.0,
                "warm_up": 6_400 if short else 5_000 * batch,
            },
            "training": {
                "images": images,
                "batch": batch,
                "accumulate": 1,
                "average_decay": 0.99 if short else 0.999,
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

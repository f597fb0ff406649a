"""Does mixing times help? What `scripts/mix.sh RUN PRESET` asks of every command: all heads on all sources of a run.

`protocol` holds the sizes, rates and epochs of From Points to Functions (section 4); `cores` is made for two CPU cores:
fewer images, rates and epochs, narrower heads. A field is the name of an option, as in `study.py`.

    bash scripts/mix.sh runs/drl-synthetic16 cores
"""

from ml_collections import ConfigDict

HEADS = ("linear", "mlp", "concat-mlp", "mean-mlp", "weights-mlp", "vote-mlp", "gru", "transformer", "transformer-one")

RATES = (1e-3, 7.5e-4, 5e-4, 2.5e-4, 1e-4, 5e-5)

# preset       images  granularity  rates         epochs  seeds      of heads that mix  batch  mlp  gru  transformer, inner
PRESETS = {
    "protocol": (None,          10, RATES,          100, (0, 1, 2),  (0, 1, 2, 3, 4),     256, 512, 256,         256,   512),
    "cores":    (10_000,        10, (1e-3, 3e-3),    30, (0, 1, 2),  (0, 1, 2),           128, 256, 128,          64,   128),
    "smoke":    (None,           2, (3e-3,),          1, (0,),       (0,),                128,  16,  16,          16,    16),
}  # fmt: skip


def get_config(preset: str) -> ConfigDict:
    """The sections of one preset."""
    images, granularity, rates, epochs, seeds, mixing_seeds, batch, mlp, gru, transformer, inner = PRESETS[preset]
    return ConfigDict(
        {
            "representations": {"granularities": (granularity,), "limit": images},
            "classify": {
                "heads": HEADS,
                "granularity": (granularity,),
                "learning_rates": rates,
                "epochs": epochs,
                "seeds": seeds,
                "mixing_seeds": mixing_seeds,
                "batch": batch,
                "mlp_width": mlp,
                "gru_width": gru,
                "transformer_width": transformer,
                "transformer_feedforward": inner,
            },
        }
    )

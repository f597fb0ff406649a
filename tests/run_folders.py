"""Runs as far as their small files go: what the state, the listing and the grid are read from."""

from diffusion_model import arrays, checkpoint


def make_run(folder, images=100, batch=10, **config):
    """A run of ten steps as far as its config.json goes."""
    record = {
        "config": {
            "training.images": images, "training.batch": batch, "model.mode": "none", "data.name": "a",
            "data.augmentation": "none", "training.mixup": False, "encoder.widen": 1.0, "seed": 0,
            "optimiser.learning_rate": 2e-4, **config,
        },
        "scaling": {"scale": [1.0], "shift": [0.0]}, "data": {"name": "a", "hash": "0"}, "shape": [1, 2, 2], "std": 1.0,
    }  # fmt: skip
    checkpoint.write_run(folder, record)
    return folder


def save(run, step):
    """A checkpoint, as far as its meta.json goes."""
    arrays.write_json(run / "checkpoints" / str(step) / "meta.json", {"format": 1, "kind": "checkpoint", "step": step})


def encode(run, step, stored=("0.00000000",)):
    """Trajectories of two times, 0 and 1, as far as their meta.json goes."""
    for split in ("train", "test"):
        meta = {"format": 1, "kind": "trajectories", "step": step, "requested": [0.0, 1.0]}
        arrays.write_json(
            run / "trajectories/encoder" / split / "meta.json", {**meta, "stored": {time: {} for time in stored}}
        )

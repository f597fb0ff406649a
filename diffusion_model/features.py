"""What do images look like to a metric? Extractors: uint8 images [B, C, H, W] -> float32 features [B, F].

    inception    pytorch-fid's Inception network, 2,048 features; its distances, and no others, are called FID and KID
    classifier   a small network that `train_features.py` trains on the same data, 64 features; for small images, which
                 Inception was never meant for; its distance is called Frechet distance (classifier features)

Nothing falls back from one to the other. An extractor carries the fingerprint of its weights, which stands in every file
made with it: distances in different feature spaces are never compared. A reference, the moments of the features of real
images and some of the features themselves, is computed once and found again by what it was made of.

Dimensions: B batch, C channels, H x W pixels, N images, F features.
"""

import sys
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion_model import arrays, checkpoint, data, experiment, fid, locks
from diffusion_model.moments import Moments, Statistics, read_npz

WIDTH = 64  # F of the classifier
KEPT = 10_000  # features kept with a reference, for kernel distances


@dataclass(frozen=True)
class Extractor:
    """A feature space: its name, what its distances are called, F, a fingerprint of its weights, how images are resized
    before they enter, and the function itself.
    """

    name: str
    distance: str
    kernel_distance: str
    dimension: int
    fingerprint: str
    resizing: str
    network: nn.Module
    device: torch.device

    @property
    def provenance(self) -> dict[str, str]:
        """What every file made with it says of it."""
        return {"extractor": self.name, "fingerprint": self.fingerprint, "resizing": self.resizing}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Features float32 [B, F] on the CPU of uint8 images [B, C, H, W]."""
        images = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected torch.uint8 [B, C, H, W]")
        return self.network(images.to(self.device).float() / 255).float().cpu()


class Classifier(nn.Module):
    """Images in [0, 1] -> 64 features -> one linear head a label column.

    Three levels of convolutions, then the map is flattened, not pooled: where things are is a feature too. The features
    are normalised, so that each has mean 0 and variance 1 over the training images: the scale of their distance is F.
    """

    def __init__(self, shape: Sequence[int], classes: Sequence[int], width: int = 32) -> None:
        super().__init__()
        channels, height, rows = shape[0], -(-shape[1] // 4), -(-shape[2] // 4)
        layers = []
        for before, after, stride in ((channels, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.stem = nn.Sequential(*layers, nn.Flatten())
        self.code = nn.Sequential(
            nn.Linear(2 * width * height * rows, WIDTH, bias=False), nn.BatchNorm1d(WIDTH, affine=False)
        )
        self.heads = nn.ModuleList([nn.Linear(WIDTH, count) for count in classes])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 64]."""
        return self.code(self.stem(2 * images - 1))

    def logits(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Logits [B, K] of each label column."""
        active = torch.relu(self(images))
        return [head(active) for head in self.heads]


class Inception(nn.Module):
    """pytorch-fid's network up to its last pooling, with these weights (None: as initialised); images in [0, 1] -> [B, 2048]."""

    def __init__(self, state: dict[str, torch.Tensor] | None) -> None:
        super().__init__()
        from pytorch_fid import inception as published
        from torchvision.models import inception_v3

        network = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
        for name, block in {
            "Mixed_5b": published.FIDInceptionA(192, pool_features=32),
            "Mixed_5c": published.FIDInceptionA(256, pool_features=64),
            "Mixed_5d": published.FIDInceptionA(288, pool_features=64),
            "Mixed_6b": published.FIDInceptionC(768, channels_7x7=128),
            "Mixed_6c": published.FIDInceptionC(768, channels_7x7=160),
            "Mixed_6d": published.FIDInceptionC(768, channels_7x7=160),
            "Mixed_6e": published.FIDInceptionC(768, channels_7x7=192),
            "Mixed_7b": published.FIDInceptionE_1(1280),
            "Mixed_7c": published.FIDInceptionE_2(2048),
        }.items():
            setattr(network, name, block)
        if state is not None:
            network.load_state_dict(state)
        network.dropout, network.fc = nn.Identity(), nn.Identity()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 2048]; grey images are repeated to 3 channels."""
        if images.shape[1] == 1:
            images = images.repeat(1, 3, 1, 1)
        resized = nn.functional.interpolate(images, (299, 299), mode="bilinear", align_corners=False)
        return self.network(2 * resized - 1)


def open_inception(dataset: data.Split, root: Path, weights: Path | None, device: torch.device) -> Extractor:
    """Inception from `weights`, else from torch's cache, else downloaded there."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(FID_WEIGHTS_URL).name
    path = Path(weights) if weights is not None else cached
    if weights is None and not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(path))
        except (urllib.error.URLError, OSError) as error:
            raise FileNotFoundError(
                f"pytorch-fid's Inception could not be downloaded ({error}): fetch {FID_WEIGHTS_URL} elsewhere "
                f"and place it at {path}, or pass --weights FILE"
            ) from None
    if not path.is_file():
        raise FileNotFoundError(f"--weights {path}: no such file; expected pytorch-fid's {Path(FID_WEIGHTS_URL).name}")
    try:
        network = Inception(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise ValueError(
            f"{path} does not hold pytorch-fid's Inception weights ({reason}); expected {Path(FID_WEIGHTS_URL).name}"
        ) from None
    mark = f"{arrays.file_checksum(path):08x}"
    names = ("inception", "FID (pytorch-fid's Inception)", "KID (pytorch-fid's Inception)")
    resizing = "bilinear to 299 x 299 by torch, corners not aligned, no antialiasing"
    return Extractor(*names, 2048, mark, resizing, network.eval().to(device), device)


def classifier_folder(dataset: data.Split, root: Path) -> Path:
    """Where `train_features.py` keeps the classifier of a data set."""
    return Path(root) / dataset.name / "features" / "classifier"


def open_classifier(dataset: data.Split, root: Path, weights: Path | None, device: torch.device) -> Extractor:
    """The data set's own classifier, as `train_features.py` left it; refused where the data has changed since."""
    if weights is not None:
        raise ValueError("--weights is for Inception; the classifier is trained by diffusion_model/train_features.py")
    folder = classifier_folder(dataset, root)
    command = f"`python diffusion_model/train_features.py {dataset.name}`"
    if not arrays.is_finished(folder):
        raise FileNotFoundError(f"no classifier in {folder}: run {command} first")
    remedy = f"remove {folder} and run {command}"
    meta = arrays.read_meta(folder, "classifier", f"run {command} again")
    arrays.expect(
        meta, folder / "meta.json", {"shape": [int], "attributes": {...: int}, "width": int, "fingerprint": str}, remedy
    )
    if meta.get("data_hash") != dataset.hash:
        raise ValueError(
            f"{folder} was trained on other images than {dataset.name} now holds: remove it and run {command}"
        )
    network = Classifier(meta["shape"], list(meta["attributes"].values()), meta["width"])
    path = folder / "weights.safetensors"
    mark = f"{arrays.file_checksum(path):08x}" if path.is_file() else "none"
    if mark != meta["fingerprint"]:
        raise ValueError(f"{path} is missing or was altered after it was written: {remedy}")
    checkpoint.load_weights(network, arrays.read_tensors(path), folder, "meta.json", remedy)
    names = ("classifier", "Frechet distance (classifier features)", "kernel distance (classifier features)")
    return Extractor(*names, WIDTH, mark, "none", network.eval().to(device), device)


def open_extractor(
    name: str, dataset: data.Split, root: Path, weights: Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """The feature space `name` for images of this data set."""
    if name not in FEATURES:
        raise ValueError(f"features {name!r}: {experiment.nearest(name, FEATURES)}")
    return FEATURES[name](dataset, root, weights, torch.device(device))


def extract(
    extractor: Extractor, images: np.ndarray, what: str, batch: int = 256, rows: np.ndarray | None = None
) -> np.ndarray:
    """Features [N, F] of uint8 images [N, C, H, W], or of those of these rows, streamed with progress."""
    rows = np.arange(len(images)) if rows is None else rows
    starts = experiment.progress(range(0, len(rows), batch), what, "batch")
    found = [extractor(images[rows[start : start + batch]]).numpy() for start in starts]
    return np.concatenate(found) if found else np.zeros((0, extractor.dimension), np.float32)


@dataclass(frozen=True)
class Reference:
    """Moments of real images' features, a factor of their covariance, and features [M, F] of some of them in random order.

    `kept` is None where a reference has none (a file of mu and sigma): it gives no kernel distance.
    """

    moments: Moments | Statistics
    root: torch.Tensor
    kept: np.ndarray | None = None

    @property
    def normal(self) -> fid.Normal:
        """What a Frechet distance needs."""
        return fid.Normal(self.moments.mean, self.root)


def reference(extractor: Extractor, dataset: data.Split, root: Path, batch: int = 256) -> Reference:
    """The split's features as moments, with `KEPT` of them; computed once and kept beside the data, if that can be written.

    Found again by the fingerprint of the weights and the hash of the images; made anew where either has changed.
    """
    folder = (
        Path(root) / dataset.name / "features" / f"reference-{extractor.name}-{extractor.fingerprint}-{dataset.split}"
    )
    wanted = provenance(extractor, dataset)
    if arrays.is_finished(folder) and not _differing(arrays.read_meta(folder, "moments", f"remove {folder}"), wanted):
        return read_reference(folder, extractor, dataset)
    moments = Moments(extractor.dimension, **wanted, dataset=dataset.name, split=dataset.split)
    order = torch.randperm(len(dataset), generator=experiment.generator("kept features", dataset.hash)).numpy()
    kept = np.empty((min(KEPT, len(dataset)), extractor.dimension), np.float32)
    place = np.argsort(order)  # of each image in the random order: the first are kept
    for start in experiment.progress(range(0, len(dataset), batch), f"reference of {dataset.name}", "batch"):
        codes, places = extractor(dataset.images[start : start + batch]), place[start : start + batch]
        moments.update(codes)
        kept[places[places < len(kept)]] = codes.numpy()[places < len(kept)]
    try:
        with locks.briefly(folder):
            arrays.write_folder(folder / "kept", "features", {"features": kept}, **wanted)
            moments.save(folder)
    except OSError as error:  # data of others, or a full disk: the distance can be told all the same
        reason = error.strerror or error
        print(f"the reference cannot be kept in {folder} ({reason}): it is made again each time", file=sys.stderr)
    return Reference(moments, fid.factor(moments.covariance), kept)


def provenance(extractor: Extractor, dataset: data.Split) -> dict[str, Any]:
    """What a reference is made of: whatever of it changes, the reference is another."""
    return {**extractor.provenance, "data_hash": dataset.hash, "n": len(dataset)}


def read_reference(
    path: Path, extractor: Extractor, dataset: data.Split | None = None, told: str | None = None
) -> Reference:
    """A reference in a folder of `reference`, or a .npz of mu and sigma as pytorch-fid and EDM write it.

    Refused where it was made with other weights or resizing than the extractor's, or, given the data set, of other images.
    `told` is the name of the extractor of a file that does not say it; one written by `moments.write_npz` does.
    """
    path = Path(path)
    if path.suffix == ".npz":
        given = read_npz(path)
        meta = {"extractor": told, **given.meta} if told else given.meta
        found = Reference(replace(given, meta=meta), fid.factor(given.covariance))
    else:
        moments = Moments.load(path)
        held, _ = arrays.read_folder(path / "kept", "features", f"remove {path}", {"features": "finite [M, F]"})
        meta, found = moments.meta, Reference(moments, fid.factor(moments.covariance), held["features"])
    if "extractor" not in meta:
        raise ValueError(
            f"{path} does not say which network its features are of, and distances between feature spaces mean nothing: "
            f"say it with --extractor NAME ({', '.join(FEATURES)})"
        )
    if told not in (None, meta["extractor"]):
        raise ValueError(f"--extractor {told}: {path} says that it was made with {meta['extractor']}")
    wanted = provenance(extractor, dataset) if dataset is not None else extractor.provenance
    if path.suffix == ".npz":  # of others, which say less
        wanted = {name: value for name, value in wanted.items() if name in meta}
    other = _differing(meta, wanted)
    if other:
        changes = ", ".join(f"{name}: {meta.get(name)!r} there, {wanted[name]!r} now" for name in other)
        raise ValueError(f"{path} is a reference of another kind ({changes}): make it again or use its own extractor")
    for count in (len(found.moments.mean), *(() if found.kept is None else found.kept.shape[1:])):
        if count != extractor.dimension:
            raise ValueError(f"{path} has {count} features, {extractor.name} has {extractor.dimension}")
    return found


def mark(path: Path) -> str:
    """A reference's name and checksum, for protocols."""
    held = path if path.is_file() else path / "meta.json"
    return f"{path.name} {arrays.file_checksum(held):08x}"


def _differing(meta: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(name for name in wanted if meta.get(name) != wanted[name])


def measure(
    codes: np.ndarray | torch.Tensor, known: Reference, size: int | None = None, subsets: int = 100, seed: int = 0
) -> dict[str, float]:
    """Distances of features [N, F] to a reference: Frechet and, with the size of a subset, kernel and its deviation."""
    if size is not None and known.kept is None:
        raise ValueError("a reference of mean and covariance alone gives no kernel distance: use one with features")
    return _distances(codes, known.normal, known.kept, size, subsets, seed)


def _distances(
    codes: np.ndarray | torch.Tensor, normal: fid.Normal, others: Any, size: int | None, subsets: int, seed: int
) -> dict[str, float]:
    codes = fid.check_rows(codes)
    found = {"distance": fid.distance(normal, fid.Normal.from_rows(codes))}
    if size is not None:
        kernel = fid.kernel_distance(codes, others, size, subsets, seed)
        found["kernel_distance"] = kernel.value
        found |= {} if kernel.deviation is None else {"kernel_deviation": kernel.deviation}
    return found


def real_against_real(
    codes: np.ndarray, n: int, size: int | None = None, subsets: int = 100, seed: int = 0
) -> dict[str, float]:
    """The distances between two disjoint samples of n of real images' features [N, F]: what a perfect model would get.

    No finite n gives 0, so a distance at n is read against this one at the same n.
    """
    if len(codes) < 2 * n:
        raise ValueError(
            f"no real-against-real distance at n = {n}: it needs {2 * n} real images, and there are {len(codes)}"
        )
    order = torch.randperm(len(codes), generator=experiment.generator("real against real", seed)).numpy()
    first, second = (codes[order[start : start + n]] for start in (0, n))
    return _distances(second, fid.Normal.from_rows(first), first, size, subsets, seed)


FEATURES: dict[str, Callable[..., Extractor]] = {"inception": open_inception, "classifier": open_classifier}

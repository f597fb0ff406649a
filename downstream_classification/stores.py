"""Stores of representations as classifiers read them: both splits checked against each other, labels fit to be learned.

A store is RUN/trajectories/SOURCE with train/ and test/, as representations.py writes it. What cannot be classified is a
ValueError of one sentence: another data set, other images' labels, a single class, fewer images than classes.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diffusion_model import checkpoint, experiment, trajectories
from diffusion_model.trajectories import REMEDY
from downstream_classification import fitting

SAME = (  # of both splits' provenance, where it is told
    "source", "dataset", "step", "weights", "mode", "widen", "precision", "draws", "pooling",
)  # fmt: skip
LONGEST_NAME = 100  # characters of a joint fit's name


@dataclass(frozen=True)
class Target:
    """What a fit predicts: one attribute, or several together (`joint` is then their name); labels [N] or [N, A]."""

    attributes: tuple[str, ...]
    classes: tuple[int, ...]
    train: np.ndarray
    test: np.ndarray
    joint: str | None = None

    def criterion(self) -> fitting.Criterion:
        """Cross-entropy of one attribute; of several, binary cross-entropy where all are there or not, else a sum."""
        if self.joint is None:
            return fitting.CrossEntropy(self.classes[0])
        if set(self.classes) == {2}:
            return fitting.Binary(len(self.classes))
        return fitting.Several(self.classes)

    def column(self, attribute: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Train and test labels [N] of one of the attributes, and its number of classes."""
        place = self.attributes.index(attribute)
        if self.joint is None:
            return self.train, self.test, self.classes[0]
        return self.train[:, place], self.test[:, place], self.classes[place]


class Store:
    """Both splits of RUN/trajectories/SOURCE, checked against each other and against the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.parent.name != "trajectories":
            inside = sorted(entry.name for entry in (self.folder / "trajectories").glob("*/"))
            there = f"; its stores: {', '.join(inside)}" if inside else ""
            raise experiment.UsageError(f"{folder} is no store: expected RUN/trajectories/SOURCE{there}")
        self.source, self.run = self.folder.name, self.folder.parent.parent
        self.train = trajectories.Trajectories(self.folder / "train")
        self.test = trajectories.Trajectories(self.folder / "test")
        self._check()

    def _check(self) -> None:
        for what in ("attributes", "dimension"):
            self._same(what, getattr(self.train, what), getattr(self.test, what))
        both = [time for time in self.train.times if time in self.test.times]
        if not both:
            self._same("times", self.train.times, self.test.times)
        self.train.times = self.test.times = both  # more are being added where one split has times of its own
        for what in SAME:
            self._same(what, dict(self.train.meta).get(what), dict(self.test.meta).get(what))
        for what, ours in self._run_says():
            told = dict(self.train.meta).get(what)
            if told and ours and told != ours:
                raise ValueError(
                    f"{self.folder} is of another run: its {what} is {told}, that of {self.run} is {ours}: remove it and "
                    f"{REMEDY.removesuffix(' first')}"
                )

    def _run_says(self) -> list[tuple[str, Any]]:
        """What the run's config.json says of its data and itself, by the names of the store; nothing where it has none."""
        if not (self.run / "config.json").is_file():
            return []
        record = checkpoint.read_run(self.run)
        data, mode = record["data"], record["config"].get("model.mode")
        return [("dataset", data["name"]), ("data_hash", data["hash"]), ("mode", mode)]

    def _same(self, what: str, ours: Any, theirs: Any) -> None:
        if ours != theirs:
            raise ValueError(f"{self.folder}: train and test differ in {what} ({ours} and {theirs}): {REMEDY}")

    def targets(self, attributes: Sequence[str] | None, together: bool) -> list[Target]:
        """What to predict: each of these attributes (None: all), or all of them at once."""
        names = list(dict.fromkeys(attributes or self.train.attributes))
        if not names:
            raise ValueError(
                f"{self.folder} has no label columns: there is nothing to classify; prepare the data set with its labels"
            )
        singles = [self._target(name) for name in names]
        if not together:
            return singles
        if len(names) < 2:
            there = ", ".join(self.train.attributes)
            raise experiment.UsageError(f"--joint needs several attributes; {self.folder} has {there}")
        both = (np.stack([getattr(single, split) for single in singles], axis=1) for split in ("train", "test"))
        classes = tuple(single.classes[0] for single in singles)
        return [Target(tuple(names), classes, *both, joint=self._joint_name(names))]

    def _joint_name(self, names: Sequence[str]) -> str:
        """How a fit of several attributes is called in keys."""
        if list(names) == list(self.train.attributes):
            return "all"
        name = "+".join(quote(name, safe="") for name in names)  # a "+" within a name is none between names
        return name if len(name) <= LONGEST_NAME else f"{len(names)}-{zlib.crc32(name.encode()):08x}"

    def _target(self, attribute: str) -> Target:
        """One attribute, its labels checked."""
        train, test = (np.array(split.label(attribute)) for split in (self.train, self.test))
        classes = self.train.attributes[attribute]
        for split, labels in (("train", train), ("test", test)):
            if len(labels) == 0:
                raise ValueError(f"{self.folder}/{split} holds no images: {REMEDY}")
            if labels.min() < 0 or labels.max() >= classes:
                raise ValueError(
                    f"{self.folder}/{split}: labels of {attribute!r} run from {labels.min()} to {labels.max()}, expected "
                    f"0 to {classes - 1}: prepare the data set again"
                )
        if len(np.unique(train)) < 2:
            raise ValueError(f"{attribute!r} has one class only in {self.folder}/train: there is nothing to classify")
        if len(train) < classes:
            raise ValueError(
                f"{self.folder}/train holds {len(train)} images, fewer than the {classes} classes of {attribute!r}: "
                "use more images"
            )
        return Target((attribute,), (classes,), train, test)

    def fingerprint(self, times: Sequence[float]) -> str:
        """Checksum of everything a fit at these times reads."""
        read = [
            [split.meta["labels"]["crc32"], *(split.meta["stored"][f"{time:.8f}"]["crc32"] for time in times)]
            for split in (self.train, self.test)
        ]
        return f"{zlib.crc32(json.dumps(read).encode()):08x}"

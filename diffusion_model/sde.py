"""Linear SDEs as noise levels: x_t = alpha(t) x_0 + sigma(t) noise, and level(t) = sigma(t) / alpha(t).

Outside this file, `precondition.py` and `objective.py` nobody speaks t for noise. In y = x_t / alpha(t) every linear SDE
dx = f x dt + g dw of Song et al. 2021 (equations 9, 11 and 13 there) is the variance-exploding one,
d level^2 / dt = g^2 / alpha^2, so one set of samplers and one Gaussian formula serve all of them.

The two identities that define an entry: d ln alpha / dt = f and d level^2 / dt = g^2 / alpha^2.
Everything is float64; t runs from `eps` (where training starts) to 1.

An SDE of one's own is a class with alpha and sigma in a file of its own, taken by --config.sde.name=FILE.py:CLASS:

    import torch
    from diffusion_model.sde import LinearSDE

    class Cosine(LinearSDE):
        def alpha(self, t):
            return torch.cos(0.49 * torch.pi * t)  # .5 would end at alpha 0, an infinite level

        def sigma(self, t):
            return torch.sin(0.49 * torch.pi * t)

Both take and give float64 tensors of any one shape, entry by entry. Parameters of `__init__` that the section `sde` of
the configuration has (sigma_min, sigma_max, beta_min, beta_max) are taken from there. The file's SHA-256 stands in the
run's config.json. Who opens the run names the file again (--process FILE.py:CLASS): nothing that a run brings along is
executed unasked, and a file that has changed is refused.
"""

import hashlib
import inspect
import math
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from diffusion_model.experiment import UsageError, find_file, nearest

HIGHEST = 1e5  # level of a user's process: float32 images x0 + level noise keep two digits of x0


class LinearSDE(ABC):
    """alpha and sigma, from which all else is derived; an entry with closed forms gives those in place."""

    eps: float = 1e-5

    @abstractmethod
    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Scale of the image at time t, above 0."""

    @abstractmethod
    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t, model space."""

    def drift(self, t: torch.Tensor) -> torch.Tensor:
        """f(t) = d ln alpha / dt."""
        return _derivative(lambda t: torch.log(self.alpha(t)), t)

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = alpha sqrt(d level^2 / dt)."""
        return self.alpha(t) * torch.sqrt(_derivative(lambda t: self.level(t) ** 2, t))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha, which grows with t."""
        return self.sigma(t) / self.alpha(t)

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level` to 2^-54; levels beyond those of [eps, 1] take the nearest end.

        Nine rounds that each cut the bracket into 64, in place of 54 that halve it: a GPU is asked a sixth as often.
        """
        low, width = torch.full_like(level, self.eps), 1 - self.eps
        cuts = torch.arange(1, 64, dtype=level.dtype, device=level.device) / 64
        for _ in range(9):
            passed = self.level(low[..., None] + width * cuts) <= level[..., None]
            low, width = low + width / 64 * passed.sum(-1), width / 64
        return low + width / 2

    def level_range(self) -> tuple[float, float]:
        """The levels at eps and at 1, between which samplers work."""
        ends = self.level(torch.tensor([self.eps, 1.0], dtype=torch.float64, device="cpu"))
        return float(ends[0]), float(ends[1])


def _derivative(function: Callable[[torch.Tensor], torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    """d function / dt, entry by entry."""
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        return torch.autograd.grad((function(t) + 0 * t).sum(), t)[0]  # 0 t: a constant has a derivative, too


@dataclass(frozen=True)
class VE(LinearSDE):
    """dx = sqrt(d sigma^2 / dt) dw with sigma(t) = sigma_min (sigma_max / sigma_min)^t, in units of `unit` model space.

    The kernel's standard deviation is taken as sigma(t) itself, as Song et al.'s code does (sigma(0) is negligible).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    unit: float = 1.0
    eps: float = 1e-5

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Scale of the image at time t: 1."""
        return torch.ones_like(t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t, model space."""
        return self.unit * self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift(self, t: torch.Tensor) -> torch.Tensor:
        """f(t): 0."""
        return torch.zeros_like(t)

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sigma(t) sqrt(2 ln(sigma_max / sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha."""
        return self.sigma(t)

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level`."""
        return torch.log(level / (self.unit * self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def level_range(self) -> tuple[float, float]:
        """sigma_min and sigma_max themselves, in model space."""
        return self.sigma_min * self.unit, self.sigma_max * self.unit


@dataclass(frozen=True)
class VP(LinearSDE):
    """dx = -beta/2 x dt + sqrt(beta) dw with beta(t) = beta_min + t (beta_max - beta_min); alpha^2 + sigma^2 = 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    eps: float = 1e-5

    def _integral(self, t: torch.Tensor) -> torch.Tensor:
        """Integral of beta from 0 to t, which is -2 ln alpha."""
        return t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Scale of the image at time t."""
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t; by expm1, for 1 - alpha^2 cancels at small t."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def drift(self, t: torch.Tensor) -> torch.Tensor:
        """f(t) = -beta(t) / 2."""
        return -(self.beta_min + t * (self.beta_max - self.beta_min)) / 2

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sqrt(beta(t))."""
        return torch.sqrt(-2 * self.drift(t))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha = sqrt(e^integral - 1)."""
        return torch.sqrt(torch.expm1(self._integral(t)))

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level`: the positive root of the quadratic integral(t) = ln(1 + level^2)."""
        return self._time_of_integral(torch.log1p(level**2))

    def _time_of_integral(self, integral: torch.Tensor) -> torch.Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class SubVP(VP):
    """VP's alpha with sigma = 1 - alpha^2, the square of VP's (Song et al. 2021, equation 13)."""

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t."""
        return -torch.expm1(-self._integral(t))

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sqrt(beta (1 - alpha^4))."""
        return torch.sqrt(-2 * self.drift(t) * -torch.expm1(-2 * self._integral(t)))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha = 2 sinh(integral / 2)."""
        return 2 * torch.sinh(self._integral(t) / 2)

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level`."""
        return self._time_of_integral(2 * torch.asinh(level / 2))


def from_config(
    section: Mapping[str, Any], unit: float = 1.0, process: str | type[LinearSDE] | None = None
) -> LinearSDE:
    """The process that the section `sde` of a configuration names: one of SDES, or the user's FILE.py:CLASS.

    A file is run only where the caller names it too: `process` is FILE.py:CLASS, of the SHA-256 in the section, or the
    class itself. Of the section's fields, and `unit` (one unit of noise in model space), those are passed that the class
    takes. What cannot serve is a ValueError.
    """
    name = section["name"]
    if ":" not in name and name not in SDES:
        raise ValueError(f"sde.name {name!r} is not known; {nearest(name, SDES)}, or FILE.py:CLASS for one of your own")
    if name in SDES and process is not None:
        raise UsageError(f"--process {process}: the noise process here is the built-in {name!r}; leave --process out")
    kind = SDES[name] if name in SDES else _class_of(name, section.get("sha256"), process)
    values = {field: value for field, value in section.items() if field not in ("name", "sha256")} | {"unit": unit}
    accepted = inspect.signature(kind).parameters.values()
    with torch.device("cpu"):  # also where the network is only described, on the device "meta"
        try:
            made = kind(**{entry.name: values[entry.name] for entry in accepted if entry.name in values})
        except Exception as error:
            raise ValueError(
                f"sde.name {name} cannot be made from the section sde ({type(error).__name__}: {error}): "
                f"give its parameters defaults, or names among {', '.join(sorted(values))}"
            ) from None
        if name not in SDES:
            _check(made, name)
    return made


def named_file(name: str) -> str | None:
    """The `process` of a name that a command line gives itself: FILE.py:CLASS, or None of a built-in."""
    return name if ":" in name else None


def fingerprint(name: str) -> dict[str, str]:
    """What config.json keeps of an SDE besides its name: {"sde.sha256": ...} of the user's file, nothing of a built-in."""
    return {"sde.sha256": hashlib.sha256(_path_of(name).read_bytes()).hexdigest()} if ":" in name else {}


def _path_of(name: str) -> Path:
    """The file of FILE.py:CLASS."""
    file = name.rpartition(":")[0]
    path = find_file(file)
    if path is None:
        raise ValueError(
            f"sde.name {name}: there is no file {file}, seen from here or from the project's root: put it back"
        )
    return path


def _class_of(name: str, expected: str | None, process: str | type[LinearSDE] | None) -> type[LinearSDE]:
    """The class behind a recorded FILE.py:CLASS, by what the caller names; a file must have the SHA-256 `expected`."""
    if process is None:
        raise UsageError(
            f"sde.name {name} is a Python file of whoever made the run, and is run only where you name it: read it, then "
            f"add --process {shlex.quote(name)} (in Python, process=)"
        )
    if not isinstance(process, str):
        return process
    path, wanted = _path_of(process), process.rpartition(":")[2]
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    if wanted != name.rpartition(":")[2]:
        raise UsageError(f"--process {process}: the noise process here is {name}; name that class")
    if expected is None:
        raise ValueError(f"sde.name {name} stands there without sde.sha256, the file's SHA-256: train the run again")
    if expected != digest:
        raise ValueError(
            f"sde.name {name}: {path} has changed since the run began (SHA-256 {digest[:12]}, then {expected[:12]}): "
            "put the old file back, or train a new run"
        )
    module = _module(text, path, digest, name)
    kind = getattr(module, wanted, None)
    if not _is_process(kind):
        known = [key for key, value in vars(module).items() if _is_process(value) and value is not LinearSDE]
        kinds = nearest(wanted, known) if known else "it has none"
        raise ValueError(
            f"sde.name {name}: {path} has no subclass of LinearSDE called {wanted!r}; {kinds} "
            "(write `from diffusion_model.sde import LinearSDE`)"
        )
    if kind.__abstractmethods__:
        lacking = " and ".join(sorted(kind.__abstractmethods__))
        raise ValueError(f"sde.name {name}: {wanted} lacks {lacking}; expected alpha(t) and sigma(t) of its own")
    return kind


def _is_process(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, LinearSDE)


def _module(text: bytes, path: Path, digest: str, name: str) -> ModuleType:
    """The very bytes that were hashed as a module; Python knows it by the hash, as dataclasses want it."""
    key = f"sde_{digest}"
    if key not in sys.modules:
        module = ModuleType(key)
        sys.modules[key] = module
        try:
            exec(compile(text, str(path), "exec"), vars(module))
        except (Exception, SystemExit) as error:  # also a script that ends itself
            del sys.modules[key]
            fault = f"{type(error).__name__}: {error}"
            raise ValueError(f"sde.name {name}: {path} cannot be run as Python ({fault})") from None
    return sys.modules[key]


def _check(process: LinearSDE, name: str) -> None:
    """Refuse a user's process that is no noise level: shapes, signs and growth on [eps, 1]."""
    if not 0 < process.eps < 1:
        raise ValueError(f"sde.name {name}: eps is {process.eps}; expected above 0 and below 1")
    t = torch.linspace(process.eps, 1, 1001, dtype=torch.float64).view(77, 13)
    for what in ("alpha", "sigma", "diffusion"):
        value = _evaluate(process, what, t, name)
        bad = ~((value > 0) & value.isfinite()).flatten()
        if bad.any():
            where, found = float(t.flatten()[bad][0]), float(value.flatten()[bad][0])
            fault = "sigma / alpha does not grow" if what == "diffusion" else f"{what} is {found:g}"
            wanted = "growth" if what == "diffusion" else "finite numbers above 0"
            raise ValueError(f"sde.name {name}: {fault} at t = {where:g}; expected {wanted} all the way from eps to 1")
    highest = process.level_range()[1]
    if highest > HIGHEST:
        raise ValueError(
            f"sde.name {name}: sigma / alpha is {highest:g} at t = 1; expected at most {HIGHEST:g}, let alpha end above 0"
        )


def _evaluate(process: LinearSDE, what: str, t: torch.Tensor, name: str) -> torch.Tensor:
    try:
        value = getattr(process, what)(t)
    except Exception as error:
        raise ValueError(
            f"sde.name {name}: {what}(t) fails ({type(error).__name__}: {error}); expected torch, entry by entry"
        ) from None
    if not isinstance(value, torch.Tensor) or value.shape != t.shape or value.dtype != t.dtype:
        given = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(
            f"sde.name {name}: {what}(t) gives {given} for t float64 {list(t.shape)}; expected the like of t"
        )
    return value


SDES = {"ve": VE, "vp": VP, "subvp": SubVP}

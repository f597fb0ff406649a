"""Do our networks, heads and losses compute what the code of From Points to Functions (traj_drl) computes?

Every tensor of the original has a partner here (`encoder_partners`, `head_partners`); both sides are given the same numbers,
drawn for each tensor by its name (`fill`), and the same inputs, and their outputs are compared. Dropout is compared by one
fixed pattern a width in place of random masks, so that it shows where something is dropped.

    python benchmarks/parity.py --original DIR             a line a case: the largest difference over the largest output
    python benchmarks/parity.py --original DIR --write     also the original's outputs into tests/fixtures/parity.json

DIR is the root of a checkout of the original. Only its outputs are written: tests/test_parity.py draws weights and inputs anew
and holds ours against them.

Legend: B images, C channels, H and W pixels, T times, D features, K classes.
"""

import importlib
import os
import subprocess
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from diffusion_model import arrays, experiment, score_model
from diffusion_model.data import Scaling
from diffusion_model.encoder import Encoder
from diffusion_model.experiment import ROOT
from downstream_classification import mixing

FIXTURES = ROOT / "tests" / "fixtures" / "parity.json"
ENCODERS = {  # name: widen, probabilistic
    "encoder, widen 0, probabilistic": (0.0, True),
    "encoder, widen 0.0625": (0.0625, False),
    "encoder, widen 1, probabilistic": (1.0, True),
    "encoder, widen 2": (2.0, False),
}
HEADS = ("mlp", "gru", "transformer")
FEATURES, CLASSES, TIMES = 6, 5, 4  # of the heads
LOSSES = {  # name: mode, the original's settings
    "probabilistic-drl": {"probabilistic_encoder": True, "lambda_z": 1e-5, "lambda_reconstr": 0.0},
    "noreg-drl": {"probabilistic_encoder": False, "lambda_z": 0.0, "lambda_reconstr": 0.0},
    "reg-drl": {"probabilistic_encoder": False, "lambda_z": 1e-5, "lambda_reconstr": 0.0},
    "vae-l2": {"probabilistic_encoder": True, "lambda_z": 1.0, "lambda_reconstr": -1.0, "recon": "l2"},
    "vae-bce": {"probabilistic_encoder": True, "lambda_z": 1.0, "lambda_reconstr": -1.0, "recon": "bce"},
    "ae-l2": {"probabilistic_encoder": False, "lambda_z": 0.0, "lambda_reconstr": -1.0, "recon": "l2"},
    "ae-bce": {"probabilistic_encoder": False, "lambda_z": 0.0, "lambda_reconstr": -1.0, "recon": "bce"},
}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="parity.py")
    parser.add_argument("--original", type=Path, required=True, help="root of a checkout of traj_drl")
    parser.add_argument("--write", action="store_true", help="write the original's outputs for the tests")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    folder = str((args.original / "diffusion_model").resolve())
    if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # where its modules are found
        path = os.pathsep.join([folder, str(ROOT)])
        own = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
        return subprocess.run(own, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
    theirs, mine = original_outputs(args.original), our_outputs()
    for name, values in theirs.items():
        print(f"{name:50} {difference(mine[name], values):.1e}")
    if args.write:
        rounded = {name: [float(f"{value:.9g}") for value in np.ravel(values)] for name, values in theirs.items()}
        FIXTURES.parent.mkdir(exist_ok=True)
        arrays.write_json(FIXTURES, rounded)
    return 0


def difference(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference over the largest entry of `theirs`."""
    mine, theirs = np.ravel(mine), np.ravel(theirs)
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


def numbers(name: str, *shape: int) -> torch.Tensor:
    """Standard normal numbers that are a function of name and shape, float32; numpy never changes this generator."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


@torch.no_grad()
def fill(tensors: Mapping[str, torch.Tensor]) -> None:
    """Give tensors, by their names in the original, weights of the size that training leaves; variances are positive."""
    for name, tensor in tensors.items():
        drawn = numbers(name, *tensor.shape)
        if name.endswith("running_var"):
            drawn = 0.5 + drawn.abs()
        elif tensor.dim() == 1 and name.endswith("weight"):  # of a normalisation
            drawn = 1 + 0.3 * drawn.tanh()
        elif name.endswith(".W"):
            drawn = 4 * drawn
        elif tensor.dim() > 1:
            drawn = drawn / tensor[0].numel() ** 0.5
        else:
            drawn = 0.3 * drawn
        tensor.copy_(drawn)


def encoder_partners(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Our encoder's tensors by their names in the original's `Wide_ResNet`."""
    embedding = encoder.time_embedding
    modules = {
        "time_embedding.all_modules.1": embedding[1],
        "time_embedding.all_modules.2": embedding[3],
        "conv1": encoder.stem,
        "bn1": encoder.norm,
    }
    for key, block in encoder.blocks.items():
        group, index = key.removeprefix("group").split("_block")
        prefix = f"layer{int(group) + 1}.{index}"
        modules |= {
            f"{prefix}.bn1": block.norm0, f"{prefix}.conv1": block.conv0, f"{prefix}.Dense_0": block.shift,
            f"{prefix}.bn2": block.norm1, f"{prefix}.conv2": block.conv1,
        }  # fmt: skip
        if isinstance(block.skip, nn.Conv2d):
            modules[f"{prefix}.shortcut.0"] = block.skip
    if encoder.posterior is not None:
        modules["linear_latent"] = encoder.posterior
    tensors = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
        if key != "num_batches_tracked"
    }
    return {"time_embedding.all_modules.0.W": embedding[0].frequencies, **tensors}


def head_partners(kind: str, head: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of our head's first fit by their names in the original; weights transposed, as torch.nn.Linear's are."""
    tensors: dict[str, torch.Tensor] = {}

    def affine(name: str, dense: mixing.Dense, columns: slice = slice(None)) -> None:
        tensors[f"{name}.weight"] = dense.weight.data[0].T[columns]
        tensors[f"{name}.bias"] = dense.bias.data[0, 0, columns]

    if kind == "mlp":
        affine("classifier.0", head.readout.inner)
        affine("classifier.3", head.readout.readout)
    elif kind == "gru":
        affine("out", head.readout)
    else:
        affine("encoder.0", head.embed)
        for index, name in enumerate(("query_net", "key_net", "value_net")):
            affine(f"model.{name}", head.project, slice(index * head.cls.shape[-1], (index + 1) * head.cls.shape[-1]))
        affine("model.final", head.merge)
        affine("model.res.0", head.inner)
        affine("model.res.3", head.outer)
        affine("out", head.readout)
        for name, norm in (("model.norm1", head.norm_attention), ("model.norm2", head.norm_feedforward)):
            tensors |= {f"{name}.weight": norm.scale.data[0, 0], f"{name}.bias": norm.shift.data[0, 0]}
        tensors["embedding"] = head.cls.data[0]
    return tensors


def fill_head(kind: str, head: nn.Module) -> None:
    """Give our head the numbers that `fill` gives the original's; a GRU's gates stand in another order here."""
    fill(head_partners(kind, head))
    if kind != "gru":
        return
    width = head.width
    gates = {  # torch.nn.GRUCell: r, u, n
        "rnn.weight_ih": torch.empty(3 * width, head.inputs.weight.shape[1]),
        "rnn.weight_hh": torch.empty(3 * width, width),
        "rnn.bias_ih": torch.empty(3 * width),
        "rnn.bias_hh": torch.empty(3 * width),
    }
    fill(gates)
    first = torch.arange(3 * width).roll(width)  # n, r, u
    head.inputs.weight.data[0], head.inputs.bias.data[0, 0] = gates["rnn.weight_ih"][first].T, gates["rnn.bias_ih"][first]  # fmt: skip
    head.state.weight.data[0], head.state.bias.data[0, 0] = gates["rnn.weight_hh"].T, gates["rnn.bias_hh"]


def pattern(width: int) -> torch.Tensor:
    """What dropout of one quarter multiplies features by, the same for all rows: [width]."""
    return (numbers("dropout", width) > -0.67) / 0.75


@contextmanager
def fixed_dropout() -> Iterator[None]:
    """Every dropout, ours and torch's, multiplies by `pattern`."""

    def mask(dropout: mixing.Dropout, x: torch.Tensor, *shape: int) -> torch.Tensor:
        return pattern(shape[-1]).to(x.dtype).expand(1, 1, *shape)

    with (
        mock.patch.object(mixing.Dropout, "mask", mask),
        mock.patch.object(nn.Dropout, "forward", lambda self, x: x * pattern(x.shape[-1]) if self.training else x),
    ):
        yield


def encoder_cases(
    name: str, call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], network: nn.Module, norm: nn.Module
) -> dict[str, np.ndarray]:
    """Outputs in evaluation and in training, and what one batch makes of the last normalisation's statistics."""
    x0, t = numbers("images", 6, 3, 16, 16), torch.linspace(0, 1, 6)
    with torch.no_grad():
        evaluated = call(x0, t) if not network.eval().training else None
        trained = call(x0, t) if network.train().training else None
    return {
        f"{name}: evaluation": evaluated.numpy(),
        f"{name}: training": trained.numpy(),
        f"{name}: running mean": norm.running_mean.numpy().copy(),
    }


def head_cases(name: str, call: Callable[[torch.Tensor], torch.Tensor], network: nn.Module) -> dict[str, np.ndarray]:
    """Logits in evaluation, and in training with fixed dropout."""
    z = numbers("codes", 7, TIMES, FEATURES)
    with torch.no_grad(), fixed_dropout():
        network.eval()
        evaluated = call(z)
        network.train()
        return {f"{name}: evaluation": evaluated.numpy(), f"{name}: training": call(z).numpy()}


def our_outputs() -> dict[str, np.ndarray]:
    """What ours computes in every case."""
    outputs: dict[str, np.ndarray] = {}
    for name in ENCODERS:
        outputs |= our_encoder_cases(name)
    for kind in HEADS:
        outputs |= our_head(kind)
    return outputs | {f"loss {name}{', mixup' * mixup}": our_loss(name, mixup) for name in LOSSES for mixup in (0, 1)}


def our_encoder_cases(name: str) -> dict[str, np.ndarray]:
    """What our encoder computes."""
    encoder = Encoder(3, *ENCODERS[name])
    fill(encoder_partners(encoder))

    def code(x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        posterior = encoder(x0, t)
        return posterior.mean if posterior.logvar is None else torch.cat([posterior.mean, posterior.logvar], 1)

    return encoder_cases(name, code, encoder, encoder.norm)


def our_head(kind: str) -> dict[str, np.ndarray]:
    """What our head computes."""
    head = mixing.HEADS[kind](FEATURES, CLASSES, 1 if kind == "mlp" else TIMES)
    fill_head(kind, head)
    return head_cases(kind, lambda z: head(z[None, :, :1] if kind == "mlp" else z[None])[0][0, 0], head)


# Known functions in place of networks, so that a loss is compared and nothing else; images [B, 3, 4, 4], codes [B, 2].
def known_net(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """F(x, sigma) like x; NCSN++ makes the score F / sigma of it."""
    return torch.tanh(x) / (1 + sigma)[:, None, None, None]


def known_posterior(x0: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance of the code [B, 2]."""
    both = x0.flatten(1) @ numbers("code", 48, 4) / 7 + t[:, None]
    return both[:, :2], both[:, 2:]


def known_decoder(code: torch.Tensor) -> torch.Tensor:
    """The decoder's output [B, 3, 4, 4]."""
    return (code @ numbers("decoder", 2, 48)).view(-1, 3, 4, 4)


class Known(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """What the function gives."""
        return self.function(*given)


def loss_inputs() -> dict[str, torch.Tensor]:
    """One batch: images in [0, 1], times, noise, the code's noise, and the partner and share of mixup."""
    return {
        "x0": numbers("x0", 5, 3, 4, 4).sigmoid(), "t": torch.linspace(0.05, 0.95, 5),
        "noise": numbers("noise", 5, 3, 4, 4), "code_noise": numbers("code noise", 5, 2),
        "share": torch.linspace(0.1, 0.9, 5), "partner": torch.tensor([3, 0, 4, 1, 2]),
    }  # fmt: skip


def our_loss(name: str, mixup: int) -> np.ndarray:
    """Our loss on `loss_inputs` of a model of known networks, whose space is the image in [0, 1]."""
    given = loss_inputs()
    config = experiment.load_config(f"{ROOT / 'configs' / 'drl.py'}:smoke").to_dict()
    config["model"] |= {"mode": name, "precondition": "ve", "unit": 1.0}
    config["objective"] |= {"weight": "dsm", "levels": "uniform-time"}
    model = score_model.ScoreModel(config, (3, 4, 4), Scaling((1 / 255,) * 3, (0.0,) * 3), 1.0)
    probabilistic = model.kind.encoder == "probabilistic"

    def encode(x0: torch.Tensor, t: torch.Tensor) -> score_model.Posterior:
        mean, logvar = known_posterior(x0, t)
        return score_model.Posterior(mean, logvar if probabilistic else None)

    draws = {"level": model.sde.level(given["t"].double()).float(), "noise": given["noise"], "code_noise": given["code_noise"]}  # fmt: skip
    if mixup:
        draws |= {"share": given["share"], "other": given["x0"][given["partner"]]}
    if model.net is not None:
        model.net = Known(lambda x, c_noise, code: known_net(x, c_noise.exp()))
    if model.decoder is not None:
        model.decoder = Known(lambda c_noise, code: known_decoder(code))
    with mock.patch.object(model, "encode", encode):
        return np.array(float(sum(model.loss(given["x0"], draws).values())))


def original_outputs(root: Path) -> dict[str, np.ndarray]:
    """What the original's code computes in every case."""
    import original_encoder

    outputs: dict[str, np.ndarray] = {}
    for name, layout in ENCODERS.items():
        outputs |= original_encoder_cases(name, original_encoder.network(*layout))
    for kind in HEADS:
        outputs |= original_head(root, kind)
    losses = {f"loss {name}{', mixup' * mixup}": original_loss(name, mixup) for name in LOSSES for mixup in (0, 1)}
    return outputs | losses


def original_encoder_cases(name: str, network: nn.Module) -> dict[str, np.ndarray]:
    """What the original's encoder computes."""
    return encoder_cases(name, lambda x0, t: network(x0, t)[2], network, network.bn1)


def original_head(root: Path, kind: str) -> dict[str, np.ndarray]:
    """What the original's head computes."""
    import original_heads

    network = original_heads.network(root, kind, FEATURES, CLASSES)
    return head_cases(kind, lambda z: network(z[:, 0] if kind == "mlp" else z), network)


def original_loss(name: str, mixup: int) -> np.ndarray:
    """The original's loss on `loss_inputs`, with known networks and these draws in place of its own."""
    given, settings = loss_inputs(), LOSSES[name]
    training = types.SimpleNamespace(**settings, apply_mixup=bool(mixup))

    class Network(nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor, x0: torch.Tensor, t: torch.Tensor) -> dict[str, Any]:
            mean, logvar = known_posterior(x0, t)
            code = mean + torch.exp(logvar / 2) * given["code_noise"] if settings["probabilistic_encoder"] else mean
            output = known_net(x, sigma) / sigma[:, None, None, None]
            reconstruction = known_decoder(code)
            return {"output": output, "z_mean": mean, "z_logvar": logvar, "latent": mean, "reconstr": reconstruction}

    losses, process = importlib.import_module("losses"), importlib.import_module("sde_lib").VESDE(0.01, 50, 1000)
    loss = losses.get_sde_loss_fn(
        process, train=True, reduce_mean=False, continuous=True, likelihood_weighting=False,
        config=types.SimpleNamespace(training=training),
    )  # fmt: skip
    with (
        mock.patch.object(torch, "rand", lambda *shape, **options: (given["t"] - 1e-5) / (1 - 1e-5)),
        mock.patch.object(torch, "randn_like", lambda x: given["noise"]),
        mock.patch.object(torch, "randperm", lambda *shape, **options: given["partner"]),
        mock.patch.object(np.random, "beta", lambda *shape: given["share"].numpy()),
    ):
        return np.array(float(loss(Network(), given["x0"])))


if __name__ == "__main__":
    experiment.launch(main)

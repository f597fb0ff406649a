"""The closed forms that a command sets beside a network: which, under what name, in which colour.

Always there are the three of PARAMS, `mean`, `isotropic` and `gaussian`. --also adds any folder of get_parameters.py, named
by what it holds, as mixture-10, and --delta the mixture of all training images. A class-conditional Gaussian is taken as
the mixture of its classes: a network without labels knows none. Where images have labels the same Gaussian at the label
given can stand beside it. Two more have a diagonal covariance: independent pixels, independent spatial frequencies.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_model import experiment, figures
from linear_structure import diagonal, inputs
from linear_structure.diagonal import Diagonal
from linear_structure.flow import ClosedForm
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import ClassConditional, DeltaMixture

LOOKS = {  # name: (label, colour)
    "mean": ("isotropic (mean only)", figures.COLOURS[4]),
    "isotropic": ("isotropic (mean and variance)", figures.COLOURS[1]),
    "gaussian": ("Gaussian", figures.COLOURS[0]),
    "diagonal-pixel": ("Gaussian, independent pixels", "#882255"),
    "diagonal-fourier": ("Gaussian, independent frequencies", "#999933"),
    "delta": ("training images (delta mixture)", figures.COLOURS[6]),
}
FURTHER = {"mixture": 3, "classes": 2, "gaussian": 5}  # the first of its kind that --also adds; then what is left
SPARE = (*FURTHER.values(), 7)
LABELLED = "-labelled"  # ends the name of a class-conditional Gaussian at the labels of the images


class Named(NamedTuple):
    """A closed form in a run's model space, its label and colour in figures, and what a protocol says of it.

    The form of a name that ends in LABELLED is the ClassConditional, to be given the labels of each batch.
    """

    form: ClosedForm | ClassConditional
    label: str
    colour: str
    origin: str


def add_options(parser: experiment.Parser) -> None:
    """--also and --delta."""
    parser.add_argument(
        "--also", metavar="DIR", type=Path, nargs="+", default=[], help="further folders of get_parameters.py"
    )
    parser.add_argument("--delta", action="store_true", help="add the mixture of all training images, as points")


def gather(
    given: inputs.Inputs,
    also: Iterable[Path] = (),
    delta: bool = False,
    diagonals: bool = False,
    labelled: bool = False,
) -> dict[str, Named]:
    """The closed forms by name, least first; `labelled` adds the class-conditional Gaussians as they are."""
    first = given.protocol["statistics"]
    found = {name: Named(form, *LOOKS[name], first) for name, form in given.forms.items()}
    for folder in also:
        form = inputs.load_form(folder, given.record)
        name, label = described(form)
        if name in found:
            name, label = f"{name}-{folder.name}", f"{label} ({folder.name})"
        if name in found:
            raise experiment.UsageError(f"--also {folder}: a folder of that name and kind is given already")
        whole = form.mixture if isinstance(form, ClassConditional) else form
        colour = choose_colour(name, [entry.colour for entry in found.values()])
        found[name] = Named(whole, label, colour, inputs.fingerprint(folder))
        if labelled and whole is not form:
            found[name + LABELLED] = found[name]._replace(form=form, label=f"{label}, labels given")
    train = given.split("train") if delta or diagonals else None
    for basis in diagonal.BASES if diagonals else ():
        form = Diagonal.of_images(train.images, basis).mapped(given.model.scaling, train.shape)
        found[f"diagonal-{basis}"] = Named(form, *LOOKS[f"diagonal-{basis}"], train.hash)
    if delta:
        found["delta"] = Named(DeltaMixture(train.images, given.model.scaling), *LOOKS["delta"], train.hash)
    return found


def described(form: inputs.Form) -> tuple[str, str]:
    """Name and label of the closed form in a folder."""
    if isinstance(form, Gaussian):
        return f"gaussian-rank-{form.rank}", f"Gaussian of rank {form.rank}"
    if isinstance(form, ClassConditional):
        return f"classes-{len(form.mixture)}", f"mixture of {len(form.mixture)} classes"
    return f"mixture-{len(form)}", f"mixture of {len(form)}"


def choose_colour(name: str, taken: Collection[str]) -> str:
    """The colour of a further closed form: its kind's, so that it is the same in every figure, else one that is free."""
    order = [figures.COLOURS[index] for index in (FURTHER[name.partition("-")[0]], *SPARE)]
    return next((colour for colour in order if colour not in taken), order[0])


def looks(labels: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Label and colour of closed forms read back from cells, by name; what is labelled has its mixture's colour."""
    colours = {name: colour for name, (_, colour) in LOOKS.items()}
    for name in sorted({name.removesuffix(LABELLED) for name in labels} - LOOKS.keys()):
        colours[name] = choose_colour(name, colours.values())
    return {name: (label, colours[name.removesuffix(LABELLED)]) for name, label in labels.items()}


def protocol_of(given: inputs.Inputs, named: Named) -> dict[str, Any]:
    """What a protocol says of the run and of one closed form."""
    return given.protocol | {"form": named.origin}

"""Options that commands share, the sections that their help shows them in, and faults in the words of the shell."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxdfq.cli.interruption import tell_of_interruption
from onnxdfq.cli.printing import LogFormatter, echo
from onnxdfq.errors import DfqError
from onnxdfq.limits import IMAGES, STEPS
from onnxdfq.progress import TerminalProgress, silent
from onnxdfq.shown import sentence, shortened
from onnxdfq.signals import came, written
from onnxdfq.workers import is_other, joined, silence_others

Function = TypeVar("Function", bound=Callable[..., Any])
SECTIONS = {
    "What": (
        "method",
        "bits",
        "scheme",
        "tuning",
        "train_slices",
        "budget",
        "block",
        "rounding",
        "keep_float",
        "plan",
        "save_plan",
    ),
    "How": (
        "effort",
        "minutes",
        "images",
        "steps",
        "batch_size",
        "seed",
        "settings",
        "clipping",
        "equalize",
        "split_channels",
        "shift_negative",
        "device",
        "recipe",
    ),
    "Targets": ("target",),
    "Proof": ("require", "report"),
    "Data": ("normalize", "zoo", "calibration", "evaluate", "input_shape", "inputs", "op_library"),
    "Output": ("output", "dynamic_batch", "save_images", "work_dir", "force", "as_json", "quiet", "verbose", "help"),
}
FLAGS = {"settings": "--set", "output": "-o", "inputs": "--input"}
"""Fields whose flag is not simply their name."""


class Group(click.Group):
    """Turns what goes wrong into one sentence on stderr and an exit code: 2 the user's, 1 ours, 128 up signals."""

    def make_context(self, *given: Any, **named: Any) -> click.Context:
        """Read the arguments."""
        silence_others(os.environ)
        try:
            return super().make_context(*given, **named)
        except KeyboardInterrupt:  # which click would only call "Aborted!"
            raise click.exceptions.Exit(tell_of_interruption()) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        written.clear()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(tell_of_interruption())
        except click.ClickException as error:
            vars(error)["message"] = sentence(error.message)  # it may quote what a script took from a file
            raise
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if came:  # inside a library, which took it for a failure of its own
                ctx.exit(tell_of_interruption())
            if isinstance(error, DfqError):
                echo(f"onnxdfq: {with_flag(error)}", err=True)
                ctx.exit(error.exit_code)
            # whatever this is, it is our fault, and a traceback helps no user
            where = traceback.extract_tb(error.__traceback__)[-1]
            echo(
                f"onnxdfq: this is a fault of onnxdfq, please report it: {type(error).__name__} in "
                f"{Path(where.filename).name}:{where.lineno}: {sentence(' '.join(str(error).split()))}",
                err=True,
            )
            ctx.exit(1)


def with_flag(error: DfqError) -> str:
    """The error's sentence, behind the flag of the field that is at fault unless it names that itself."""
    text = str(error)
    if error.field is None:
        return text
    flag = FLAGS.get(error.field, f"--{error.field.replace('_', '-')}")
    return text if flag in text else f"{flag}: {text}"


class Command(click.Command):
    """A command whose help shows its options in sections, and an example at the end.

    sections: title → names of the parameters in it, in order; what is in none comes last, under "Other".
    """

    def __init__(
        self, *given: Any, sections: Mapping[str, Sequence[str]] | None = None, example: str = "", **named: Any
    ) -> None:
        super().__init__(*given, **named)
        self.sections = sections or {}
        self.example = example

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; of several processes that torchrun started, the first alone does."""
        return None if is_other(os.environ) else super().invoke(ctx)

    def records(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """By section, of each option in it how it is given and what it means."""
        shown = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        options = {"help" if "--help" in param.opts else param.name: param for param in shown}
        placed = {name for names in self.sections.values() for name in names}
        others = [name for name in options if name not in placed]
        found: dict[str, list[tuple[str, str]]] = {}
        for title, names in {**self.sections, "Other" if self.sections else "Options": others}.items():
            rows = [options[name].get_help_record(ctx) for name in names if name in options]
            if rows:
                found[title] = [row for row in rows if row is not None]
        return found

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, then the example."""
        for title, rows in self.records(ctx).items():
            with formatter.section(title):
                formatter.write_dl(rows)
        if self.example:
            with formatter.section("Example"):
                formatter.write_text(self.example)


class SharedCommand(Command):
    """A command that several processes run together, as torchrun starts them; its context's object is the workers."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, as the process that this one is among them."""
        with joined() as workers:
            ctx.obj = workers
            return click.Command.invoke(self, ctx)


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


LONGEST_NUMBER = 40  # characters


class _Whole(click.types.IntParamType):
    """A whole number. Python itself reads none of thousands of digits, and click says that it is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        if isinstance(value, str) and len(value) > LONGEST_NUMBER:
            self.fail(
                f"{shortened(value, 20)!r} has {len(value):,} characters; no option takes such a number.", param, ctx
            )
        return super().convert(value, param, ctx)


class _File(click.ParamType[Path]):
    """A path; what lies there is looked at by who reads or writes it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """See `click.ParamType`."""
        return Path(value)


FILE = _File()
WHOLE = _Whole()
AS_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there."
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Log what every pass changes, and where.")
OP_LIBRARY = click.option(
    "--op-library",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A shared library with custom operators of the model. It is code, and runs.",
)
SYNTHESIS = together(
    click.option("-m", "--method", metavar="NAME", help="See `onnxdfq methods`.  [default: auto]"),
    click.option(
        "--effort",
        metavar="NAME",
        help="How much work images are worth: fast (about 3 minutes of 2 cores), standard (15) or paper.  "
        "[default: fast]",
    ),
    click.option("--minutes", type=float, metavar="M", help="Another bound for the work of making images."),
    click.option(
        "--images",
        type=WHOLE,
        metavar="N",
        help=f"How many images, {IMAGES.most:,} at most; the effort says by default.",
    ),
    click.option(
        "--steps", type=WHOLE, metavar="N", help=f"Steps per image, {STEPS.most:,} at most; the effort says by default."
    ),
    click.option(
        "--batch-size", type=WHOLE, metavar="N", help="How many images are made at once; the method says by default."
    ),
    click.option("--seed", type=WHOLE, metavar="S", help="Same seed, same bytes; 0 to 2**32 - 1.  [default: 0]"),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="METHOD.FIELD=VALUE",
        help="A setting of a method, as dgh.rate=8; may be repeated. `onnxdfq methods NAME` lists them.",
    ),
    click.option(
        "--normalize",
        metavar="HOW",
        help="How the network's inputs were normalised: imagenet, cifar10, none (0 to 1) or M1,M2,M3/S1,S2,S3.",
    ),
    click.option(
        "--zoo",
        type=FILE,
        multiple=True,
        metavar="MODEL|FILE.toml",
        help="A model that images are made by, for mixmix and deepinversion; may be repeated. A TOML file says more of "
        "each (path, normalize, labels).  [default: the model itself]",
    ),
    click.option("--input-shape", multiple=True, metavar="[NAME=]1,C,H,W", help="Sizes that the file leaves open."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME=WHAT",
        help="What an input is fed where no data is given: image, normal:MEAN:STD, uniform:LOW:HIGH, or a number.",
    ),
    OP_LIBRARY,
    click.option(
        "--work-dir",
        type=FILE,
        metavar="FOLDER",
        help="Where long stages keep what they found; the same command goes on from there. `onnxdfq runs` lists it.",
    ),
    click.option("--recipe", type=FILE, metavar="FILE", help="A TOML file of settings; flags overrule it."),
    click.option("--device", metavar="NAME", help="auto, cpu or cuda.  [default: auto]"),
    click.option("--force", is_flag=True, help="Replace files that exist."),
    AS_JSON,
    QUIET,
    VERBOSE,
)


TRAIN_SLICES = click.option(
    "--train-slices",
    type=WHOLE,
    metavar="N",
    help="Cut each batch that trains into N slices, which up to N workers of torchrun share.  [default: 1]",
)
STATISTICS = click.option(
    "--statistics",
    metavar="NAME",
    help="What BatchNormalizations train by: batch (statistics run along) or fixed.  [default: batch]",
)


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    """Options of the shell as arguments of the Python door."""
    from onnxdfq.model_file import parse_fillings, parse_input_shapes
    from onnxdfq.recipe.recipe import Recipe, parse_settings

    quiet, verbose, recipe = given.pop("quiet"), given.pop("verbose"), given.pop("recipe")
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LogFormatter("%(name)s: %(message)s"))
        logging.basicConfig(level=logging.DEBUG, handlers=[handler])
    return given | {
        "workers": click.get_current_context().obj,
        "recipe": None if recipe is None else Recipe.load(recipe),
        "settings": parse_settings(given["settings"]),
        "input_shape": parse_input_shapes(given["input_shape"]),
        "inputs": parse_fillings(given["inputs"]),
        "progress": silent if quiet else TerminalProgress,
    }

"""A zoo of networks, of which so many are in memory as look at one batch of images."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from onnxdfq.errors import InputError, ShapeError
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import InputSpec, Opening
from onnxdfq.recipe.choices import Precision
from onnxdfq.recipe.zoo import Member
from onnxdfq.synthesis.input_range import InputRange, input_range
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.view import View
from onnxdfq.training.outputs import class_scores, distilled_outputs
from passes.canonical.canonicalize import Canonicalize
from passes.write.provenance import read_provenance


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of a member once it was looked at.

    name: of its file. digest: of that file. scale: from standardised pixels to its units. order: see `Member`. classes:
    how many it scores. folded: whether it has no BatchNormalization.
    """

    name: str
    digest: str
    scale: InputRange
    order: tuple[int, ...] | None
    classes: int
    folded: bool

    @property
    def provenance(self) -> dict[str, str]:
        """What images that it made depend on."""
        numbers = {"input_mean": self.scale.mean, "input_std": self.scale.std}
        found = {key: " ".join(f"{number:.6g}" for number in array) for key, array in numbers.items()}
        order = {} if self.order is None else {"order": " ".join(map(str, self.order))}
        return {"name": self.name, "digest": self.digest[:16], **found, **order}


class Zoo:
    """Networks that are loaded when they are asked for, and given up for others.

    Args:
        loaders: Of each member, what loads it.
        held: How many are in memory at most.
    """

    def __init__(self, loaders: Sequence[Callable[[], View]], held: int) -> None:
        self._loaders, self._held = loaders, min(held, len(loaders))
        self._views: dict[int, View] = {}

    def __len__(self) -> int:
        return len(self._loaders)

    @property
    def held(self) -> int:
        """How many are in memory at most, and so look at one batch."""
        return self._held

    def views(self, places: Sequence[int]) -> list[View]:
        """Members by their places, `held` of them at most; others are given up first. Raises what loading raises."""
        assert len(places) <= self._held
        gone = [place for place in self._views if place not in places]
        if len(self._views) + sum(place not in self._views for place in places) > self._held:
            for place in gone:
                del self._views[place]
            gc.collect()  # graphs hold each other, and a zoo must not wait for that
        for place in places:
            if place not in self._views:
                self._views[place] = self._loaders[place]()
        return [self._views[place] for place in places]

    def checked(self, spec: InputSpec) -> list[Found]:
        """Look at each member once. spec: of the input that images are made for.

        Raises:
            InputError: a member cannot be loaded, scores no classes, or others than the first one; it takes images of
                other channels, or an order of labels does not fit it.
        """
        found: list[Found] = []
        for place in range(len(self)):
            view = self.views([place])[0]
            _check_input(view, spec)
            classes = _classes(view)
            if found and found[0].classes != classes:
                raise InputError(
                    f"The zoo disagrees on classes: {found[0].name} scores {found[0].classes} and {view.name} "
                    f"{classes}; an image has one label for all.",
                    field="zoo",
                )
            found.append(
                Found(
                    name=view.name,
                    digest=view.digest,
                    scale=view.scale,
                    order=None if view.order is None else tuple(view.order),
                    classes=classes,
                    folded=not view.network.targets.channels,
                )
            )
        return found


def zoo_of(members: Sequence[Member], *, held: int, device: str, precision: Precision = "auto") -> Zoo:
    """Files, each read, run and converted in a process of its own as every model is."""
    return Zoo([partial(_loaded, member, device, precision) for member in members], held)


def zoo_of_one(
    model: ir.Model,
    normalization: Normalization | None,
    *,
    name: str,
    digest: str = "",
    device: str,
    precision: Precision = "auto",
) -> Zoo:
    """A model that is at hand; canonical, and only read."""
    return Zoo([lambda: _view(model, normalization, name, digest, None, device, precision)], 1)


def _loaded(member: Member, device: str, precision: Precision) -> View:
    with Opening(member.path) as opening:
        opened = opening.opened()
    Canonicalize()(opened.model)
    told = member.normalize or read_provenance(opened.model).get("norm")
    normalization = None if told is None else Normalization.parse(told)
    name, digest = member.path.name, opened.reference.digest
    try:
        return _view(opened.model, normalization, name, digest, member.order, device, precision)
    except InputError as error:  # which does not say of which model it is
        raise type(error)(f"{member.path}: {error}", field=error.field) from error


def _view(
    model: ir.Model,
    normalization: Normalization | None,
    name: str,
    digest: str,
    order: Sequence[int] | None,
    device: str,
    precision: Precision,
) -> View:
    outputs = distilled_outputs(model.graph)
    scores = class_scores(outputs)
    names = [output.name for output in outputs]
    network = TappedNetwork(model, method="zoo", device=device, precision=precision, outputs=names, statistics=False)
    scale = input_range(model, normalization)
    return View(name, network, scale, scores=scores, order=order, digest=digest)


def _check_input(view: View, spec: InputSpec) -> None:
    own = view.network.spec
    if own.image is None and spec.image is None and own.planes != spec.planes:
        raise ShapeError(
            f"{view.name} takes {own.text()} and the images are made for {spec.text()}; what is no picture cannot be "
            "scaled.",
            field="zoo",
        )
    if (own.image is None) != (spec.image is None):
        raise InputError(f"{view.name} and the model do not both take pictures; leave it out of the zoo.", field="zoo")
    if own.planes[0] != spec.planes[0]:
        raise InputError(
            f"The zoo disagrees on channels: {view.name} takes {own.planes[0]}, and images are made of "
            f"{spec.planes[0]}.",
            field="zoo",
        )


def _classes(view: View) -> int:
    count = view.class_count()
    if count is None:
        raise InputError(
            f"{view.name} scores no classes, as (N, K), so no image can be asked of it by its label; "
            "leave it out of the zoo.",
            field="zoo",
        )
    if view.order is not None and len(view.order) != count:
        raise InputError(
            f"{view.name} scores {count} classes, and its order of labels has {len(view.order)}.", field="zoo"
        )
    return count

"""A GPU that is none: the processor's tensors under another name, refused wherever torch refuses CUDA's.

`PretendedGpu` stands between the program and torch. A tensor that is moved to "cuda" stays where it is and is marked,
and so is whatever is computed from it. What torch would not do on a real GPU is an error here too: to compute from
tensors of both devices, to hand numpy a tensor of the GPU, to draw on the GPU with the processor's generator. So
numbers are those of the processor to the last bit, and a program that runs here fails on a GPU by its kernels alone.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
_MARK = "_on_pretended_gpu"
_MOVES = {"to", "cpu", "cuda", "copy_", "__set__", "_has_compatible_shallow_copy_type"}
_INDEXES = {"__getitem__", "__setitem__", "index"}


def on_gpu(tensor: Tensor) -> bool:
    """Whether it was moved there, or computed there."""
    return hasattr(tensor, _MARK)


class PretendedGpu(TorchFunctionMode):
    """A context in which "cuda" may be named. moved: how many tensors were moved there."""

    moved: int = 0

    def __enter__(self) -> Any:
        importlib.import_module("torch._dynamo")  # optimizers import it, and it minds who stands between
        self._subclass = torch.Tensor._make_subclass
        torch.Tensor._make_subclass = staticmethod(self._parameter)  # type: ignore[method-assign,assignment]
        return super().__enter__()

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)
        torch.Tensor._make_subclass = self._subclass  # type: ignore[method-assign]

    def _parameter(self, kind: Any, data: Tensor, *rest: Any, **named: Any) -> Any:
        return _marked(self._subclass(kind, data, *rest, **named), on_gpu(data))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named, name = dict(kwargs or {}), getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
        if name == "__get__":
            return self._got(func, args[0])
        if name in ("numpy", "__array__", "data_ptr") and on_gpu(args[0]):
            raise TypeError("can't convert a tensor of the GPU to numpy; use Tensor.cpu() first")
        self._check(name, args, tensors)
        wanted, args = _wanted_device(name, args, named)
        if (wanted is GPU and named.get("generator") is not None) or _draws_in_place(name, args, named):
            raise RuntimeError(f"{name}: expected a generator of the GPU, and this is the processor's")
        there = any(map(on_gpu, tensors)) if wanted is None else wanted is GPU
        if name == "__set__" and isinstance(args[1], Tensor):  # Tensor.data
            there = on_gpu(args[1])
        result = func(*args, **named)
        if name in ("to", "cpu", "cuda") and result is args[0] and on_gpu(result) != there:
            result = result.clone()
            self.moved += there
        for one in tree_leaves(args[:1] if name == "__set__" else result):
            if isinstance(one, Tensor) and (name == "__set__" or not any(one is given for given in tensors)):
                _marked(one, there)
        return result

    def _got(self, func: Any, tensor: Tensor) -> Any:
        """A property."""
        what = getattr(func.__self__, "__name__", "")
        if on_gpu(tensor) and what in ("device", "is_cuda", "is_cpu"):
            return {"device": GPU, "is_cuda": True, "is_cpu": False}[what]
        found = func(tensor)
        return _marked(found, on_gpu(tensor)) if isinstance(found, Tensor) else found

    def _check(self, name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
        if name in _INDEXES and not on_gpu(args[0]):
            if any(on_gpu(one) and one.ndim for one in tensors):
                raise RuntimeError(f"{name}: a tensor of the processor is indexed by one of the GPU")
        elif name not in _MOVES | _INDEXES and any(map(on_gpu, tensors)):
            strange = [one for one in tensors if not on_gpu(one) and one.ndim]
            if strange:
                shapes = [(tuple(one.shape), "GPU" if on_gpu(one) else "CPU") for one in tensors]
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {shapes}")


def _marked(tensor: Any, there: bool) -> Any:
    if there:
        setattr(tensor, _MARK, True)
    elif on_gpu(tensor):
        delattr(tensor, _MARK)
    return tensor


def _draws_in_place(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    return named.get("generator") is not None and bool(args) and isinstance(args[0], Tensor) and on_gpu(args[0])


def _wanted_device(name: str, args: Sequence[Any], named: dict[str, Any]) -> tuple[torch.device | None, Sequence[Any]]:
    """The device that a call names, None where it names none; and its arguments with the processor in the place of
    that. `named` is edited."""
    wanted = None
    if name in ("cpu", "cuda"):
        return (CPU if name == "cpu" else GPU), args
    if named.get("device") is not None:
        wanted, named["device"] = _device(named["device"]), CPU
    if name == "to":
        found = []
        for place, one in enumerate(args):
            if place and isinstance(one, str | torch.device):
                wanted, one = _device(one), CPU
            elif place and isinstance(one, Tensor):
                wanted, one = (GPU if on_gpu(one) else CPU), one
            found.append(one)
        args = found
    return wanted, args


def _device(named: Any) -> torch.device:
    return GPU if torch.device(named).type == "cuda" else CPU

"""What does the function take, and so what does the decorated one?

The only file that knows signatures and annotations.
"""

import inspect
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from inspect import Parameter, Signature
from types import CodeType
from typing import Any, get_args, get_origin

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def name_of(function: Callable[..., Any]) -> str:
    """Return what messages call the function: with its class, if it is written in one."""
    name: str = getattr(function, "__name__", type(function).__name__)
    return f"{_class_around(function)}.{name}" if _class_around(function) else name


def is_method(function: Callable[..., Any]) -> bool:
    """Whether a function that takes more than one parameter takes an instance first: if it is written in a class."""
    return _class_around(function) != "" and len(_parameters(function)) != 1  # with one it is meant to be static


def _class_around(function: Callable[..., Any]) -> str:
    # Known at once and not only when the class is made, by when the function might have been called; and whatever the
    # first parameter is called.
    within, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    binds = hasattr(type(function), "__get__") and not inspect.ismethod(function)  # a bound one is bound
    return within.rpartition(".")[2].replace("<locals>", "") if binds else ""


def check_function(name: str, function: Callable[..., Any], *, method: bool) -> None:
    """Raise what says why, if the function does not take one list; a method, an instance and one list."""
    parameters = _parameters(function)
    kinds = [parameter.kind for parameter in parameters]
    if all(kind in _POSITIONAL for kind in kinds) and len(kinds) == 1 + method:
        return
    if _signature(function) is None:
        return
    takes = Signature([parameter.replace(annotation=Parameter.empty) for parameter in parameters])
    must = "the instance and one more parameter" if method else "one parameter"
    raise TypeError(f"{name}() must take {must}, the list of items; it takes {takes}")


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether it must be awaited. Also an object whose `__call__()` must."""
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, type(function).__call__)
    )


def as_coroutine_code(code: CodeType) -> CodeType:
    """Return code by which inspect.iscoroutinefunction() says yes; that of an asynchronous generator says no."""
    return code.replace(co_flags=code.co_flags & ~inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE)


def signature_of_one_item(function: Callable[..., Any]) -> Signature:
    """Return the signature of the decorated function: its last parameter, the list, becomes one item."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may not be importable here
        signature = inspect.signature(function)
    *instance, items = signature.parameters.values()
    item = items.replace(kind=Parameter.POSITIONAL_ONLY, default=Parameter.empty, annotation=_entry(items.annotation))
    return signature.replace(
        parameters=[each.replace(kind=Parameter.POSITIONAL_ONLY) for each in instance] + [item],
        return_annotation=_entry(signature.return_annotation),
    )


def annotations_of_one_item(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations that belong to `signature_of_one_item()`."""
    signature = signature_of_one_item(function)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    annotations["return"] = signature.return_annotation
    return {name: annotation for name, annotation in annotations.items() if annotation is not Parameter.empty}


def _signature(function: Callable[..., Any]) -> Signature | None:
    try:
        return inspect.signature(function)
    except ValueError:  # written in C, without a signature
        return None


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    signature = _signature(function)
    return [] if signature is None else list(signature.parameters.values())


def _entry(annotation: Any) -> Any:
    """Return the annotation of one entry of a list, mapping, iterator or future; empty where it does not say."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not isinstance(origin, type) or not arguments:
        return Parameter.empty
    if issubclass(origin, Mapping):
        return arguments[1] if len(arguments) == 2 else Parameter.empty  # Counter[str] does not hold strings
    if hasattr(origin, "add_done_callback"):
        return _entry(arguments[0])
    # Not every generic class: the first argument of a numpy array's annotation is its shape.
    if issubclass(origin, (Sequence, Iterator, AsyncIterator)) or origin in (Iterable, Collection, AsyncIterable):
        return arguments[0]
    return Parameter.empty

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
from functools import partial
from inspect import Parameter, Signature
from types import CodeType
from typing import Any, get_args, get_origin

from ._options import Takes

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def name_of(function: Callable[..., Any]) -> str:
    """Return what messages call the function: with its class, if it is written in one."""
    name: str = getattr(function, "__name__", type(function).__name__)
    return f"{_class_around(function)}.{name}" if _class_around(function) else name


def is_method(function: Callable[..., Any]) -> bool:
    """Whether a function that takes several parameters by position takes an instance first: if written in a class."""
    columns = sum(parameter.kind in _POSITIONAL for parameter in _parameters(function))
    return _class_around(function) != "" and columns != 1  # with one it is meant to be static


def _class_around(function: Callable[..., Any]) -> str:
    # Known at once and not only when the class is made, by when the function might have been called; and whatever the
    # first parameter is called.
    within, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    binds = hasattr(type(function), "__get__") and not inspect.ismethod(function)  # a bound one is bound
    return within.rpartition(".")[2].replace("<locals>", "") if binds else ""


def takes_of(name: str, function: Callable[..., Any], *, method: bool) -> Takes:
    """Return what the function takes, without its instance if it is a method; raise what says why it cannot be."""
    everything = _parameters(function)
    instance, parameters = everything[:method], everything[method:]
    columns = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    constants = [parameter for parameter in parameters if parameter.kind is Parameter.KEYWORD_ONLY]
    if not columns or len(columns) + len(constants) < len(parameters):
        must = "the instance and one parameter or more" if method else "one parameter or more"
        takes = Signature([each.replace(annotation=Parameter.empty) for each in everything])
        raise TypeError(
            f"{name}() must take {must} by position, each a list with one entry per item, and may take keyword-only "
            f"ones, each the same for a whole batch; it takes {takes}"
        )
    plain = len(columns) == 1 and not constants
    return Takes(len(columns), bool(constants), plain, _binder(name, instance, columns, constants))


def _one(item: object, /) -> None:
    """Take one item."""


def _one_of(instance: object, item: object, /) -> None:
    """Take one item of an instance."""


def _binder(
    name: str, instance: list[Parameter], columns: list[Parameter], constants: list[Parameter]
) -> Callable[..., Any]:
    """Return a function that takes the arguments of a call, and returns its item and its constants.

    Made from text, as `collections.namedtuple` does it, so that what Python says of wrong arguments is what it would
    say of the function itself, where it counts the instance too.
    """
    defaults = {f"_{each.name}_": each.default for each in (*columns, *constants)}
    texts = [
        each.name if each.default is Parameter.empty else f"{each.name}=_{each.name}_"
        for each in (*columns, *constants)
    ]
    if constants:
        texts.insert(len(columns), "*")
    # One item alone has no name that would fit it.
    nameless = sum(each.kind is Parameter.POSITIONAL_ONLY for each in columns) or len(columns) + len(constants) == 1
    if nameless:
        texts.insert(int(nameless), "/")
    texts = [each.name for each in instance] + texts
    item = ", ".join(each.name for each in columns)  # in parentheses a tuple, or the only one itself
    values = ", ".join(f"{each.name!r}: {each.name}" for each in constants)
    exec(f"def bind({', '.join(texts)}): return ({item}), {{{values}}}", defaults)  # noqa: S102 - names of parameters
    bind: Callable[..., Any] = defaults["bind"]
    bind.__name__ = bind.__qualname__ = name
    return partial(bind, None) if instance else bind


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether it must be awaited. Also an object whose `__call__()` must."""
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, type(function).__call__)
    )


def as_coroutine_code(code: CodeType) -> CodeType:
    """Return code by which inspect.iscoroutinefunction() says yes; that of an asynchronous generator says no."""
    return code.replace(co_flags=code.co_flags & ~inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE)


def signature_of_one_item(function: Callable[..., Any], *, method: bool) -> Signature:
    """Return the signature of the decorated function: each list becomes one item."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may not be importable here
        signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    first = 1 if method else 0
    alone = len(parameters) == first + 1
    for position, each in enumerate(parameters[first:], first):
        if each.kind in _POSITIONAL:
            kind = Parameter.POSITIONAL_ONLY if alone else each.kind
            parameters[position] = each.replace(kind=kind, annotation=_entry(each.annotation))
    if alone:
        parameters[0] = parameters[0].replace(kind=Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=parameters, return_annotation=_entry(signature.return_annotation))


def annotations_of_one_item(function: Callable[..., Any], *, method: bool) -> dict[str, Any]:
    """Return the annotations that belong to `signature_of_one_item()`."""
    signature = signature_of_one_item(function, method=method)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    annotations["return"] = signature.return_annotation
    return {name: annotation for name, annotation in annotations.items() if annotation is not Parameter.empty}


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, and it does not say
        signature = inspect.signature(_one_of if _class_around(function) else _one)
    return list(signature.parameters.values())


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

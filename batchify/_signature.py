"""What does the function take, and so what does the decorated one?

The only file that knows signatures and annotations.
"""

import ast
import inspect
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import WRAPPER_ASSIGNMENTS, partial, update_wrapper
from inspect import Parameter, Signature
from types import CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any, get_args, get_origin

from ._options import NO_CONSTANTS, Takes

# From Python 3.14 on annotations are evaluated when they are asked for, and what cannot be evaluated is no error here.
_get_annotations: Callable[..., dict[str, Any]] = inspect.get_annotations
if sys.version_info >= (3, 14):
    import annotationlib

    _get_annotations = partial(annotationlib.get_annotations, format=annotationlib.Format.FORWARDREF)

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def name_of(function: Callable[..., Any]) -> str:
    """Return what messages call the function: with its class, if it is written in one."""
    name: str = getattr(function, "__name__", type(function).__name__)
    return f"{_class_around(function)}.{name}" if _class_around(function) else name


def is_method(function: Callable[..., Any]) -> bool:
    """Whether a function takes an instance first: if written in a class, unless one list is all that it must be given.

    Such a one is meant to be static; but not where that is called `self`, as it forgot its list.
    """
    takes = [each for each in _parameters(function) if each.kind in _POSITIONAL]
    needed = sum(each.default is each.empty for each in takes)
    return _class_around(function) != "" and (needed > 1 or not takes or takes[0].name in ("self", "cls"))


def _count_columns(parameters: list[Parameter]) -> int:
    """Return how many are lists with an entry per item: the first one, and those by position that have no default.

    The others stay as they are for a whole batch: of a model's `predict(rows, raw_score=False)` only `rows` is a list.
    """
    needed = (each.default is each.empty or each is parameters[0] for each in parameters if each.kind in _POSITIONAL)
    return sum(needed)


def _class_around(function: Callable[..., Any]) -> str:
    # Known at once and not only when the class is made, by when the function might have been called; and whatever the
    # first parameter is called.
    within, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    binds = hasattr(type(function), "__get__") and not inspect.ismethod(function)  # a bound one is bound
    return within.rpartition(".")[2].replace("<locals>", "") if binds else ""


def takes_of(name: str, function: Callable[..., Any], *, method: bool, static: bool) -> Takes:
    """Return what the function takes, without its instance if it is a method; raise what says why it cannot be."""
    everything = _parameters(function)
    if not (method or static) and [each.name for each in everything[:1]] == ["self"]:
        raise TypeError(
            f"{name}() takes `self`, but is not written in a class, where batched() would know that each instance has "
            f"a buffer: decorate it in the class; if another decorator hides that, it lacks functools.wraps()"
        )
    mine = everything[method:]
    columns = _count_columns(mine)
    if not columns or any(each.kind is Parameter.VAR_POSITIONAL for each in mine):
        must = "the instance and one parameter or more" if method else "one parameter or more"
        raise TypeError(
            f"{name}() must take {must} by position, each a list with one entry per item, and may take others that "
            f"have a default or are keyword-only, each the same for a whole batch; it takes {Signature(everything)}"
        )
    unnamed = {each.name: each.default for each in mine[columns:] if each.kind is Parameter.POSITIONAL_ONLY}
    if unnamed and mine[-1].kind is Parameter.VAR_KEYWORD:
        raise TypeError(f"{name}() cannot have both positional-only parameters with a default and **{mine[-1].name}")
    if any(each.name == "return_exceptions" for each in mine[columns:]):
        raise TypeError(f"{name}() cannot have a parameter return_exceptions, which is one of its map()")
    define = partial(_define, name, parameters=everything, columns=columns, method=method)
    bind = define("{use}({item}{constants})")(lambda item, constants=NO_CONSTANTS: (item, constants))
    return Takes(columns, len(mine) > columns, len(mine) == 1, unnamed, partial(bind, None) if method else bind, define)


def _define(
    name: str, body: str, doc: str | None = None, *, parameters: list[Parameter], columns: int, method: bool
) -> Callable[[Any], Callable[..., Any]]:
    """Return what makes, given what `{use}` is, a function that takes the arguments of a call, and returns `body`.

    There, `{item}` and `{constants}` are what an engine is passed, the latter with a comma in front, if there are any,
    and `{owner}` is the instance of a method, which it takes first, or None. Made from text, as
    `collections.namedtuple` does it, so that what Python says of wrong arguments is what it would say of the function
    itself, where it counts the instance too.
    """
    names = [each.name for each in parameters]
    use = "_".join(["use", *names])  # so no parameter has this name, nor one that begins so
    constants = ", ".join(_as_constant(each, use) for each in parameters[method + columns :])
    text = body.format(
        use=use,
        item=f"({', '.join(names[method : method + columns])})",  # a tuple, or the only one itself
        constants=f", {{{constants}}}" if constants else "",
        owner=names[0] if method else None,
    )
    space: dict[str, Any] = {f"{use}_{each.name}": each.default for each in parameters} | {"doc": doc}
    space[f"{use}_ordered"] = lambda named: dict(sorted(named.items()))  # so those in another order are equal
    takes = [
        each if each.default is each.empty else each.replace(default=_Text(f"{use}_{each.name}")) for each in parameters
    ]
    function = f"def entry{Signature(takes)}: return {text}"
    told = f"entry.__qualname__, entry.__doc__ = {name!r}, doc"
    exec(f"def make({use}):\n {function}\n {told}\n return entry", space)  # noqa: S102 - names of parameters
    make: Callable[[Any], Callable[..., Any]] = space["make"]
    return make


class _Text(str):
    """Code, as which it stands in a signature."""

    __slots__ = ()
    __repr__ = str.__str__


def _as_constant(parameter: Parameter, use: str) -> str:
    """Return the code of a parameter's entry in the dictionary of what is the same for a whole batch."""
    name = parameter.name
    if parameter.kind is Parameter.VAR_KEYWORD:
        return f"**{use}_ordered({name})"
    entry = f"{name!r}: {name}"
    with suppress(Exception):
        hash(parameter.default)
        return entry
    return f"**({{{entry}}} if {name} is not {use}_{name} else {{}})"  # else no call could share a batch


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether it must be awaited. Also an object whose `__call__()` must."""
    both = function, type(function).__call__
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in both)


def as_coroutine_code(code: CodeType) -> CodeType:
    """Return code by which inspect.iscoroutinefunction() says yes; that of an asynchronous generator says no."""
    return code.replace(co_flags=code.co_flags & ~inspect.CO_ASYNC_GENERATOR | inspect.CO_COROUTINE)


def signature_of_one_item(function: Callable[..., Any], *, method: bool) -> Signature:
    """Return the signature of the decorated function: each list becomes one item."""
    signature = inspect.signature(_annotated(function, _evaluated))
    parameters = list(signature.parameters.values())
    for position in range(method, method + _count_columns(parameters[method:])):
        parameters[position] = parameters[position].replace(annotation=_entry(parameters[position].annotation))
    return signature.replace(parameters=parameters, return_annotation=_entry(signature.return_annotation))


def annotations_of(signature: Signature) -> dict[str, Any]:
    """Return the annotations that belong to a signature."""
    found = {name: each.annotation for name, each in signature.parameters.items()}
    found["return"] = signature.return_annotation
    return {name: annotation for name, annotation in found.items() if annotation is not Parameter.empty}


def annotate(decorated: Any, form: int, /) -> dict[str, Any]:
    """Return the annotations of a decorated function, in one of the formats that Python 3.14 has."""
    return _get_annotations(SimpleNamespace(__annotations__=decorated.__annotations__), format=form)


def copied(function: FunctionType) -> FunctionType:
    """Return another function that does the same."""
    copy = FunctionType(function.__code__, function.__globals__, None, function.__defaults__, function.__closure__)
    update_wrapper(copy, function, (*WRAPPER_ASSIGNMENTS, "__kwdefaults__"))
    del copy.__wrapped__  # type: ignore[attr-defined]
    return copy


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    try:
        found = inspect.signature(_annotated(function, lambda _: {})).parameters.values()
        return [each.replace(annotation=Parameter.empty) for each in found]
    except ValueError:  # written in C, and it does not say
        names = ["instance", "item"] if _class_around(function) else ["item"]
        return [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]


def _annotated(function: Any, annotations: Callable[[FunctionType], dict[str, Any]]) -> Any:
    """Return the like of a function, for inspect.signature(), which would evaluate the annotations that it has."""
    # A bound method also has the `__wrapped__` of its function, which is not bound.
    function = inspect.unwrap(function, stop=lambda f: hasattr(f, "__signature__") or isinstance(f, MethodType))
    called = function.__func__ if isinstance(function, MethodType) else type(function).__call__
    if hasattr(function, "__signature__"):
        return function
    if isinstance(function, partial):
        return partial(_annotated(function.func, annotations), *function.args, **function.keywords)
    if type(function) is FunctionType:
        like = copied(function)
        like.__annotations__ = annotations(function)
        return like
    return MethodType(_annotated(called, annotations), function) if type(called) is FunctionType else function


def _evaluated(function: FunctionType) -> dict[str, Any]:
    """Return its annotations as far as they can be evaluated now: also as the text, or as a type of texts."""
    names = {each.__name__: each for each in getattr(function, "__type_params__", ())}

    def evaluated(annotation: Any) -> Any:
        annotation = _text_of(annotation)
        if isinstance(annotation, str):
            with suppress(Exception):  # it is any expression, and what it names may be imported for checkers alone
                return eval(annotation, function.__globals__, names)  # noqa: S307 - as typing.get_type_hints()
            with suppress(Exception):
                tree: Any = ast.parse(annotation, mode="eval").body
                parts = (tree.value, *getattr(tree.slice, "elts", [tree.slice]))
                generic, *arguments = (evaluated(ast.unparse(each)) for each in parts)
                return generic[tuple(arguments)]
        return annotation

    return {name: evaluated(annotation) for name, annotation in _get_annotations(function).items()}


def _text_of(annotation: Any) -> Any:
    return getattr(annotation, "__forward_arg__", annotation)  # of a ForwardRef, which stands for text


def _entry(annotation: Any) -> Any:
    """Return the annotation of one entry of a list, mapping, iterator or future; empty where it does not say."""
    origin, arguments = get_origin(annotation), [*map(_text_of, get_args(annotation))]
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

"""Every public docstring has its parts, and an example that runs."""

from __future__ import annotations

import doctest
import inspect

import pytest
import seckill
from seckill import _core


def documented():
    """All that a user can meet, by its full name."""
    for name in seckill.__all__:
        thing = getattr(seckill, name)
        if name == "__version__":
            continue
        yield name, thing
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            for member, method in inspect.getmembers(thing, inspect.isroutine):
                if not member.startswith("_"):
                    yield f"{name}.{member}", method


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_run(name, start_server):
    server = start_server()
    seckill.configure(server.url)
    text = inspect.getdoc(DOCUMENTED[name])
    names = {"seckill": seckill} | {name: getattr(seckill, name) for name in seckill.__all__}
    example = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert example.examples, "no example"
    failures = []
    doctest.DocTestRunner(verbose=False).run(example, out=failures.append)
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_docstring_begins_with_a_sentence(name):
    first = inspect.getdoc(DOCUMENTED[name]).partition("\n\n")[0]
    assert first.endswith((".", ":")), first


@pytest.mark.parametrize(
    "name", ["acquire_lock", "release_lock", "incr_inventory", "update_inventory"]
)
def test_a_functions_docstring_names_its_arguments_and_its_exceptions(name):
    function = getattr(seckill, name)
    text = inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters:
        assert f"    {parameter}: " in text
    for error in ("TypeError", "ValueError", "ConnectionError", "OutcomeUnknown", "ServerError"):
        assert f"    {error}: " in text
    assert inspect.getdoc(getattr(_core.CoreClient, name)) == text, "the method is its twin"

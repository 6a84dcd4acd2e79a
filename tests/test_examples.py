"""The docstrings of public names: each has an example, which runs, and help() shows its words."""

import doctest
import importlib
import inspect
import pkgutil
import pydoc

import pytest

import dps_jax

# Their frameworks come with extras; tests/integrations/ runs them.
WITHOUT_EXAMPLES = {f"dps_jax.integrations.{name}" for name in ("trl", "tunix", "slime", "skyrl", "verl", "torch")}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_modules():
    """Yields the modules in whose path no name begins with an underscore; commands are run, not imported."""
    for found in pkgutil.walk_packages(dps_jax.__path__, "dps_jax."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def public_objects():
    """Returns functions and classes by their names, each under the module that defines it as public."""
    objects = {}
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            # Names for `typing.Any` document themselves where they are used.
            is_own = getattr(value, "__module__", "").startswith("dps_jax.")
            if is_own and (inspect.isfunction(value) or inspect.isclass(value)):
                objects.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(objects.values())


OBJECTS = public_objects()


def test_public_modules_list_what_is_public():
    for module in public_modules():
        if module.__name__ in ("dps_jax.integrations", "dps_jax.next_prompts"):
            continue
        assert module.__all__, module.__name__
        assert not [name for name in module.__all__ if name.startswith("_")]
        own = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
        ]
        assert set(own) <= set(module.__all__), module.__name__


@pytest.mark.parametrize("name", OBJECTS)
def test_help_shows_its_own_words(name):
    text = inspect.getdoc(OBJECTS[name])
    assert text, name
    assert not text.startswith(f"{OBJECTS[name].__name__}("), f"{name}: expected a docstring, got that of the fields"
    assert text.splitlines()[0] in pydoc.render_doc(OBJECTS[name], renderer=pydoc.plaintext)


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.rpartition(".")[0] not in WITHOUT_EXAMPLES])
def test_example_runs(name, tmp_path, monkeypatch):
    assert "Example:\n" in inspect.getdoc(OBJECTS[name])
    monkeypatch.chdir(tmp_path)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=OPTIONS)
    tests = [found for found in finder.find(OBJECTS[name], name, globs={}) if found.examples]
    assert tests, f"{name}: expected lines with >>>"
    report = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)

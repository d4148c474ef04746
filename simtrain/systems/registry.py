"""Finding systems: shipped names, ``package.module:Class``, ``path/to/file.py:Class``, and plug-ins."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from simtrain.errors import InputError, UnknownNameError, did_you_mean
from simtrain.systems.base import System
from simtrain.systems.step import StepSystem

ENTRY_POINTS = "simtrain.systems"
T = TypeVar("T")


def names() -> list[str]:
    """Return the shipped and plugged-in systems as ``family/file``, sorted."""
    root = Path(__file__).parent
    shipped = [f"{path.parent.name}/{path.stem}" for path in root.glob("*/*.py") if not path.stem.startswith("_")]
    return sorted({*shipped, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find(name: str) -> type[System]:
    """Return the class behind a name.

    Parameters
    ----------
    name
        ``dense/megascale``, ``dense/megascale:MegatronLM`` for another class of the same file,
        ``package.module:Class`` or ``file.py:Class``.

    Raises
    ------
    UnknownNameError
        If there is no such system.
    InputError
        If the user's file cannot be imported, or holds no system.
    """
    place, _, class_name = name.partition(":")
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return _checked(_imported(point.load, name), name)
    if place in names():
        module = importlib.import_module(f"simtrain.systems.{place.replace('/', '.')}")
        return _class_in(module, class_name, place)
    if place.endswith(".py"):
        return _class_in(_import_file(Path(place)), class_name, place)
    if "." in place and class_name and all(part.isidentifier() for part in place.split(".")):
        return _class_in(_imported(lambda: importlib.import_module(place), place), class_name, place)
    raise UnknownNameError(f"unknown system {name!r}; {did_you_mean(place, names())} (your own: path/to/file.py:Class or package.module:Class)")


def name_of(system: type[System]) -> str:
    """Return the name under which a class is found, ``family/file`` for shipped ones."""
    module = system.__module__
    if not module.startswith("simtrain.systems."):
        return system.__name__
    place = module.removeprefix("simtrain.systems.").replace(".", "/")
    main = _class_in(sys.modules[module], "", place)
    return place if main is system else f"{place}:{system.__name__}"


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownNameError(f"{path}: no such file; give the path of a Python file, or the name of a shipped system")
    spec = importlib.util.spec_from_file_location(f"simtrain_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[spec.name] = module
    try:
        _imported(lambda: loader.exec_module(module), str(path))
    except InputError:
        del sys.modules[spec.name]
        raise
    return module


def _imported(load: Callable[[], T], place: str) -> T:
    """Run code of the user's; whatever it raises becomes one message that names the last line of theirs."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(place)]
        where = f"{place}:{lines[-1]}" if lines else place
        raise InputError(f"{where}: cannot be imported ({type(error).__name__}: {error}); mend it, or check that the name is right") from error


def _class_in(module: ModuleType, class_name: str, place: str) -> type[System]:
    own = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, System) and v.__module__ == module.__name__}
    if class_name:
        if class_name not in vars(module):
            hint = did_you_mean(class_name, own) if own else "it holds no System"
            raise UnknownNameError(f"{place}: no class {class_name!r}; {hint}")
        return _checked(vars(module)[class_name], f"{place}:{class_name}")
    stem = place.rsplit("/", maxsplit=1)[-1].removesuffix(".py").replace("_", "")
    match = [v for k, v in own.items() if k.lower() == stem] or list(own.values())[-1:]
    if not match:
        raise InputError(f"{place}: holds no System; write 'class MySystem(System): ...'")
    return _checked(match[0], f"{place}:{match[0].__name__}")


def _checked(found: object, name: str) -> type[System]:
    if not isinstance(found, type) or not issubclass(found, System):
        raise InputError(f"{name}: is not a System; derive it from simtrain.System")
    if found.simulate is System.simulate:
        raise InputError(f"{name}: has no simulate(self, workload, cluster, options); derive from a kind of system such as TransformerTraining, or write it")
    if issubclass(found, StepSystem) and found.build is StepSystem.build:
        raise InputError(f"{name}: has no build(self, workload, cluster); write it, or derive from TransformerTraining or a shipped system")
    return found

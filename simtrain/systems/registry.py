"""Finding systems: shipped names, ``package.module:Class``, ``path/to/file.py:Class``, and plug-ins."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from simtrain.errors import InputError, UnknownNameError, did_you_mean
from simtrain.systems.base import System

ENTRY_POINTS = "simtrain.systems"


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
            return _checked(point.load(), name)
    if place in names():
        module = importlib.import_module(f"simtrain.systems.{place.replace('/', '.')}")
        return _class_in(module, class_name, place)
    if place.endswith(".py"):
        return _class_in(_import_file(Path(place)), class_name, place)
    if "." in place and class_name:
        try:
            return _class_in(importlib.import_module(place), class_name, place)
        except ModuleNotFoundError as error:
            raise UnknownNameError(f"system {name!r}: no module {error.name!r}") from None
    raise UnknownNameError(f"unknown system {name!r}; {did_you_mean(place, names())} (your own: path/to/file.py:Class)")


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
        raise UnknownNameError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"simtrain_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    return module


def _class_in(module: ModuleType, class_name: str, place: str) -> type[System]:
    own = {k: v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, System) and v.__module__ == module.__name__}
    if class_name:
        if class_name not in vars(module):
            raise UnknownNameError(f"{place}: no class {class_name!r}; {did_you_mean(class_name, own)}")
        return _checked(vars(module)[class_name], f"{place}:{class_name}")
    stem = place.split("/")[-1].removesuffix(".py").replace("_", "")
    match = [v for k, v in own.items() if k.lower() == stem] or list(own.values())[-1:]
    if not match:
        raise InputError(f"{place}: holds no System; write 'class MySystem(System): ...'")
    return match[0]


def _checked(found: object, name: str) -> type[System]:
    if isinstance(found, type) and issubclass(found, System):
        return found
    raise InputError(f"{name}: is not a System; derive it from simtrain.System")

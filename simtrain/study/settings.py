"""From names and ``--set key=value`` to a system, a workload and a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from simtrain import spec
from simtrain.errors import InputError, did_you_mean
from simtrain.hardware import Cluster
from simtrain.systems.base import System
from simtrain.systems.registry import find, name_of

T = TypeVar("T")
N = TypeVar("N", bound=spec.NamedSpec)

PREFIXES = ("system", "workload", "cluster")


@dataclass(frozen=True)
class Scenario:
    """What runs where, resolved and validated."""

    name: str
    system: System
    workload: Any
    """An instance of the system's ``workload_type``."""
    cluster: Cluster


def scenario(
    system: str | type[System] | System, workload: str | spec.NamedSpec, cluster: str | Cluster, settings: Mapping[str, Any] | None = None
) -> Scenario:
    """Resolve names and apply settings.

    Parameters
    ----------
    system, workload, cluster
        Names, paths, or objects.
    settings
        Dotted keys. ``cluster.`` and ``workload.`` prefixes choose the part; without one the system is asked
        first, then the workload, then the cluster.

    Raises
    ------
    InputError
        If a name or a key is unknown, or a value does not validate.
    """
    system_class = find(system) if isinstance(system, str) else (system if isinstance(system, type) else type(system))
    parts = _split(system_class, settings or {})
    name = name_of(system_class)
    built = build_system(system_class, system if isinstance(system, System) else None, parts["system"], name)
    return Scenario(name, built, load_part(system_class.workload_type, workload, parts["workload"]), load_part(Cluster, cluster, parts["cluster"]))


def _split(system: type[System], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give each key to the part that knows it."""
    classes = _classes(system)
    parts: dict[str, dict[str, Any]] = {name: {} for name in PREFIXES}
    for key, value in settings.items():
        owner, short = _owner(system, classes, key)
        parts[owner][_full_key(classes[owner], short, key)] = value  # the later of two spellings wins, as the later of two equal keys does
    return parts


def _owner(system: type[System], classes: Mapping[str, type[spec.Spec]], key: str) -> tuple[str, str]:
    """Return the part that knows a key, and the key within that part."""
    prefix, _, rest = key.partition(".")
    if prefix in classes and rest:
        return prefix, rest
    if key in ("workload", "cluster"):
        raise InputError(f"--set {key}: names the whole {key}; give it with --{key}, or one of its keys as {key}.KEY")
    owner = next((name for name in PREFIXES if _knows(classes[name], key)), None)
    if owner is None:
        known = [k for c in classes.values() for k in spec.keys(c)]
        raise InputError(f"--set {key}: unknown key of {system.__name__}, workload and cluster; {did_you_mean(key, known)}")
    return owner, key


def _full_key(cls: type[spec.Spec], short: str, written: str) -> str:
    try:
        return spec.expand_key(cls, short)
    except InputError as error:
        raise InputError(f"--set {written}: {error}") from None


def locate(system: type[System], key: str) -> tuple[str, str]:
    """Return the part that a key belongs to (``system``, ``workload`` or ``cluster``), and its full key within that part.

    Raises
    ------
    InputError
        If the key is unknown or ambiguous.
    """
    classes = _classes(system)
    owner, short = _owner(system, classes, key)
    return owner, _full_key(classes[owner], short, key)


def refuse_repeated(system: type[System], settings: Mapping[str, Any]) -> None:
    """Refuse keys that are written differently but mean the same, such as ``num_nodes`` and ``cluster.num_nodes``.

    Raises
    ------
    InputError
        If there are any.
    """
    seen: dict[tuple[str, str], str] = {}
    classes = _classes(system)
    for key in settings:
        owner, short = _owner(system, classes, key)
        meant = (owner, _full_key(classes[owner], short, key))
        if meant in seen:
            raise InputError(f"--set {key}: means the same as {seen[meant]}, which is given too; remove one")
        seen[meant] = key


def _classes(system: type[System]) -> dict[str, type[spec.Spec]]:
    return {"system": system, "workload": system.workload_type, "cluster": Cluster}


def _knows(cls: type[spec.Spec], key: str) -> bool:
    try:
        spec.expand_key(cls, key)
    except InputError as error:
        return "ambiguous" in str(error)
    return True


def build_system(cls: type[System], given: System | None, values: Mapping[str, Any], name: str) -> System:
    """Build the system from its defaults, or from a given one, with some values replaced."""
    named = {name: field for name, field in cls.model_fields.items() if isinstance(field.annotation, type) and issubclass(field.annotation, spec.NamedSpec)}
    data: dict[str, Any] = given.model_dump() if given is not None else {name: field.default for name, field in named.items()}
    rest = dict(values)
    for part, field in named.items():
        if isinstance(rest.get(part), str):
            data[part] = rest.pop(part)
        if isinstance(data[part], str):
            kind = cast("type[spec.NamedSpec]", field.annotation)
            data[part] = _named(lambda kind=kind, part=part: spec.resolve(kind, data[part]), f"--set {part}: ")
    _replace(cls, data, rest)
    return spec.validate(cls, data, name)


def load_part(cls: type[N], given: str | N, values: Mapping[str, Any]) -> N:
    """Load a workload or a cluster, or take a given one, with some values replaced."""
    if isinstance(given, str):
        data = spec.resolve(cls, given)
        _replace(cls, data, values)
        return spec.validate(cls, data, spec.label(cls, given))
    if not isinstance(given, cls):
        raise InputError(f"{given.name or type(given).__name__}: is a {type(given).__name__}, a {cls.__name__} is needed")
    if not values:
        return given
    data = given.model_dump()
    _replace(cls, data, values)
    try:
        return cls.model_validate(data)
    except ValueError as error:
        raise InputError(f"{given.name}: {error}") from None


def _replace(cls: type[spec.Spec], data: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Replace values in place; whole objects before their parts, so that the order in which they were given does not matter."""
    for key in sorted(values, key=lambda k: k.count(".")):
        _named(lambda key=key: spec.set_key(cls, data, key, values[key]), "--set ")


def _named(action: Callable[[], T], prefix: str) -> T:
    """Say in the message of a failure that a setting led to it."""
    try:
        return action()
    except InputError as error:
        raise type(error)(f"{prefix}{error}") from None

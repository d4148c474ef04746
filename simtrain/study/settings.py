"""From names and ``--set key=value`` to a system, a workload and a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simtrain import spec
from simtrain.errors import InputError, did_you_mean
from simtrain.hardware import Cluster
from simtrain.systems.base import System
from simtrain.systems.registry import find, name_of
from simtrain.workload import Pretraining

PREFIXES = ("system", "workload", "cluster")


@dataclass(frozen=True)
class Scenario:
    """What runs where, resolved and validated."""

    name: str
    system: System
    workload: Pretraining
    cluster: Cluster


def scenario(
    system: str | type[System] | System, workload: str | Pretraining, cluster: str | Cluster, settings: Mapping[str, Any] | None = None
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
    built = _system(system_class, system if isinstance(system, System) else None, parts["system"], name)
    return Scenario(name, built, _load(Pretraining, workload, parts["workload"]), _load(Cluster, cluster, parts["cluster"]))


def _split(system: type[System], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give each key to the part that knows it."""
    classes: dict[str, type[spec.Spec]] = {"system": system, "workload": Pretraining, "cluster": Cluster}
    parts: dict[str, dict[str, Any]] = {name: {} for name in PREFIXES}
    for key, value in settings.items():
        prefix, _, rest = key.partition(".")
        if prefix in classes and rest:
            parts[prefix][rest] = value
            continue
        owner = next((name for name in PREFIXES if _knows(classes[name], key)), None)
        if owner is None:
            known = [k for c in classes.values() for k in spec.keys(c)]
            raise InputError(f"--set {key}: unknown key; {did_you_mean(key, known)}")
        parts[owner][key] = value
    return parts


def _knows(cls: type[spec.Spec], key: str) -> bool:
    try:
        spec.expand_key(cls, key)
    except InputError as error:
        return "ambiguous" in str(error)
    return True


def _system(cls: type[System], given: System | None, values: Mapping[str, Any], name: str) -> System:
    data: dict[str, Any] = given.model_dump() if given is not None else {}
    for field, info in cls.model_fields.items():
        if isinstance(info.default, str) and field == "software" and given is None:
            data[field] = info.default
    software = data.get("software")
    if isinstance(software, str):
        from simtrain.hardware import Software

        data["software"] = spec.resolve(Software, values.get("software", software) if isinstance(values.get("software", software), str) else software)
    for key, value in values.items():
        if key != "software" or not isinstance(value, str):
            spec.set_key(cls, data, key, value)
    return spec.validate(cls, data, name)


def _load(cls: type[Any], given: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(given, str):
        return cls.load(given, values)
    if not values:
        return given
    data = given.model_dump()
    for key, value in values.items():
        spec.set_key(cls, data, key, value)
    try:
        return cls.model_validate(data)
    except ValueError as error:
        raise InputError(f"{given.name}: {error}") from None

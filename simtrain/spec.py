"""YAML files to typed, frozen, validated objects, with ``file: key`` in every message.

A file may start from another of its kind with ``extends: name``, and a field that holds a named object
(``node: dgx_a100``) may give its name, a path, or the object itself. Everything is resolved to one plain
mapping first, so that ``--set`` can reach any key of it, and validated once.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from simtrain.errors import InputError, UnknownNameError, did_you_mean
from simtrain.units import Quantity

_HERE = Path(__file__).resolve().parent
T = TypeVar("T", bound="Spec")


class Spec(BaseModel):
    """Base of all validated records: frozen, and an unknown key is an error."""

    # Defaults are not validated: those of quantities are SI floats, which a file may not write without a unit.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, and pydantic reads true as 1.
        if isinstance(value, bool) and info.field_name:
            field = cls.model_fields[info.field_name]
            allowed = _options(field.annotation)
            is_quantity = any(isinstance(m, Quantity) for m in field.metadata)  # has a better message
            if bool not in allowed and (int in allowed or float in allowed) and not is_quantity:
                raise ValueError("a number is needed")
        return value


class Beside:
    """Marks a text field as a path that starts from the folder of the file which holds it."""


class NamedSpec(Spec):
    """A record that lives in a YAML file of its own and is referred to by name."""

    folder: ClassVar[str]
    """Folder under the data root, such as ``hardware/nodes``."""

    name: str = Field(default="", pattern=r"^[\w.-]*$")
    """File name without ``.yaml``; filled in by the loader."""
    description: str = ""
    """One line on what it is."""
    sources: tuple[str, ...] = ()
    """Where the numbers come from."""

    @classmethod
    def load(cls, reference: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a shipped name, or a path ending in ``.yaml``.

        Parameters
        ----------
        reference
            Name of a shipped file or path of the user's own.
        overrides
            Dotted keys and values that replace what the file says.

        Raises
        ------
        UnknownNameError
            If there is no such file.
        InputError
            If the file cannot be read or does not validate.
        """
        data = resolve(cls, str(reference))
        for key, value in (overrides or {}).items():
            set_key(cls, data, key, value)
        return validate(cls, data, label(cls, str(reference)))

    @classmethod
    def names(cls) -> list[str]:
        """Return the shipped names, sorted."""
        return sorted(path.stem for path in (data_root() / cls.folder).glob("*.yaml"))


@cache
def data_root() -> Path:
    """Return the folder that holds ``hardware/`` and ``workloads/``: inside the wheel, or the repository."""
    packaged = _HERE / "_data"
    return packaged if packaged.is_dir() else _HERE.parent


def label(cls: type[NamedSpec], reference: str) -> str:
    """Return the file name used in messages, such as ``clusters/x.yaml``."""
    return reference if reference.endswith((".yaml", ".yml")) else f"{cls.folder.split('/')[-1]}/{reference}.yaml"


def brief(value: object, most: int = 80) -> str:
    """Return a value as Python writes it, the middle of a long one left out."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def find(cls: type[NamedSpec], reference: str, beside: Path = Path()) -> Path:
    """Return the path behind a name or a path.

    Parameters
    ----------
    reference
        Name of a shipped file, or a path.
    beside
        Folder that a relative path starts from: that of the file which names it.

    Raises
    ------
    UnknownNameError
        If there is no such file.
    """
    if reference.endswith((".yaml", ".yml")):
        path = beside / reference
        if not path.is_file():
            raise UnknownNameError(f"{reference}: no such file; mend the path, or give the name of a shipped one without .yaml")
        return path
    if reference not in cls.names():
        kind = cls.folder.split("/")[-1]
        raise UnknownNameError(f"unknown name {brief(reference)} in {kind}; {did_you_mean(reference, cls.names())} (a path must end in .yaml)")
    return data_root() / cls.folder / f"{reference}.yaml"


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice and reads ``1e9`` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))  # pyright: ignore[reportUnknownMemberType]
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign in the exponent, and would read 1e9 as text.
_UniqueKeyLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def read_yaml(path: Path, shown: str) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises
    ------
    InputError
        If the file is not UTF-8, not YAML, empty, or not a mapping.
    """
    try:
        stat = path.stat()
        known = _parsed.get((str(path), stat.st_mtime_ns, stat.st_size))
        if known is not None:
            return copy.deepcopy(known)
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror})") from None
    try:
        data: Any = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{shown}:{where}: not valid YAML ({error.problem or error.context}){_advice(error.problem or '')}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{shown}: not valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise InputError(f"{shown}: not usable (nested too deeply)") from None
    if data is None:
        raise InputError(f"{shown}: the file is empty; write keys and values")
    if not isinstance(data, dict):
        raise InputError(f"{shown}: a mapping of keys and values is needed, not a {type(data).__name__}")
    _parsed[str(path), stat.st_mtime_ns, stat.st_size] = copy.deepcopy(typing.cast("dict[str, Any]", data))
    return typing.cast("dict[str, Any]", data)


_parsed: dict[tuple[str, int, int], dict[str, Any]] = {}
"""What files hold, by path, time and size: a study of a thousand points reads each of its files once."""


def _advice(problem: str) -> str:
    """Return how to mend the commonest slips."""
    if r"'\t'" in problem:
        return "; indent with spaces"
    if "given twice" in problem:
        return "; remove one"
    return "; put text with a colon in quotes" if "mapping values" in problem else ""


def resolve(cls: type[NamedSpec], reference: str, stack: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a file with everything it extends and refers to, as one plain mapping.

    Raises
    ------
    InputError
        If references form a cycle, or a file cannot be read.
    """
    beside = Path(stack[-1]).parent if stack else Path()
    path, shown = find(cls, reference, beside), label(cls, reference)
    key = str(path.resolve())
    if key in stack:
        raise InputError(f"{shown}: cyclic reference, the file leads back to itself; remove one 'extends' or name")
    data = dict(read_yaml(path, shown))
    if not reference.endswith((".yaml", ".yml")) or "name" not in data:
        data["name"] = path.stem
    return _resolve_mapping(cls, data, shown, (*stack, key))


def _resolve_mapping(cls: type[Spec], data: dict[str, Any], shown: str, stack: tuple[str, ...]) -> dict[str, Any]:
    parent = data.pop("extends", None)
    if parent is not None:
        if not issubclass(cls, NamedSpec) or not isinstance(parent, str):
            raise InputError(f"{shown}: extends: the name of another file of this kind is needed, not {parent!r}")
        data = _merge(_resolve_reference(cls, parent, f"{shown}: extends", stack), data)
    for field, value in list(data.items()):
        target = _spec_of(cls, field)
        if isinstance(value, str) and value and stack and _is_beside(cls, field):
            data[field] = os.path.relpath(Path(stack[-1]).parent / value)
        if target is None:
            continue
        if isinstance(value, str) and issubclass(target, NamedSpec):
            data[field] = _resolve_reference(target, value, f"{shown}: {field}", stack)
        elif isinstance(value, dict):
            data[field] = _resolve_mapping(target, dict(typing.cast("dict[str, Any]", value)), f"{shown}: {field}", stack)
    return data


def _resolve_reference(target: type[NamedSpec], value: str, shown: str, stack: tuple[str, ...]) -> dict[str, Any]:
    try:
        return resolve(target, value, stack)
    except UnknownNameError as error:
        raise UnknownNameError(f"{shown}: {error}") from None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another; nested mappings merge, everything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        starts_anew = not isinstance(value, dict) or "extends" in value
        merged[key] = value if starts_anew or not isinstance(old, dict) else _merge(old, value)  # pyright: ignore[reportUnknownArgumentType]
    return merged


def _is_beside(cls: type[Spec], field: str) -> bool:
    info = cls.model_fields.get(field)
    return info is not None and any(isinstance(m, Beside) for m in info.metadata)


def is_plain(info: FieldInfo) -> bool:
    """Whether a field holds numbers, text or choices without a unit, so that a value is read alike from a file and from Python."""
    return _spec_in(info.annotation) is None and not any(isinstance(m, Quantity) for m in info.metadata)


def _options(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation; one unless it is a union."""
    return get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def _spec_in(annotation: Any) -> type[Spec] | None:
    return next((o for o in _options(annotation) if isinstance(o, type) and issubclass(o, Spec)), None)


def _spec_of(cls: type[Spec], field: str) -> type[Spec] | None:
    """Return the Spec class that a field holds, if it holds one (optional counts, containers do not)."""
    info = cls.model_fields.get(field)
    return None if info is None else _spec_in(info.annotation)


def keys(cls: type[Spec], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a class accepts, nested objects included."""
    for field in cls.model_fields:
        yield prefix + field
        target = _spec_of(cls, field)
        if target is not None:
            yield from keys(target, f"{prefix}{field}.")


def expand_key(cls: type[Spec], key: str) -> str:
    """Return the full dotted key behind a short one: ``nic.bandwidth`` is ``node.nic.bandwidth``.

    Raises
    ------
    InputError
        If no key matches, or several do.
    """
    known = list(keys(cls))
    if key in known:
        return key
    parts = key.split(".")
    matches = [k for k in known if k.split(".")[-len(parts) :] == parts]
    shortest = [m for m in matches if m.count(".") == min(k.count(".") for k in matches)] if matches else []
    if len(shortest) == 1:
        return shortest[0]
    entry = _expand_entry(cls, parts, known)
    if entry:
        return entry
    if shortest:
        raise InputError(f"key {key!r} is ambiguous; write one of: {', '.join(sorted(shortest))}")
    leaf = {k.split(".")[-1]: k for k in known}
    near = did_you_mean(key, known)
    if not near.startswith("did"):
        near = did_you_mean(parts[-1], leaf)
    raise InputError(f"unknown key {key!r}; {near}")


def _expand_entry(cls: type[Spec], parts: list[str], known: list[str]) -> str | None:
    """Return the full key of an entry in a mapping: ``peak.bf16`` is ``accelerator.peak.bf16``, whose last part is no field."""
    for n in range(len(parts) - 1, 0, -1):
        owners = [k for k in known if k.split(".")[-n:] == parts[:n] and _is_mapping(_annotation_at(cls, k.split(".")))]
        shortest = [k for k in owners if k.count(".") == min(o.count(".") for o in owners)]
        if len(shortest) == 1:
            return ".".join([shortest[0], *parts[n:]])
    return None


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, Mapping)


def set_key(cls: type[Spec], data: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key of a resolved mapping in place.

    Raises
    ------
    InputError
        If the key is unknown or ambiguous.
    """
    here: Any = data
    *path, last = expand_key(cls, key).split(".")
    for part in path:
        if not isinstance(here.get(part), dict):
            here[part] = {}
        here = here[part]
    target = _spec_at(cls, [*path, last])
    if target is not None and isinstance(value, str) and issubclass(target, NamedSpec):
        value = _resolve_reference(target, value, key, ())
    elif target is not None and isinstance(value, dict):
        value = _resolve_mapping(target, dict(typing.cast("dict[str, Any]", value)), key, ())
    here[last] = value


def _annotation_at(cls: type[Spec], path: list[str]) -> Any:
    """Return the annotation behind a dotted path, through nested objects and the values of mappings; None if it leads nowhere."""
    here: Any = cls
    for part in path:
        mapping = next((o for o in _options(here) if _is_mapping(o)), None)
        owner = _spec_in(here)
        if mapping is not None:
            here = get_args(mapping)[1]
        elif get_origin(here) is tuple and part.isdigit():
            here = get_args(here)[0]
        elif owner is not None and part in owner.model_fields:
            here = owner.model_fields[part].annotation
        else:
            return None
    return here


def _spec_at(cls: type[Spec], path: list[str]) -> type[Spec] | None:
    return _spec_in(_annotation_at(cls, path))


def parse_value(text: str) -> Any:
    """Read the value of ``key=value`` on the command line as YAML reads a scalar."""
    try:
        value: Any = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if value is None and text.strip() not in ("null", "~", "None") else value


def validate(cls: type[T], data: Mapping[str, Any], shown: str) -> T:
    """Build the typed object, or say in one message what is wrong and where.

    Raises
    ------
    InputError
        One line per problem: ``file: key: what; how to mend it``.
    """
    try:
        return cls.model_validate(dict(data), context={"from_file": True})
    except ValidationError as error:
        lines = [f"{shown}: {explain(cls, e)}" for e in error.errors()[:8]]
        raise InputError("\n".join(lines)) from None


def explain(cls: type[Spec], error: ErrorDetails) -> str:
    """Turn one pydantic error into ``key: what; how to mend it``."""
    path = [str(part) for part in error["loc"] if part != "[key]"]
    where = ".".join(path)
    owner = _spec_at(cls, path[:-1]) or cls
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key {path[-1]!r}; {did_you_mean(path[-1], owner.model_fields)}"
        case "missing":
            return f"{where}: required key is missing; write '{path[-1]}: ...'"
        case "literal_error" | "enum":
            return f"{where}: {brief(error['input'])} is not allowed; allowed: {error.get('ctx', {}).get('expected', '')}"
        case "invalid_key":
            return f"{where}: a key is text, and this is a number; put it in quotes if it is meant"
        case "model_type" | "dict_type":
            target = _spec_at(cls, path)
            name = f", or a name in {target.folder.split('/')[-1]}," if target is not None and issubclass(target, NamedSpec) else ""
            return f"{where}: a mapping of keys and values{name} is needed{_got(error['input'])}"
        case "tuple_type":
            return f"{where}: a list is needed{_got(error['input'])}; write '{path[-1]}: [...]'"
        case kind if kind in _PLAIN:
            return f"{where}: {_PLAIN[kind]}{_got(error['input'])}"
        case _:
            message = error["msg"].removeprefix("Value error, ")
            is_quoted = error["type"] == "value_error" and (repr(error["input"]) in message or not isinstance(error["input"], (str, int, float)))
            quoted = "" if is_quoted else _got(error["input"])
            return f"{where}: {message}{quoted}" if where else f"{message}{quoted}"


_PLAIN: dict[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number is needed"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false is needed"),
    "float_type": "a number is needed",
    "string_type": "text is needed; put it in quotes",
}
"""What is said instead of pydantic's sentence, by its type of error."""


def _got(value: object) -> str:
    return " (got nothing)" if value is None or value == "" else f" (got {brief(value)})"


def json_schema(cls: type[Spec]) -> dict[str, Any]:
    """Return the JSON Schema of one kind of file, for completion and checks in an editor.

    A file that extends another may leave out what is required, at any depth, so only the top level of a file that
    does not is held to it; the loader checks the rest.
    """
    schema = cls.model_json_schema()
    required = schema.pop("required", [])
    for part in schema.get("$defs", {}).values():
        part.pop("required", None)
    if issubclass(cls, NamedSpec):
        schema["if"], schema["then"] = {"not": {"required": ["extends"]}}, {"required": required}
    elif required:
        schema["required"] = required
    _allow_names(cls, schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _allow_names(cls: type[Spec], schema: dict[str, Any]) -> None:
    """A named object may extend another, and a field that holds one may give its name instead."""
    for owner, part in ((cls, schema), *((_class_named(cls, n), d) for n, d in schema.get("$defs", {}).items())):
        if owner is None:
            continue
        properties = part.setdefault("properties", {})
        if issubclass(owner, NamedSpec):
            properties["extends"] = {"type": "string", "description": "name of the file this one starts from"}
        for field in owner.model_fields:
            target = _spec_of(owner, field)
            if target is not None and issubclass(target, NamedSpec) and field in properties:
                name = {"type": "string", "enum": target.names()}
                path = {"type": "string", "pattern": r"\.ya?ml$"}
                properties[field] = {"anyOf": [name, path, properties[field]]}


def _class_named(cls: type[Spec], name: str) -> type[Spec] | None:
    for field in cls.model_fields:
        target = _spec_of(cls, field)
        if target is not None:
            found = target if target.__name__ == name else _class_named(target, name)
            if found is not None:
                return found
    return None


def canonical(value: Any) -> Any:
    """Return plain data with a stable order, for digests and result files."""
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="python"))
    if isinstance(value, Mapping):
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def to_json(value: Any) -> str:
    """Return canonical JSON of a record."""
    return json.dumps(canonical(value), indent=2, ensure_ascii=False)

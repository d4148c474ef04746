"""YAML to validated objects: what is merged and resolved, and the message for everything that can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from simtrain.errors import InputError, UnknownNameError, did_you_mean
from simtrain.spec import NamedSpec, Spec, canonical, expand_key, json_schema, keys, parse_value, set_key, to_json, validate
from simtrain.units import BytesPerSecond, Seconds


class Card(Spec):
    """Stands for a network card."""

    bandwidth: BytesPerSecond
    latency: Seconds = 1e-6
    count: int = Field(default=1, gt=0)


class Port(Spec):
    """Has a key in common with the card."""

    bandwidth: BytesPerSecond = 1.0


class Box(NamedSpec):
    """Stands for a node."""

    folder: ClassVar[str] = "test/boxes"

    card: Card
    port: Port | None = None
    peak: dict[str, BytesPerSecond] = Field(default_factory=dict)
    cards: dict[str, Card] = Field(default_factory=dict)
    scale: float = 1.0
    is_open: bool = False
    limit: int | None = None


class Room(NamedSpec):
    """Stands for a cluster."""

    folder: ClassVar[str] = "test/rooms"

    box: Box
    num_boxes: int = Field(gt=0)


BOX = "card: {bandwidth: 1 GB/s}\n"


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with folders for boxes and rooms; the working directory lies elsewhere."""
    for folder in ("test/boxes", "test/rooms", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr("simtrain.spec.data_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path, "boxes/plain", BOX)
    return tmp_path


def write(root: Path, name: str, text: str | bytes) -> None:
    """Put a file where shipped names are looked up."""
    path = root / "test" / f"{name}.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def box(root: Path, text: str | bytes, **overrides: Any) -> Box:
    """Load a box from text."""
    write(root, "boxes/x", text)
    return Box.load("x", overrides)


def message(root: Path, text: str | bytes) -> str:
    """Return what loading a box from text complains about."""
    with pytest.raises(InputError) as caught:
        box(root, text)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- names, paths, extends


def test_a_file_takes_its_name_from_itself(shipped: Path) -> None:
    loaded = Box.load("plain")
    assert loaded.name == "plain"
    assert loaded.card == Card(bandwidth=1e9)


def test_names_are_sorted(shipped: Path) -> None:
    write(shipped, "boxes/a", BOX)
    assert Box.names() == ["a", "plain"]


def test_a_mistyped_name_lists_the_near_ones(shipped: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown name 'plane' in boxes; did you mean 'plain'\? \(a path must end in \.yaml\)"):
        Box.load("plane")


def test_a_missing_path_says_so(shipped: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"none\.yaml: no such file"):
        Box.load("none.yaml")


def test_a_path_starts_from_the_working_directory(shipped: Path) -> None:
    Path("mine.yaml").write_text(BOX)
    assert Box.load("mine.yaml").name == "mine"
    assert Box.load(Path("mine.yaml").resolve()).name == "mine"


def test_a_path_in_a_file_starts_from_that_file(shipped: Path) -> None:
    (shipped / "own").mkdir()
    (shipped / "own" / "base.yaml").write_text(BOX)
    (shipped / "own" / "room.yaml").write_text("box: base.yaml\nnum_boxes: 2\n")
    (shipped / "own" / "big.yaml").write_text("extends: room.yaml\nnum_boxes: 9\n")
    big = Room.load("../own/big.yaml")
    assert (big.name, big.num_boxes, big.box.name) == ("big", 9, "base")


def test_a_name_refers_to_a_shipped_file(shipped: Path) -> None:
    write(shipped, "rooms/r", "box: plain\nnum_boxes: 2\n")
    assert Room.load("r").box == Box.load("plain")


def test_an_unknown_reference_says_where_it_stands(shipped: Path) -> None:
    write(shipped, "rooms/r", "box: plian\nnum_boxes: 2\n")
    with pytest.raises(UnknownNameError, match=r"rooms/r\.yaml: box: unknown name 'plian' in boxes; did you mean 'plain'\?"):
        Room.load("r")


def test_extends_merges_nested_mappings_and_replaces_the_rest(shipped: Path) -> None:
    write(shipped, "boxes/base", "card: {bandwidth: 1 GB/s, count: 4}\npeak: {bf16: 1 GB/s}\nscale: 2\nsources: [a]\n")
    child = box(shipped, "extends: base\ncard: {bandwidth: 2 GB/s}\npeak: {fp8: 2 GB/s}\nsources: [b]\n")
    assert child.name == "x"
    assert (child.card.bandwidth, child.card.count, child.scale) == (2e9, 4, 2.0)
    assert child.peak == {"bf16": 1e9, "fp8": 2e9}
    assert child.sources == ("b",)


def test_extends_may_go_through_several_files(shipped: Path) -> None:
    write(shipped, "boxes/second", "extends: plain\nscale: 2\n")
    assert box(shipped, "extends: second\nlimit: 3\n") == Box(name="x", card=Card(bandwidth=1e9), scale=2.0, limit=3)


def test_extends_may_remove_an_optional_part(shipped: Path) -> None:
    write(shipped, "boxes/ported", BOX + "port: {bandwidth: 1 GB/s}\n")
    assert box(shipped, "extends: ported\nport: null\n").port is None


def test_an_inline_object_may_extend_a_shipped_one(shipped: Path) -> None:
    write(shipped, "rooms/r", "box: {extends: plain, scale: 3}\nnum_boxes: 1\n")
    assert Room.load("r").box.scale == 3


def test_an_inline_extends_replaces_what_was_inherited(shipped: Path) -> None:
    """The child's box starts from another box; nothing of the parent's box may show through."""
    write(shipped, "boxes/fast", "card: {bandwidth: 9 GB/s}\n")
    write(shipped, "rooms/parent", "box: {extends: plain, scale: 3}\nnum_boxes: 1\n")
    write(shipped, "rooms/child", "extends: parent\nbox: {extends: fast, limit: 5}\n")
    child = Room.load("child").box
    assert (child.card.bandwidth, child.scale, child.limit) == (9e9, 1.0, 5)


def test_a_named_reference_replaces_what_was_inherited(shipped: Path) -> None:
    write(shipped, "boxes/fast", "card: {bandwidth: 9 GB/s}\n")
    write(shipped, "rooms/parent", "box: {extends: plain, scale: 3}\nnum_boxes: 1\n")
    write(shipped, "rooms/child", "extends: parent\nbox: fast\n")
    assert Room.load("child").box == Box.load("fast")


@pytest.mark.parametrize("chain", [["x"], ["y", "x"], ["y", "z", "x"]])
def test_cyclic_extends(shipped: Path, chain: list[str]) -> None:
    for name, parent in zip(["x", *chain[:-1]], chain, strict=True):
        write(shipped, f"boxes/{name}", f"extends: {parent}\n")
    with pytest.raises(InputError, match=r"boxes/x\.yaml: cyclic reference, the file leads back to itself; remove one 'extends' or name"):
        Box.load("x")


def test_two_files_may_extend_the_same_one(shipped: Path) -> None:
    write(shipped, "rooms/parent", "box: plain\nnum_boxes: 1\n")
    write(shipped, "rooms/child", "extends: parent\nbox: {extends: plain}\n")
    assert Room.load("child").box.name == "plain"


@pytest.mark.parametrize("text", ["extends: 5\n", "extends: [plain]\n"])
def test_extends_needs_a_name(shipped: Path, text: str) -> None:
    assert "boxes/x.yaml: extends: the name of another file of this kind is needed" in message(shipped, text)


def test_a_part_without_a_name_cannot_extend(shipped: Path) -> None:
    assert "boxes/x.yaml: card: extends: the name of another file" in message(shipped, "card: {extends: plain}\n")


# ------------------------------------------------------------------------------------------------------------- unreadable files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "boxes/x.yaml: the file is empty; write keys and values"),
        ("# only a comment\n", "boxes/x.yaml: the file is empty"),
        ("- a\n- b\n", "boxes/x.yaml: a mapping of keys and values is needed, not a list"),
        ("just text", "boxes/x.yaml: a mapping of keys and values is needed, not a str"),
        (b"description: caf\xe9\n", "boxes/x.yaml: byte 16 is not UTF-8; save the file as UTF-8"),
        ("card: {bandwidth: 1 GB/s\n", "boxes/x.yaml: line 2: not valid YAML"),
        ("scale: 1\nscale: 2\n", "boxes/x.yaml: line 2: not valid YAML (key 'scale' is given twice)"),
        ("card:\n  count: 1\n  count: 1\n", "boxes/x.yaml: line 3: not valid YAML (key 'count' is given twice)"),
        ("a: 1\n---\nb: 2\n", "boxes/x.yaml: line 2: not valid YAML"),
        ("card: !!python/object:os.system {}\n", "boxes/x.yaml: line 1: not valid YAML"),
        ("description: \x00\n", "boxes/x.yaml: not valid YAML"),
        ("description: 2020-13-45\n", "boxes/x.yaml: not valid YAML"),
        ("card: *nowhere\n", "boxes/x.yaml: line 1: not valid YAML"),
        ("\tcard: 1\n", "boxes/x.yaml: line 1: not valid YAML"),
    ],
)
def test_unreadable_files(shipped: Path, text: str | bytes, expected: str) -> None:
    assert message(shipped, text).startswith(expected)


def test_too_deep_nesting_is_no_traceback(shipped: Path) -> None:
    assert "boxes/x.yaml: not usable (nested too deeply)" in message(shipped, "cards: " + "[" * 2000)


def test_a_byte_order_mark_does_no_harm(shipped: Path) -> None:
    assert box(shipped, b"\xef\xbb\xbf" + BOX.encode()).card.bandwidth == 1e9


@pytest.mark.parametrize(("text", "value"), [("1e9", 1e9), ("1E9", 1e9), ("-1.5e3", -1500.0), (".5e1", 5.0), ("2.5", 2.5), ("3", 3.0), ("1_000e3", 1e6)])
def test_numbers_in_a_file(shipped: Path, text: str, value: float) -> None:
    assert box(shipped, f"{BOX}scale: {text}\n").scale == value


# ------------------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("card: {bandwidth: 400}\n", "boxes/x.yaml: card.bandwidth: 400 has no unit; write e.g. '400 Gbit/s'"),
        ("card: {bandwidth: 5 us}\n", "boxes/x.yaml: card.bandwidth: '5 us' is a time, but a bandwidth is needed here; write e.g. '400 Gbit/s'"),
        ("card: {bandwidth: 1 GB/s, latencey: 5 us}\n", "boxes/x.yaml: card.latencey: unknown key 'latencey'; did you mean 'latency'?"),
        (BOX + "zzz: 1\n", "boxes/x.yaml: zzz: unknown key 'zzz'; allowed: card, cards, description,"),
        ("scale: 1\n", "boxes/x.yaml: card: required key is missing"),
        ("card: {count: 1}\n", "boxes/x.yaml: card.bandwidth: required key is missing"),
        ("card: {bandwidth: 1 GB/s, count: 0}\n", "boxes/x.yaml: card.count: Input should be greater than 0 (got 0)"),
        (BOX + "scale: fast\n", "boxes/x.yaml: scale: Input should be a valid number, unable to parse string as a number (got 'fast')"),
        (BOX + "scale: .nan\n", "boxes/x.yaml: scale: Input should be a finite number"),
        (BOX + "limit: 1.5\n", "boxes/x.yaml: limit: "),
        (BOX + "scale: yes\n", "boxes/x.yaml: scale: a number is needed (got True)"),
        (BOX + "limit: on\n", "boxes/x.yaml: limit: a number is needed (got True)"),
        (BOX + "peak: {bf16: 312}\n", "boxes/x.yaml: peak.bf16: 312 has no unit"),
        (BOX + "cards: {a: {bandwidth: 1 GB/s, latencey: 1 us}}\n", "boxes/x.yaml: cards.a.latencey: unknown key 'latencey'; did you mean 'latency'?"),
        ("card: 5\n", "boxes/x.yaml: card: "),
    ],
)
def test_bad_values(shipped: Path, text: str, expected: str) -> None:
    assert message(shipped, text).startswith(expected)


def test_a_file_of_the_users_own_may_choose_its_name(shipped: Path) -> None:
    Path("x.yaml").write_text(BOX + "name: mine\n")
    assert Box.load("x.yaml").name == "mine"
    Path("x.yaml").write_text(BOX + "name: a b\n")
    with pytest.raises(InputError, match=r"x\.yaml: name: String should match pattern"):
        Box.load("x.yaml")


def test_every_problem_gets_its_line(shipped: Path) -> None:
    lines = message(shipped, "card: {bandwidth: 400, count: 0}\nscal: 1\n").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("boxes/x.yaml: ") for line in lines)


def test_a_yes_is_fine_where_a_flag_is_meant(shipped: Path) -> None:
    assert box(shipped, BOX + "is_open: yes\n").is_open is True


def test_keys_that_are_no_text(shipped: Path) -> None:
    assert "boxes/x.yaml: " in message(shipped, BOX + "1: 2\n")


def test_a_default_in_si_needs_no_unit(shipped: Path) -> None:
    assert Box.load("plain").card.latency == 1e-6


# ------------------------------------------------------------------------------------------------------------ dotted keys (--set)


def room() -> dict[str, Any]:
    """A resolved mapping as ``set_key`` meets it."""
    return {"box": {"card": {"bandwidth": "1 GB/s"}}, "num_boxes": 2}


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("num_boxes", "num_boxes"),
        ("box.card.bandwidth", "box.card.bandwidth"),
        ("card.bandwidth", "box.card.bandwidth"),
        ("latency", "box.card.latency"),
        ("scale", "box.scale"),
        ("name", "name"),  # the nearest one, not box.name
        ("box.name", "box.name"),
        ("box.peak.bf16", "box.peak.bf16"),
        ("peak.bf16", "box.peak.bf16"),
        ("peak", "box.peak"),
        ("cards.a.count", "box.cards.a.count"),
    ],
)
def test_short_keys(short: str, full: str) -> None:
    assert expand_key(Room, short) == full


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("bandwidth", "key 'bandwidth' is ambiguous; write one of: box.card.bandwidth, box.port.bandwidth"),
        ("card.bandwith", "unknown key 'card.bandwith'; did you mean 'box.card.bandwidth'"),
        ("num_box", "unknown key 'num_box'; did you mean 'num_boxes'"),
        ("latencey", "unknown key 'latencey'; did you mean"),
        ("scale.x", "unknown key 'scale.x'"),
        ("", "unknown key ''"),
        ("box..scale", "unknown key 'box..scale'"),
    ],
)
def test_keys_that_lead_nowhere(key: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        expand_key(Room, key)
    assert str(caught.value).startswith(expected)


def test_keys_lists_nested_ones() -> None:
    assert {"num_boxes", "box", "box.card", "box.card.bandwidth", "box.port.bandwidth"} <= set(keys(Room))


def test_set_key_reaches_nested_values() -> None:
    data = room()
    set_key(Room, data, "card.bandwidth", "400 Gbit/s")
    set_key(Room, data, "num_boxes", 5)
    loaded = validate(Room, data, "r.yaml")
    assert (loaded.box.card.bandwidth, loaded.num_boxes) == (50e9, 5)


def test_set_key_makes_an_absent_part() -> None:
    data = room() | {"box": {"card": {"bandwidth": "1 GB/s"}, "port": None}}
    set_key(Room, data, "port.bandwidth", "2 GB/s")
    assert validate(Room, data, "r.yaml").box.port == Port(bandwidth=2e9)


def test_set_key_reaches_entries_of_a_mapping() -> None:
    data = room()
    set_key(Room, data, "peak.bf16", "3 GB/s")
    set_key(Room, data, "box.cards.a.bandwidth", "4 GB/s")
    loaded = validate(Room, data, "r.yaml")
    assert loaded.box.peak == {"bf16": 3e9}
    assert loaded.box.cards == {"a": Card(bandwidth=4e9)}


def test_set_key_replaces_a_whole_object_by_name(shipped: Path) -> None:
    write(shipped, "boxes/fast", "card: {bandwidth: 9 GB/s}\n")
    data = room()
    set_key(Room, data, "box", "fast")
    assert validate(Room, data, "r.yaml").box == Box.load("fast")


def test_set_key_takes_an_inline_object(shipped: Path) -> None:
    data = room()
    set_key(Room, data, "box", {"extends": "plain", "scale": 7})
    assert validate(Room, data, "r.yaml").box.scale == 7


def test_set_key_names_the_key_of_an_unknown_reference(shipped: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"box: unknown name 'plian' in boxes; did you mean 'plain'\?"):
        set_key(Room, room(), "box", "plian")


def test_load_takes_overrides(shipped: Path) -> None:
    loaded = Box.load("plain", {"card.count": 3, "latency": "2 us"})
    assert (loaded.card.count, loaded.card.latency) == (3, 2e-6)


def test_an_override_needs_a_unit_too(shipped: Path) -> None:
    with pytest.raises(InputError, match=r"boxes/plain\.yaml: card\.latency: 2 has no unit"):
        Box.load("plain", {"latency": 2})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("1.5", 1.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", ""),
        ("400 Gbit/s", "400 Gbit/s"),
        ("dgx_a100", "dgx_a100"),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        # what is no YAML stays text
        ("[1,", "[1,"),
        ("a: b: c", "a: b: c"),
        ("2020-13-45", "2020-13-45"),
        ("=", "="),
        ("@x", "@x"),
        ("!!python/x y", "!!python/x y"),
    ],
)
def test_values_of_the_command_line(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


# ----------------------------------------------------------------------------------------------------- schema and canonical form


def test_the_schema_knows_references_and_extends(shipped: Path) -> None:
    schema = json_schema(Room)
    assert schema["$schema"].endswith("2020-12/schema")
    reference = schema["properties"]["box"]["anyOf"]
    assert reference[0] == {"type": "string", "enum": ["plain"]}
    assert reference[1]["pattern"] == r"\.ya?ml$"
    assert schema["properties"]["extends"]["type"] == "string"
    assert "extends" in schema["$defs"]["Box"]["properties"]
    assert "extends" not in schema["$defs"]["Card"].get("properties", {})


def test_the_schema_requires_keys_only_of_a_file_that_extends_nothing() -> None:
    schema = json_schema(Room)
    assert "required" not in schema
    assert schema["if"] == {"not": {"required": ["extends"]}}
    assert schema["then"] == {"required": ["box", "num_boxes"]}
    assert "required" not in schema["$defs"]["Card"]


def test_the_schema_carries_docstrings_and_refuses_unknown_keys() -> None:
    schema = json_schema(Box)
    assert schema["properties"]["description"]["description"] == "One line on what it is."
    assert schema["additionalProperties"] is False
    json.dumps(schema)


@pytest.mark.parametrize(
    ("data", "is_valid"),
    [
        ({"box": "plain", "num_boxes": 1}, True),
        ({"box": "own/box.yaml", "num_boxes": 1}, True),
        ({"extends": "r"}, True),
        ({"extends": "r", "box": {"card": {"count": 2}}}, True),
        ({"box": {"extends": "plain", "scale": 2}, "num_boxes": 1}, True),
        ({"box": "plain"}, False),
        ({"box": "plain", "num_boxes": 1, "zzz": 1}, False),
        ({"box": {"card": {"bandwidth": 400}}, "num_boxes": 1}, False),
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(shipped: Path, data: dict[str, Any], is_valid: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema checks the schema itself")
    assert jsonschema.Draft202012Validator(json_schema(Room)).is_valid(data) is is_valid


def test_canonical_form_does_not_depend_on_order() -> None:
    a = Box(card=Card(bandwidth=1.0), peak={"x": 1.0, "y": 2.0})
    b = Box(peak={"y": 2.0, "x": 1.0}, card=Card(bandwidth=1.0))
    assert to_json(a) == to_json(b)
    assert list(canonical(a)) == sorted(canonical(a))


def test_canonical_form_is_json() -> None:
    value = {"b": (1, 2), "a": math.inf, "c": Card(bandwidth=1.0), 3: None}
    assert json.loads(to_json(value)) == {"3": None, "a": "inf", "b": [1, 2], "c": {"bandwidth": 1.0, "count": 1, "latency": 1e-6}}


def test_a_loaded_object_survives_its_own_dump(shipped: Path) -> None:
    loaded = Box.load("plain")
    assert Box.model_validate(loaded.model_dump()) == loaded


# --------------------------------------------------------------------------------------------------------------------- the hint


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("latencey", ["latency", "bandwidth"], "did you mean 'latency'?"),
        ("lats", ["late", "lat"], "did you mean 'lat' or 'late'?"),
        ("zzz", ["b", "a"], "allowed: a, b"),
        ("zzz", [chr(ord("a") + i) for i in range(9)], "allowed: a, b, c, d, e, f, g, h, ..."),
        ("zzz", [], "nothing is allowed here"),
    ],
)
def test_did_you_mean(word: str, known: list[str], hint: str) -> None:
    assert did_you_mean(word, known) == hint

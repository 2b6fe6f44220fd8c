"""Parameter files: the entries of a node, and the values by ROS's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from loftr_ros.tools.params_file import ParamsFileError, matches, node_parameters, scalar

NAMESPACES = ("", "ns", "a/b")
VALUES = {
    "a": "1e-3",
    "b": "010",
    "c": "1:30",
    "d": "yes",
    "e": "on",
    "f": ".inf",
    "g": "'1'",
    "h": "1.",
    "i": "0x10",
    "j": "2020-01-01",
    "k": "[1, 2]",
    "l": "[1.0, 2.0]",
    "m": "foo",
    "n": "-3",
    "o": "+3",
    "p": "1_000",
    "q": "-.inf",
    "r": "1e3",
    "s": "off",
    "t": "y",
    "u": "infinity",
    "v": "0b1",
    "w": ".5",
    "x": "0o10",
    "y": "0x1p3",
    "z": "!!str 1",
    "aa": "null",
    "ab": "~",
    "ac": "9" * 20,
    "ad": "9223372036854775807",
    "ae": "08",
}
FILES = {
    "of other nodes": "/**:\n  ros__parameters: {c: 1}\nloftr_front_end:\n  ros__parameters: {a: 1}\n"
    "other:\n  ros__parameters: {a: 2, b: 1}\n",
    "later wins": "loftr_front_end:\n  ros__parameters: {a: 1, b: 1}\n/**:\n  ros__parameters: {a: 2}\n",
    "specific last": "/**:\n  ros__parameters: {a: 2, b: 2}\nloftr_front_end:\n  ros__parameters: {a: 1}\n",
    "with a slash": "/loftr_front_end:\n  ros__parameters: {a: 1}\n/**:\n  ros__parameters: {b: 1}\n",
    "nested": "ns:\n  loftr_front_end:\n    ros__parameters: {a: 1}\n  camera:\n    ros__parameters: {a: 2}\n"
    "/**:\n  ros__parameters: {b: 1}\n",
    "nested deep": "/a:\n  b:\n    loftr_front_end:\n      ros__parameters: {a: 1}\n/**:\n  ros__parameters: {b: 1}\n",
    "one name": "/ns/loftr_front_end:\n  ros__parameters: {a: 1}\n/**:\n  ros__parameters: {b: 1}\n",
    "two cameras": "/ns/loftr_front_end:\n  ros__parameters: {a: 1}\n/a/b/loftr_front_end:\n  ros__parameters: {a: 2}\n"
    "/**:\n  ros__parameters: {b: 1}\n",
    "star": "/*:\n  ros__parameters: {a: 1}\n/**:\n  ros__parameters: {b: 1}\n",
    "star name": "/*/loftr_front_end:\n  ros__parameters: {a: 1}\n/**:\n  ros__parameters: {b: 1}\n",
    "stars name": "/**/loftr_front_end:\n  ros__parameters: {a: 1}\n",
    "stars nested": "/**:\n  loftr_front_end:\n    ros__parameters: {a: 1}\n",
    "namespace star": "/ns/*:\n  ros__parameters: {a: 1}\n/a/**:\n  ros__parameters: {b: 1}\n"
    "/**:\n  ros__parameters: {c: 1}\n",
    "bare stars": "'**':\n  ros__parameters: {a: 1}\n",
    "values": "/**:\n  ros__parameters:\n" + "".join(f"    {name}: {value}\n" for name, value in VALUES.items()),
    "dots": "/**:\n  ros__parameters:\n    a.b: 1\n    c: {d: {e: 2}}\n",
    "twice": "/**:\n  ros__parameters: {a: 1, b: 2}\n/**:\n  ros__parameters: {a: 3}\n",
    "byte order mark": "\ufeff/**:\n  ros__parameters:\n    a: 1\n",
    "windows": "/**:\r\n  ros__parameters:\r\n    a: 1\r\n    b: x\r\n",
    "documents": "---\n/**:\n  ros__parameters: {a: 1}\n---\n/**:\n  ros__parameters: {a: 2}\n",
    "nothing": "",
    "no parameters": "/**:\n  ros__parameters: {}\n",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_node_has_the_parameters_that_rclpy_gives_it(text: str, tmp_path: Path) -> None:
    rclpy = pytest.importorskip("rclpy")
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode())
    for namespace in NAMESPACES:
        context = rclpy.context.Context()
        rclpy.init(args=["--ros-args", "--params-file", str(path)], context=context)
        try:
            node = rclpy.create_node(
                "loftr_front_end", namespace=namespace, context=context, start_parameter_services=False
            )
            given = {name: each.value for name, each in node._parameter_overrides.items()}
            name = node.get_fully_qualified_name()
            node.destroy_node()
        finally:
            context.try_shutdown()
        expected = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in given.items()}
        found = node_parameters(path, name)
        assert repr(dict(sorted(found.items()))) == repr({k: _plain(v) for k, v in sorted(expected.items())})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\n", "line 1: there is a value where a name is expected"),
        ("/**:\n  ros__parameters: 5\n", "line 2: there is a value where a name is expected"),
        ("- 1\n", "line 1: there is a value"),
        ("ros__parameters: {a: 1}\n", "has no node's name above it"),
        ("/**:\n  ros__parameters:\n    a:\n    b: 1\n", "line 3: a has no value"),
        ("/**:\n  ros__parameters:\n    a: [1, 2.0]\n", "line 3: a is a list of different types"),
        ("/**:\n\tros__parameters: {}\n", "line 2 is not YAML"),
        ("/**: {ros__parameters: {a: &x {b: 1}, c: *x}}\n", "an alias"),
        ("<!DOCTYPE html><html></html>", "is a web page"),
        ("/**:\n  ros__parameters: {a: \xe9}\n".encode("latin1").decode("latin1"), ""),
        ("[" * 3000, "nested too deeply"),
        ("other:\n  ros__parameters: {a: 1}\n", "has parameters of other, and none of them is the node"),
    ],
)
def test_what_is_no_parameter_file_is_refused_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    if not words:
        assert node_parameters(path) == {"a": "é"}
        return
    with pytest.raises(ParamsFileError, match=words):
        node_parameters(path)


def test_an_empty_list_of_parameters_is_one_that_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("/**:\n  ros__parameters:\nloftr_front_end:\n  ros__parameters:\n    a: 1\n")
    assert node_parameters(path) == {"a": 1}


def test_text_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"/**:\n  ros__parameters:\n    a: \xff\xfa\n")
    with pytest.raises(ParamsFileError, match="line 3 is not text in UTF-8"):
        node_parameters(path)
    path.write_bytes("/**:\n  ros__parameters: {a: 1}\n".encode("utf-16"))
    assert node_parameters(path) == {"a": 1}, "as Windows writes Unicode"


def test_wildcards_stand_for_whole_names_only() -> None:
    assert matches("/**", "/a/b/c") and matches("/*/c", "/a/c") and matches("n", "/n")
    assert not matches("/*", "/a/b") and not matches("/a", "/ab") and not matches("/a.c", "/abc")


def test_values_without_quotes_are_what_ros_takes_them_for() -> None:
    assert scalar("1e-05") == 1e-05 and scalar("off") is False and scalar("1:30") == "1:30" and scalar("08") == 8.0

"""Text from outside becomes one printable line of limited length."""

import os

import pytest

from msa_model import lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b é 字.png", "a b é 字.png"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\x00b\x7f\x9b", "a\\x00b\\x7f\\x9b"),
        ("left\u202eright\u2066", "left\\u202eright\\u2066"),
        (os.fsdecode(b"\xff\xfe.png"), "\\xff\\xfe.png"),
        ("\ud800", "\\ud800"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_once(text, shown):
    assert lines.printable(text) == shown
    assert lines.printable(shown) == shown
    shown.encode()


def test_messages_are_one_line():
    assert lines.one_line("a\r\n  b\tc\x0bd\u2028e") == "a b c d e"


@pytest.mark.parametrize("length", [1001, 8000, 1_000_000])
def test_a_long_message_keeps_its_begin_and_its_end(length):
    line = lines.one_line("name: " + "x" * (length - 12) + ": what")
    assert len(line) == lines.LONGEST
    assert line.startswith("name: xxx")
    assert line.endswith("xxx: what")
    assert f"... (of {length} characters) ..." in line


def test_stdout_of_any_encoding_is_told(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr("sys.stdout", out)
        lines.tell("written:", "é\n.png", 3)
    assert (tmp_path / "out").read_bytes() == b"written: \\xe9\\n.png 3\n"

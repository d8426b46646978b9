"""Test results as JUnit XML, which build servers read. Pure."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from waypost.edge.trial.cases import Result

__all__ = ["as_junit"]


def as_junit(results: Sequence[Result], *, suite: str) -> bytes:
    """Return the results as one test suite."""
    failures = sum(bool(result.differences) for result in results)
    root = Element("testsuites")
    made = SubElement(
        root, "testsuite", name=suite, tests=str(len(results)), failures=str(failures)
    )
    for result in results:
        case = SubElement(
            made,
            "testcase",
            classname=suite,
            name=result.name,
            file=result.file,
            line=str(result.line),
        )
        if result.differences:
            failure = SubElement(case, "failure", message="; ".join(result.differences))
            failure.text = result.sentence
    indent(root)
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"

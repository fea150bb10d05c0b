"""What is wrong with how a command ended. Each fault has a cause by which it is counted."""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .fork import Outcome

LONGEST = 3000  # characters of a sentence
BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FAULT = re.compile(r"this is a fault of onnxdfq, please report it: (\w+) in (.*?:\d+): (.*)")
_FAULT_OF_TASK = re.compile(r"(\w+) in (\S+:\d+): (.*)")
_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')
_OURS = re.compile(r"^(?!.*site-packages).*/(onnxdfq|passes)/")
FORGED = "FORGED"
"""What mutated names hold behind a line break: no line of any output may begin with it."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """kind: one of a few words. cause: what tells it from other faults of the kind. detail: for people."""

    kind: str
    cause: str
    detail: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind}: {self.cause}"


def faults(outcome: Outcome, arguments: Sequence[str], outputs: Sequence[str] = ()) -> list[Fault]:
    """All that is wrong with an outcome, as far as it shows without a look into what was written.

    Args:
        arguments: Of the command line.
        outputs: Names of files that a success may leave.
    """
    where, code = place(outcome.trace), outcome.code
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    last = normalised(lines[-1]) if lines else ""
    found: list[Fault] = []
    if outcome.over_time:
        found.append(Fault(kind="time", cause=where, detail=f"{outcome.seconds:.0f} s"))
    elif code < 0:
        found.append(Fault(kind=f"signal {-code}", cause=where, detail=outcome.trace[-2000:]))
    if outcome.memory > outcome.limits.memory:
        found.append(Fault(kind="memory", cause=where, detail=f"{outcome.memory:,} bytes"))
    if said := _FAULT.search(outcome.stderr):
        if said[1] == "TaskFault":  # in the process that reads models; the stack of this one tells nothing
            said, where = _FAULT_OF_TASK.match(said[3]) or said, "a task"
        found.append(Fault(kind="fault", cause=f"{said[1]} in {said[2]} by {where}", detail=said[3][:300]))
    elif "Traceback (most recent call last)" in outcome.stderr:
        found.append(Fault(kind="traceback", cause=f"{last} by {place(outcome.stderr)}", detail=outcome.stderr[-2000:]))
    elif code == 1 and "--require" not in arguments:
        found.append(Fault(kind="exit 1", cause=last, detail=outcome.stderr[-500:]))
    elif code not in (0, 1, 2) and code > 0:
        found.append(Fault(kind=f"exit {code}", cause=last, detail=outcome.stderr[-500:]))
    elif code == 2 and (wrong := _no_sentence(lines)):
        found.append(Fault(kind="no sentence", cause=wrong, detail=outcome.stderr[-500:]))
    allowed = outputs if code == 0 else ()
    if code >= 0 and (left := sorted(name for name in outcome.left if name not in allowed)):
        found.append(Fault(kind="left behind", cause=normalised(left[0]), detail=", ".join(left)[:500]))
    if outcome.orphans:
        found.append(Fault(kind="process left", cause=str(outcome.orphans)))
    for name, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        if (raw := _raw(text)) is not None:
            found.append(Fault(kind="raw text", cause=f"{arguments[0]} {name}: {raw}"))
    if code == 0 and "--json" in arguments and (wrong := _no_json(outcome.stdout)):
        found.append(Fault(kind="json", cause=f"{arguments[0]}: {wrong}", detail=outcome.stdout[:500]))
    return found


def place(trace: str) -> str:
    """The innermost frame of ours in a stack, as `file:line function`, else the innermost of all."""
    frames = _FRAME.findall(trace)
    if trace.startswith(("Fatal", "Current", "Thread")) or "most recent call first" in trace:
        frames = frames[::-1]  # faulthandler's order
    ours = [frame for frame in frames if _OURS.search(frame[0])] or frames
    if not ours:
        return "?"
    file, line, function = ours[-1]
    return f"{'/'.join(file.split('/')[-2:])}:{line} {function}"


def normalised(text: str) -> str:
    """A line without what differs from case to case: numbers, quoted names, paths, random parts of names."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    text = re.sub(r"(\.[\w.-]+?)\.[0-9a-f]{8}\b", r"\1.<hex>", text)
    text = re.sub(r"(?<![\w.])[\w.-]*/[\w./-]+", "<path>", text)
    return re.sub(r"\d+", "#", text)[:160]


def _no_sentence(lines: list[str]) -> str:
    """Why stderr is not one sentence of ours behind notes, nor click's own; "" where it is."""
    if any(line.startswith("Usage: ") for line in lines) and lines[-1].startswith("Error: "):
        return ""
    rest = [line for line in lines if not line.startswith("note: ")]
    ours = [line for line in rest if line.startswith("onnxdfq: ")]
    if len(ours) != 1:
        return f"{len(ours)} sentences: {normalised(lines[-1]) if lines else 'silence'}"
    if len(ours[0]) > LONGEST:
        return f"a sentence of thousands of letters: {normalised(ours[0][:120])}"
    others = [line for line in rest if line not in ours]
    return f"other lines beside it: {normalised(others[0])}" if others else ""


def _raw(text: str) -> str | None:
    """The kind of letter that a terminal would act on, or that is no text; None where all is well."""
    for letter in text:
        if "\udc80" <= letter <= "\udcff":
            return "bytes that are not UTF-8"
        if (unicodedata.category(letter) == "Cc" and letter not in "\n\t") or letter in BIDIRECTIONAL:
            return f"U+{ord(letter):04X}"
    if any(line.lstrip().startswith(FORGED) for line in text.splitlines()):
        return "a line break"
    return None


def _no_json(text: str) -> str:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return normalised(str(error))
    return ""

"""Tries a parser on many documents and keeps what else than a refusal in a sentence came of it."""

from __future__ import annotations

import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from moecheck.errors import MoecheckError
from tests.fuzz.parsers import FILES, PARSERS


@dataclass(slots=True)
class Fuzzed:
    """tried: documents. refused: of these. sentences: the shortest refusal. bugs: by place, the shortest document."""

    tried: int = 0
    refused: int = 0
    bugs: dict[str, tuple[bytes, str]] = field(default_factory=dict)


def fuzz(name: str, folder: Path, *, documents: int, start: int = 0) -> Fuzzed:
    """Try the parser `name` on so many documents. start: of the drawing."""
    parser, found = PARSERS[name], Fuzzed()
    path = folder / FILES.get(name, "document")

    @seed(start)
    @settings(
        max_examples=documents, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(parser.documents)
    def attempt(document: bytes) -> None:
        found.tried += 1
        path.write_bytes(document)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                parser.read(path)
        except MoecheckError as error:
            found.refused += 1
            if not str(error).strip() or "\n" in str(error).strip():
                _keep(found, f"a refusal that is no sentence: {str(error)[:200]!r}", document, str(error))
        except Exception as error:
            frames = [
                f
                for f in traceback.extract_tb(error.__traceback__)
                if "/moecheck/" in f.filename or "/evals/" in f.filename
            ]
            last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            _keep(found, place, document, "".join(traceback.format_exception(error)))

    attempt()
    return found


def _keep(found: Fuzzed, place: str, document: bytes, text: str) -> None:
    if place not in found.bugs or len(document) < len(found.bugs[place][0]):
        found.bugs[place] = (document, text)

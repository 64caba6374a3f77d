"""Artifacts asked from the page: one request, ranked by one or two of them side by side."""

from collections.abc import Mapping, Sequence
import json
import pathlib
import threading
from typing import Any

from recjax.serving import artifact as artifacts
from recjax.serving.scorer import Scorer

MOST_CANDIDATES = 500


class Playground:
    """Loads each artifact when it is first asked.

    Args:
      artifacts: Directories of exports, which must be trusted.
    """

    def __init__(self, artifacts: Sequence[str]):
        self.paths = {pathlib.Path(a).name: pathlib.Path(a) for a in artifacts}
        if len(self.paths) < len(artifacts):
            raise ValueError("two --artifact folders have one name; rename one")
        self._loaded: dict[str, Scorer] = {}
        self._lock = threading.Lock()

    def about(self, name: str) -> dict[str, Any]:
        """What an artifact reads: its manifest's schema, by role."""
        scorer = self._served(name)
        features = [
            {"name": f.name, "role": f.role, "kind": f.kind, "list": f.list or ""}
            for f in scorer.schema.features
        ]
        return {"name": name, "features": features, "example": self.example(name)}

    def example(self, name: str) -> dict[str, Any]:
        """A request that the artifact can answer: values that its vocabularies know, one event of history, five candidates."""
        scorer = self._served(name)
        known: dict[str, list] = {}

        def value(f, place: int = 0) -> Any:
            if f.kind != "id":
                return [0.0] * f.vector if f.vector else 0.0
            if f.id_space not in known:
                known[f.id_space] = (
                    scorer.artifact.vocabulary(f.id_space)["value"].head(5).to_list()
                )
            values = known[f.id_space]
            one = values[place % len(values)] if values else None
            return [one] if f.multi else one

        time = 1_700_000_000
        out: dict[str, Any] = {"time": time}
        read = scorer.schema.features
        for role in dict.fromkeys(f.role for f in read):
            own = [f for f in read if f.role == role and not f.list]
            if role == "candidate":
                out["candidates"] = [{f.name: value(f, i) for f in own} for i in range(5)]
            elif own and role not in ("label", "target"):
                out[role] = {f.name: value(f) for f in own}
        out["history"] = {
            name: [{"time": time - 3600, **{f.name: value(f) for f in read if f.list == name}}]
            for name in scorer.schema.lists
        }
        return out

    def rank(self, names: Sequence[str], request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Candidates with each artifact's probability and rank, in the first one's order.

        Raises:
          ValueError: The request is none, too long, or an artifact cannot answer it.
        """
        candidates = request.get("candidates")
        if not isinstance(candidates, list) or not candidates:
            raise ValueError("the request has no list of candidates")
        if len(candidates) > MOST_CANDIDATES:
            raise ValueError(f"{len(candidates)} candidates; ask for {MOST_CANDIDATES} at most")
        rows: list[dict[str, Any]] = [
            {"place": i, "candidate": json.dumps(c, ensure_ascii=False)}
            for i, c in enumerate(candidates)
        ]
        for name in names:
            (answer,) = self._served(name).score_requests([request])
            column = (
                "probability"
                if "probability" in answer
                else next(k for k in answer if k.endswith("probability"))
            )
            order = sorted(range(len(rows)), key=lambda i: -float(answer[column][i]))
            for rank, i in enumerate(order, 1):
                rows[i][f"{name}: probability"], rows[i][f"{name}: rank"] = (
                    float(answer[column][i]),
                    rank,
                )
        return sorted(rows, key=lambda r: r[f"{names[0]}: rank"])

    def _served(self, name: str) -> Scorer:
        if name not in self.paths:
            raise ValueError(
                f"no artifact {name!r}; there are {', '.join(self.paths) or 'none: give --artifact'}"
            )
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Scorer(artifacts.load(self.paths[name]))
            return self._loaded[name]

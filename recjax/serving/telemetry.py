"""What the service tells Prometheus. Every service has its own registry, so tests can run several."""

from collections.abc import Callable, Mapping

import prometheus_client as prometheus
from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Telemetry:
    """Counters, gauges and histograms; see `render`."""

    def __init__(self):
        r = self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=r)
        prometheus.PlatformCollector(registry=r)
        prometheus.GCCollector(registry=r)
        self.requests = Counter(
            "recjax_requests", "Answers by path and status.", ["path", "status"], registry=r
        )
        self.refused = Counter(
            "recjax_refused_connections",
            "Ended before a request was whole, by reason.",
            ["reason"],
            registry=r,
        )
        self.seconds = Histogram(
            "recjax_request_seconds",
            "From the request's first byte to the answer's.",
            ["path"],
            buckets=_SECONDS,
            registry=r,
        )
        self.batch = Histogram(
            "recjax_batch_requests", "Requests scored together.", buckets=_SIZES, registry=r
        )
        self.batch_seconds = Histogram(
            "recjax_batch_seconds",
            "Encoding, gathering and the program.",
            buckets=_SECONDS,
            registry=r,
        )
        self.candidates = Counter("recjax_candidates", "Candidates scored.", registry=r)
        self.values = Counter(
            "recjax_id_values", "Values looked up in a vocabulary.", ["feature"], registry=r
        )
        self.unknown = Counter(
            "recjax_unknown_id_values",
            "Of these, unknown ones, scored as out-of-vocabulary.",
            ["feature"],
            registry=r,
        )
        self.reloads = Counter("recjax_reloads", "Artifact reloads.", ["result"], registry=r)
        self.artifact = Gauge("recjax_artifact", "1 for the one served.", ["stamp"], registry=r)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def looked_up(self, seen: Mapping[str, int], unknown: Mapping[str, int]) -> None:
        """Feature -> how many values a batch looked up, and how many of them were unknown."""
        for feature, n in seen.items():
            self.values.labels(feature).inc(n)
            self.unknown.labels(feature).inc(unknown.get(feature, 0))

    def serving(self, stamp: str) -> None:
        self.artifact.clear()
        self.artifact.labels(stamp).set(1)

    def render(self) -> tuple[bytes, str]:
        """The text of /metrics and its content type."""
        return prometheus.generate_latest(self.registry), prometheus.CONTENT_TYPE_LATEST

"""A polite client beside hostile ones; `experiments/bench/serving_attacks.py` measures the same by hand."""

import pytest

from experiments.bench import serving_attacks as attacks
from recjax.serving.service import Limits


@pytest.fixture(scope="module")
def service(exported):
    limits = Limits((1, 4), (16,), deadline_ms=10_000)
    with attacks.attacked_service(str(exported.path), 4, limits) as made:
        yield made


# Milliseconds that the machine's other work may cost between two measurements: attackers share the service's cores.
NOISE_MS = 20


@pytest.mark.parametrize("name", ["endless_header", "many_keys", "deep_nesting"])
def test_half_of_a_polite_clients_requests_notice_nothing(service, name):
    port, pid, polite = service
    got = attacks.under(port, pid, name, polite, 1.0, rounds=1)
    assert got["failed"] == 0 and got["requests"] > 10, got
    assert got["attacked_p50_ms"] <= 2 * got["quiet_p50_ms"] + NOISE_MS, got


@pytest.mark.slow
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_p99_at_most_doubles(service, name):
    port, pid, polite = service
    tries = []
    while len(tries) < 3:
        tries.append(got := attacks.under(port, pid, name, polite, 6.0))
        assert got["failed"] == 0, got
        if got["attacked_p99_ms"] <= max(2 * got["quiet_p99_ms"], NOISE_MS):
            return
    pytest.fail(f"{tries}")

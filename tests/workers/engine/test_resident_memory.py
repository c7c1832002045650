"""How much memory a worker asks Metal to keep resident."""

import mlx.core as mx
import pytest

from workers.engine.resident_memory import keep_resident

GB = 1 << 30


@pytest.mark.parametrize(("limit", "asked"), [(5 * GB, 5 * GB), (12 * GB, 11 * GB)])
def test_a_worker_wires_its_own_limit_and_no_more_than_metal_recommends(limit, asked, monkeypatch):
    wired = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": float(11 * GB)})
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    keep_resident(limit)
    assert wired == [asked]


def test_without_metal_there_is_nothing_to_wire(monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx, "set_wired_limit", lambda _: pytest.fail("without Metal"))
    keep_resident(GB)

"""What hosts say of themselves, and what of it has to agree."""

import pytest

from protocol.host_specs import COMPARED, HostSpecs, difference, read_host_specs


def test_this_host_says_all_and_agrees_with_itself():
    facts = read_host_specs()
    assert all((facts.name, facts.chip, facts.os, facts.memory_bytes))
    assert {"python", *COMPARED} <= facts.versions.keys()
    assert difference(facts, facts) is None


@pytest.mark.parametrize("name", COMPARED)
def test_what_would_change_answers_is_named_with_both_versions(name):
    mine = HostSpecs(versions=dict.fromkeys(COMPARED, "1.0"))
    theirs = HostSpecs(versions=mine.versions | {name: "1.1"})
    assert f"{name} 1.1 and this cluster 1.0" in difference(mine, theirs)


@pytest.mark.parametrize(
    ("name", "theirs", "fits"),
    [
        ("mlx", "0.32.5", True),
        ("mlx", "0.32", True),
        ("mlx", "0.33.4", False),
        ("mlx", "1.32.4", False),
        ("mlx", "none", False),
        ("mlx-lm", "0.32.5", False),
    ],
)
def test_patch_level_of_mlx_alone_may_differ_where_that_is_allowed(name, theirs, fits):
    mine = HostSpecs(versions=dict.fromkeys(COMPARED, "0.32.4"))
    other = HostSpecs(versions=mine.versions | {name: theirs})
    said = difference(mine, other)
    assert f"it has {name} {theirs} and this cluster 0.32.4" in said
    assert ("`./launch.sh start --replace --allow-mixed`" in said) is fits
    assert (difference(mine, other, allow_mixed=True) is None) is fits


def test_host_that_says_nothing_does_not_agree():
    assert difference(HostSpecs(versions=dict.fromkeys(COMPARED, "1.0")), HostSpecs()) is not None


def test_another_python_is_no_matter():
    mine = HostSpecs(versions=dict.fromkeys(COMPARED, "1.0") | {"python": "3.11"})
    assert difference(mine, HostSpecs(versions=mine.versions | {"python": "3.13"})) is None

"""docs/grafana.json can be imported: what Grafana wants of a dashboard that it has not made."""

from itertools import combinations

import pytest

from tests.support.dashboard import DASHBOARD, expressions

PANELS = DASHBOARD["panels"]
SOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}


def area(panel):
    place = panel["gridPos"]
    return {
        (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
    }


def test_source_of_the_figures_is_asked_for_at_the_import():
    (asked,) = DASHBOARD["__inputs"]
    assert (asked["name"], asked["type"], asked["pluginId"]) == ("DS_PROMETHEUS", "datasource", "prometheus")
    assert DASHBOARD["id"] is None
    sources = [
        each["datasource"] for panel in PANELS for each in (panel, *panel.get("targets", ())) if panel["type"] != "row"
    ]
    sources += [variable["datasource"] for variable in DASHBOARD["templating"]["list"]]
    assert all(source == SOURCE for source in sources)


def test_required_panels_are_those_that_are_used():
    required = {each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"}
    assert required == {panel["type"] for panel in PANELS} - {"row"}


def test_panels_have_ids_of_their_own_and_lie_beside_each_other():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert all(place[0] < 24 for panel in PANELS for place in area(panel))
    assert not any(area(one) & area(other) for one, other in combinations(PANELS, 2))


@pytest.mark.parametrize("panel", expressions())
def test_every_question_is_about_the_chosen_clusters(panel):
    asked = expressions()[panel]
    assert asked
    assert all(expression.count("tandem_") == expression.count('{instance=~".*"}') for expression in asked)

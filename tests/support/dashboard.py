"""docs/grafana.json, as tests ask it."""

import json
import re

from tests.support.running_cluster import CHECKOUT

DASHBOARD = json.loads((CHECKOUT / "docs" / "grafana.json").read_text("utf-8"))
_VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$instance": ".*"}


def expressions():
    """By panel: what it asks Prometheus, with Grafana's variables filled in."""
    return {
        panel["title"]: [_filled(target["expr"]) for target in panel["targets"]]
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
    }


def names_in(expression):
    """The metrics that an expression is about."""
    return set(re.findall(r"tandem_\w+", expression))


def _filled(expression):
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression

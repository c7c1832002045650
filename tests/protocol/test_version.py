"""One number, wherever Tandem says which it is."""

import re
import tomllib
from pathlib import Path

from cluster.api.document.building import Known, document
from cluster.cli.main import main
from protocol.version import tandem_version

CHECKOUT = Path(__file__).resolve().parents[2]


def test_number_is_the_project_s_and_shows_everywhere(capsys):
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert tandem_version() == project["version"]
    assert document(Known())["info"]["version"] == project["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"Tandem {project['version']} (mlx ")

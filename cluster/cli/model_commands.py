"""The commands `models list`, `models pull` and `models rm`, as the command line shows them."""

import click


@click.group()
def models() -> None:
    """Models on disk: here, and on the hosts of the running cluster."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def models_list(*, as_json: bool) -> None:
    """What each host holds, and how much of it."""
    import json

    from cluster.cli import models
    from cluster.cli.session import open_session

    hosts = models.on_hosts(open_session())
    print(json.dumps({"hosts": hosts}, ensure_ascii=False) if as_json else "\n".join(models.table(hosts)))


@models.command("pull")
@click.argument("repo")
def models_pull(repo: str) -> None:
    """Download a model from the hub, such as mlx-community/Qwen3-0.6B-4bit."""
    from cluster.cli import models
    from cluster.cli.session import open_session

    print(models.pull(open_session(), repo))


@models.command("rm")
@click.argument("model", metavar="ID")
@click.option("--yes", is_flag=True, help="Also from the hub's cache, which other programs use, too.")
def models_rm(model: str, *, yes: bool) -> None:
    """Delete a model of this machine; ID is its name or digest, as the list shows it."""
    from cluster.cli import models
    from cluster.cli.session import open_session

    print(models.remove(open_session(), model, confirmed=yes))

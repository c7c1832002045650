"""The commands `token new`, `token list` and `token revoke`, as the command line shows them."""

import click


@click.group()
def token() -> None:
    """What lets workers in from other machines."""


@token.command("new")
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="Workers that it lets in.")
@click.option("--expires", default="1h", show_default=True, metavar="TIME", help="Such as 30m, 1h or 7d.")
def token_new(uses: int, expires: str) -> None:
    """Print the command that joins another machine."""
    from cluster.cli import tokens
    from cluster.cli.session import open_session

    print("\n".join(tokens.new(open_session(), uses, tokens.duration_s(expires))))


@token.command("list")
def token_list() -> None:
    """The tokens, and who joined by each."""
    from cluster.cli import tokens
    from cluster.cli.session import open_session

    print("\n".join(tokens.listed(open_session())))


@token.command("revoke")
@click.argument("number", metavar="ID")
@click.option("--end-workers", is_flag=True, help="Those that joined by it have to go, too.")
def token_revoke(number: str, *, end_workers: bool) -> None:
    """Take a token back: it lets nobody in any more."""
    from cluster.cli import tokens
    from cluster.cli.session import open_session

    tokens.revoke(open_session(), number, with_guests=end_workers)
    print(f"Token {number} is revoked.")

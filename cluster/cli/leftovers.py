"""Workers that a coordinator which died left on other hosts: ended over ssh, all hosts at a time.

Whoever calls has made sure that no cluster runs in this home.
"""

import asyncio

from cluster.cli.finding import started_settings
from cluster.cli.terminal import Terminal
from cluster.membership.ssh import end_left_behind
from cluster.membership.ssh_command import HostUnavailable
from cluster.settings import HostSettings, Settings
from protocol.home import Home


def end_on_other_hosts(home: Home, terminal: Terminal) -> int:
    """End those of the last cluster of this home, as far as their hosts answer; returns how many lived."""
    settings, desired = started_settings(home), home.read_desired()
    if settings is None or desired is None or not settings.hosts:
        return 0
    terminal.progress("ending the workers on other hosts")
    try:
        return asyncio.run(_end_all(settings, desired.public_key, terminal))
    finally:
        terminal.done()


async def _end_all(settings: Settings, cluster: str, terminal: Terminal) -> int:
    orphan_s = settings.recovery.orphan_s
    return sum(await asyncio.gather(*(_end(host, cluster, orphan_s, terminal) for host in settings.hosts)))


async def _end(host: HostSettings, cluster: str, orphan_s: float, terminal: Terminal) -> int:
    try:
        return await end_left_behind(host, cluster)
    except HostUnavailable as error:
        terminal.note(f"tandem: {error}; workers there end by themselves {orphan_s:g} s after the coordinator.")
        return 0

"""The surfaces, one file each."""

from cluster.api.surface import Surface
from cluster.api.surfaces.chat import Chat
from cluster.api.surfaces.completions import Completions

SURFACES: tuple[Surface, ...] = (Chat(), Completions())

"""The surfaces, one file each; what a large one consists of has further ones."""

from cluster.api.surface import Surface
from cluster.api.surfaces.chat import Chat
from cluster.api.surfaces.completions import Completions
from cluster.api.surfaces.messages import Messages
from cluster.api.surfaces.ollama import OllamaChat, OllamaGenerate
from cluster.api.surfaces.responses import Responses

SURFACES: tuple[Surface, ...] = (Chat(), Completions(), Responses(), Messages(), OllamaChat(), OllamaGenerate())

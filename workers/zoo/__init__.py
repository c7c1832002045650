"""Small models of every architecture that the installed mlx-lm has.

`configurations` owns the sizes and layer structures and shrinks a real configuration to the same structure in small;
`models` builds random models from them, in memory or as directories in the Hugging Face layout.
"""

from workers.zoo.configurations import architectures, arguments_class, shrunk, tiny_config
from workers.zoo.models import make_tiny_model, random_model

__all__ = ["architectures", "arguments_class", "make_tiny_model", "random_model", "shrunk", "tiny_config"]

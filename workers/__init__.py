"""The data plane: the only house that imports mlx."""

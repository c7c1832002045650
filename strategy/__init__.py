"""Pure decisions: no sockets, no mlx, no clock. Imports nothing of ours."""

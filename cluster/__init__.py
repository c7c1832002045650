"""The control plane: coordinator, membership, planner, wire, transport, HTTP and CLI. Never imports mlx."""

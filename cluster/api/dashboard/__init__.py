"""The dashboard: a page, its files, and the stream of events that feeds it. The page asks this server and nobody else."""

from cluster.api.dashboard.routes import Dashboard, dashboard_routes

__all__ = ["Dashboard", "dashboard_routes"]

"""The command line: a thin client of the HTTP API, and the one place that starts and stops the coordinator."""

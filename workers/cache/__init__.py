"""The KV of sequences on one stage, and what is kept of past ones."""

"""The workers of a cluster: who they are, that they live, how they are started."""

"""A plan's life: the model's files, which worker holds what, and the epoch in force."""

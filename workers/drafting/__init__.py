"""Guesses at the next tokens of sequences, which the route then verifies: from a small model, or from what the texts repeat."""

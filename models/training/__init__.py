"""How the bundled model and its draft are made: the texts, the tokenizer, and the training."""

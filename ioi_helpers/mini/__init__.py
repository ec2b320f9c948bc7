"""The embedded models: their words, tokenizer, training text, recipes, weights and cards."""

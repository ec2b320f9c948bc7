"""How the models that ship were made. Not part of the installed package.

In reading order, each standing on the ones before:

- `lexicon`: English words by part of speech, from the files in `words/`.
- `vocabulary`: these and the stimuli's words, one token each, and the tokenizer's files.
- `corpus`: the text, made of those words by a small grammar.
- `train`: the recipes, and what is asked of a model beside the next word. `make train MODEL=`.
- `card`: what the trained model does, measured, and its registry of heads.
- `circuit`: the circuit that ships with it.
- `seeds`: the same questions of every seed, and the tables that ship.
"""

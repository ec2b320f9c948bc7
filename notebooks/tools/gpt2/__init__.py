"""GPT-2 small against what is published of it: `python -m notebooks.tools check-gpt2`.

`weights` finds the weights and `report` writes what was found; neither imports PyTorch, so that a
missing network is told at once. `prompts` are those of the sources, `measurements` has one function
for each entry of `ioi_helpers.published`, and `run` goes through them and through the notebooks.
"""

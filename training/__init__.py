"""How the models that ship were made: text, training, cards. Not part of the installed package."""

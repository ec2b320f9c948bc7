"""Tools around the notebooks: run them, refresh their stored outputs, compare and guard those."""


class CannotGoOn(Exception):
    """Why a command stops, in a sentence for its user, who gets no traceback."""

"""Tools around the notebooks: run them, refresh their stored outputs, compare and guard those."""

"""Questions that a survey's tests ask: they keep count of who asked, wait, fail, or kill.

Workers import them by name, ``"tests.survey_questions:counted"``.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd

from ioi_helpers import runs


def counted(model: Any, data: Any, *, log: str, wait: float = 0.0, tag: int = 0) -> pd.DataFrame:
    """The mean logit difference; a line in the log when it begins, and one when it is there."""
    _note(log, f"begun {model.ioi_name} {tag}")
    time.sleep(wait)
    mean = float(runs.logit_diffs(model, data, progress=False).mean())
    _note(log, f"ended {model.ioi_name} {tag}")
    return pd.DataFrame({"tag": [tag], "logit_diff": [mean]})


def failing(model: Any, data: Any, *, log: str, only: str = "") -> pd.DataFrame:
    """An error, on one of the models or on all; else one row."""
    _note(log, f"begun {model.ioi_name}")
    if only in model.ioi_name:
        raise RuntimeError("this question always fails")
    return pd.DataFrame({"whole": [1]})


def deadly(model: Any, data: Any, *, log: str, times: int, tag: int = 0) -> pd.DataFrame:
    """Kills its process the first so many times that it is asked."""
    _note(log, f"begun deadly {tag}")
    if Path(log).read_text().count(f"begun deadly {tag}\n") <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return pd.DataFrame({"survived": [tag]})


def _note(log: str, line: str) -> None:
    with open(log, "a") as file:
        file.write(line + "\n")

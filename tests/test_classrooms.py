"""For a classroom: editions without and with solutions, answers handed in and collected."""

from __future__ import annotations

import csv
import json
import re
import socket
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from ioi_helpers import exercises
from ioi_helpers.exercises import __main__ as command
from ioi_helpers.exercises import collecting, records, registry
from ioi_helpers.exercises.collecting import Row, collect
from ioi_helpers.exercises.session import Session
from ioi_helpers.exercises.values import Damaged, Other, digest, from_json, to_json
from ioi_helpers.exercises.verdicts import Key, number
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.metrics import Estimate
from ioi_helpers.probing import Split
from notebooks.tools import editions
from notebooks.tools.check import differences
from notebooks.tools.execution import execute, find_notebooks
from notebooks.tools.exercise_runs import NotebookSession, Verdict, load_exercises
from notebooks.tools.stored_outputs import code_cells, read, tags
from tests.sample_notebooks import code, write

PATHS = find_notebooks()

# --- answers as JSON ------------------------------------------------------------------------------

VALUES = [
    3,
    Estimate(1.5, 0.1, 8),
    -0.1,
    True,
    "L9H9",
    float("nan"),
    [1.5, "a", [True]],
    ("text", "where", 0.25),
    {"L9H9": -0.5, (9, 6): 1},
    {1, 2, 3},
    {("L9H9", "END"), "L0H1"},
    torch.linspace(0, 1, 7),
    torch.randn(3, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.tensor([0.1, float("nan")], dtype=torch.bfloat16),
    torch.tensor(2.0),
    torch.tensor([[True, False]]),
    torch.zeros(0, 3),
    np.arange(6, dtype=np.int32).reshape(2, 3),
    (torch.tensor([0, 1]), [2, 3]),
]


def alike(one: Any, other: Any) -> bool:
    """Whether two values are of one kind and equal, bit by bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and (one.dtype, one.shape) == (
            other.dtype,
            other.shape,
        )
        return same and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and (one == other).all()
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(map(alike, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def name_of(value: Any) -> str:
    """A test's name: a set's own text has another order in each of pytest's processes."""
    return str(sorted(value, key=str) if isinstance(value, set) else value)[:20]


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_an_answer_comes_back_as_it_was(value: Any) -> None:
    text = json.dumps(to_json(value), allow_nan=False)
    assert alike(value, from_json(json.loads(text)))
    assert digest(to_json(value)) == digest(json.loads(text))


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        (np.float32(0.5), 0.5),
        (pd.Series([1, 2]), np.array([1, 2])),
        (pd.Index(["L0H1"]), ["L0H1"]),
        (np.array(["L0H1"]), ["L0H1"]),
        (range(3), [0, 1, 2]),
        (Fraction(1, 2), 0.5),
        ({"a": 1}.keys(), ["a"]),
        ([Node(9, 9, "END"), Node(0, None)], ["L9H9 at END", "MLP0"]),
        (Circuit(frozenset([Node(9, 9, "END")])), ["L9H9 at END"]),
        (Split(torch.tensor([0]), torch.tensor([1])), (torch.tensor([0]), torch.tensor([1]))),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (10**400, float("inf")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_means_the_same_is_kept_simply(value: Any, meaning: Any) -> None:
    assert alike(from_json(to_json(value)), meaning)


def test_a_series_keeps_its_labels() -> None:
    for labels in (["L9H9", "L0H1"], [(9, 9), (0, 1)]):
        series = pd.Series([0.5, -1.0], index=pd.Index(labels, tupleize_cols=False))
        assert from_json(json.loads(json.dumps(to_json(series)))).to_dict() == series.to_dict()


def test_what_no_exercise_asks_for_is_kept_by_name() -> None:
    nested: list[Any] = []
    nested.append(nested)

    class Odd:
        def __len__(self) -> int:
            raise ZeroDivisionError

        __iter__ = __len__

    for value in (max, b"x", torch.zeros(2, dtype=torch.cfloat), nested, "x" * 200_000, Odd()):
        assert isinstance(from_json(to_json(value)), Other)
    assert isinstance(from_json(to_json(torch.zeros(1).expand(3_000_000))), Other)
    once = iter([1, 2])
    assert isinstance(from_json(to_json(once)), Other)
    assert list(once) == [1, 2], "looking at an answer must not use it up"


@pytest.mark.parametrize(
    "encoded",
    [
        {},
        {"a": 1, "b": 2},
        {"tuple": 3},
        {"float": "1e5"},
        {"set": [[1]]},
        {"mapping": [[[1], 2]]},
        {"mapping": [1]},
        {"series": [1]},
        {"series": {"a": 1}},
        {"other": 3},
        {"array": {"of": "tensor", "type": "float32", "shape": [2], "values": [1.0]}},
        {"array": {"of": "tensor", "type": "float32", "shape": [-1], "values": [1.0]}},
        {"array": {"of": "tensor", "type": "float32", "shape": [1], "base64": "AAA"}},
        {"array": {"of": "tensor", "type": "load", "shape": [1], "values": [1.0]}},
        {"array": {"of": "tensor", "type": "float32", "shape": [1]}},
        {"array": [1]},
        {"pickle": "gASVAAAA"},
    ],
    ids=str,
)
def test_what_no_answer_is_written_as_is_refused(encoded: Any) -> None:
    with pytest.raises(Damaged):
        from_json(encoded)


# --- progress and export --------------------------------------------------------------------------


@pytest.fixture
def two_exercises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exercises 90.1 (answer: 4) and 90.2 (answer: 0.5), and a session in which nothing is done."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(exercises, "_current", exercises.Context({}))
    monkeypatch.setattr(exercises, "_session", Session())

    @exercises.exercise("90.1")
    def _many(ctx: exercises.Context) -> Key:
        return number(float(len(ctx.data)), mistakes={"counting pairs": 2.0})

    @exercises.exercise("90.2")
    def _half(ctx: exercises.Context) -> Key:
        return number(0.5)


SAMPLE = [
    code(
        "from ioi_helpers import IOIDataset, exercises, load_model\n"
        "model = load_model(verbose=False)\n"
        "data = IOIDataset.generate(model.tokenizer, 4, seed=0)\n"
        "exercises.use(model=model, data=data)\n"
        "%time 1"
    ),
    code('answer = None  # your code\nexercises.check("90.1", answer)', tags=["exercise"]),
    code('answer = None  # your code\nexercises.check("90.2", answer)', tags=["exercise"]),
]
BEGINNING: str = SAMPLE[0].source.replace("%time 1", "")


@pytest.fixture
def sitting(two_exercises: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers given in a new session on ioi-mini, written to a file."""

    def begin(file: Path, answers: dict[str, Any], beginning: str = BEGINNING, **how: Any) -> Path:
        monkeypatch.setattr(exercises, "_session", Session())
        monkeypatch.setenv("IOI_MODEL", "ioi-mini")
        exec(beginning, {})
        for id, tried in answers.items():
            for answer in tried:
                exercises.check(id, answer)
        return exercises.export(file, **how)

    return begin


@pytest.mark.usefixtures("two_exercises")
def test_progress_counts_different_answers(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.progress()
    exercises.use(data=range(4))
    exercises.check("90.1", None)
    for answer in (5, 2, 2, 4, 4, 9):
        exercises.check("90.1", answer)
    done = exercises.progress()
    assert (done.right, done.wrong, done.blank) == (("90.1",), (), ("90.2",))
    assert done.tries == {"90.1": 3}, "a try is another answer, before the right one"
    printed = capsys.readouterr().out
    assert "No exercise has been checked" in printed
    assert "Notebook 90: 1 of 2 exercises right. Right: 90.1 (3 tries)." in printed


def test_a_file_is_added_to(sitting: Any, tmp_path: Path) -> None:
    file = sitting(tmp_path / "ada", {"90.1": [5, 4], "90.2": [1]})
    sitting(tmp_path / "ada.json", {"90.1": [7], "90.2": [1, 2, 0.5]})
    record = records.read(file)
    first, second = record.entries["90.1"], record.entries["90.2"]
    assert record.who == "ada"
    assert (first.answer, first.passed, len(first.tried)) == (4, True, 2), "right answers stay"
    assert (second.answer, second.passed, len(second.tried)) == (0.5, True, 3)
    assert first.checked_on["model"]["name"] == "ioi-mini"
    assert sorted(tmp_path.iterdir()) == [file], "nothing else is left behind"


def test_what_cannot_be_exported_is_refused(sitting: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to export"):
        exercises.export(tmp_path / "ada")
    file = sitting(tmp_path / "ada", {"90.1": [4]}, who="Ada")
    with pytest.raises(ValueError, match=r"ada.json holds answers of 'Ada'"):
        exercises.export(file, who="Ben")
    with pytest.raises(ValueError, match="no folder"):
        exercises.export(tmp_path / "nowhere" / "ada")
    cut = file.read_text()[:200]
    file.write_text(cut)
    with pytest.raises(ValueError, match="cannot be added to.*cut short"):
        exercises.export(file)
    assert file.read_text() == cut, "what is there is left as it is"


# --- collect --------------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A folder with one notebook, which asks the two exercises."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(nbformat.v4.new_notebook(cells=SAMPLE), folder / "90_sample.ipynb")
    return folder


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    """An empty folder for what students hand in."""
    (tmp_path / "handed in").mkdir()
    return tmp_path / "handed in"


def test_records_of_two_students_become_one_table(
    sitting: Any,
    sample: Path,
    handed_in: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: Any) -> None:
        raise AssertionError("collecting needs no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    (handed_in / "ben").mkdir()
    ada = sitting(handed_in / "ada", {"90.1": [5, 4], "90.2": [1]}, who="=Ada\x1b[31m")
    sitting(handed_in / "ben" / "answers.json", {"90.2": [torch.tensor([0.5])]}, who="Ben")
    text = ada.read_text()
    damaged = {
        "cut.json": text[: len(text) // 2],
        "empty.json": "",
        "edited.json": text.replace('"passed": false', '"passed": true'),
        "other.json": '{"a": 1}',
        "later.json": text.replace("format 1", "format 2"),
        "deep.json": "[" * 100_000,
        "number.json": text.replace('"answer": 4', '"answer": ' + "4" * 5000),
    }
    for name, content in damaged.items():
        (handed_in / name).write_text(content)
    (handed_in / "binary.json").write_bytes(b"\xff\xfe\x00")
    (handed_in / "link.json").symlink_to(ada)

    assert command.main(["collect", str(handed_in), "--notebooks", str(sample)]) == 0
    with open(handed_in / "collected.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table == [
        ["who", "exercise", "tries", "verdict"],
        ["'=Ada?[31m", "90.1", "2", "right"],
        ["'=Ada?[31m", "90.2", "1", "wrong"],
        ["Ben", "90.2", "1", "right"],
    ]
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for name in (*damaged, "binary.json"):
        assert re.search(rf"^- {re.escape(name)} was left out, ask for it again: ", printed, re.M)
    assert "link.json is no ordinary file" in printed
    assert "cheating is not found out" in printed
    assert re.search(r"^Ben +- +right \(1\)$", printed, re.MULTILINE)


def test_a_notebook_that_stops_is_named(sitting: Any, sample: Path, handed_in: Path) -> None:
    sitting(handed_in / "ada", {"90.1": [4], "90.2": [0.5]})
    stopping = [*SAMPLE[:2], code("1 / 0"), SAMPLE[2]]
    write(nbformat.v4.new_notebook(cells=stopping), sample / "90_sample.ipynb")
    found = collect(handed_in, notebooks=sample)
    assert [row.passed for row in found.rows] == [True, None]
    (notice,) = found.notices
    assert notice.startswith("ada.json, 90.2: not checked: notebook 90 stopped before it, on ioi-")
    (sample / "90_sample.ipynb").rename(sample / "91_sample.ipynb")
    assert "there is no notebook 90" in collect(handed_in, notebooks=sample).notices[0]


def test_accidents_are_named(
    sitting: Any, sample: Path, handed_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sitting(handed_in / "prompts", {"90.1": [6]}, BEGINNING.replace("4, seed=0", "6, seed=0"))
    plain = BEGINNING.replace("load_model(", "load_model('ioi-plain', ")
    sitting(handed_in / "plain", {"90.1": [4]}, plain)
    renamed = plain.replace("data =", "model.ioi_name = 'ioi-mini'\ndata =")
    sitting(handed_in / "weights", {"90.1": [4]}, renamed)
    hub = BEGINNING.replace("data =", "model.ioi_name = '/nowhere/eve/evil-model'\ndata =")
    sitting(handed_in / "unknown", {"90.1": [4]}, hub)
    assert "eve" not in (handed_in / "unknown.json").read_text(), "no path leaves the machine"
    sitting(handed_in / "one", {"90.1": [4]}, who="Ada")
    sitting(handed_in / "two", {"90.2": [0.5]}, who="Ada")
    with monkeypatch.context() as patched:
        patched.setattr("ioi_helpers.__version__", "0.0.9")
        sitting(handed_in / "version", {"90.1": [4]})
    before = exercises._current

    found = collect(handed_in, notebooks=sample)
    assert exercises._current is before, "what this session's checks are bound to stays"
    assert found.rows == [
        Row("Ada (one.json)", "90.1", 1, True),
        Row("Ada (two.json)", "90.2", 1, True),
        Row("plain", "90.1", 1, True),
        Row("prompts", "90.1", 1, False),
        Row("unknown", "90.1", 1, None),
        Row("version", "90.1", 1, True),
        Row("weights", "90.1", 1, None),
    ]
    told = "\n".join(found.notices)
    for sentence in (
        r"^one.json is one of 2 files of 'Ada'\.$",
        r"^prompts.json, 90.1: answered on other prompts \(data\) than the notebook's",
        r"^unknown.json, 90.1: not checked, for they were given on evil-model, which does not ship",
        r"^version.json was written with ioi_helpers 0.0.9, and is checked by ",
        r"^weights.json, 90.1: not checked, for that ioi-mini has other weights",
    ):
        assert re.search(sentence, told, re.MULTILINE), told
    assert len(found.notices) == 6

    only = collect(handed_in, model="ioi-plain", notebooks=sample)
    assert [row.who for row in only.rows if row.passed is not None] == ["plain"]
    assert "given on ioi-mini, not on ioi-plain." in "\n".join(only.notices)


def test_no_code_of_a_student_is_run(
    sitting: Any, sample: Path, handed_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sitting(handed_in / "ada", {"90.1": [4]})
    harm = f"open({str(handed_in / 'harm')!r}, 'w')"
    write(nbformat.v4.new_notebook(cells=[code(harm)]), handed_in / "90_sample.ipynb")
    (handed_in / "torch.py").write_text(harm)
    assert collect(handed_in, notebooks=sample).rows == [Row("ada", "90.1", 1, True)]
    monkeypatch.chdir(handed_in)
    with pytest.raises(ValueError, match="Start this elsewhere"):
        collecting.refuse_to_start_inside(Path("."))
    assert command.main(["collect", str(handed_in)]) == 1
    assert not (handed_in / "harm").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no notebooks in"):
        collect(tmp_path, notebooks=tmp_path)
    assert str(collect(tmp_path)) == "No answers were found."


# --- editions -------------------------------------------------------------------------------------


def sentences(markdown: str) -> Iterator[str]:
    """The sentences of a solution that say something, and its lines of code."""
    for line in re.sub(r"<[^>]+>", "", markdown).splitlines():
        yield from (part.strip() for part in re.split(r"(?<=[.:?]) ", line) if len(part) > 40)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_solution_is_left_in_the_student_edition(path: Path) -> None:
    notebook = read(path)
    made = editions.student(notebook)
    solutions = [cell.source for cell in notebook.cells if "solution" in tags(cell)]
    elsewhere = "\n".join(c.source for c in notebook.cells if "solution" not in tags(c))
    left = nbformat.writes(made)
    text = "\n".join(cell.source for cell in made.cells)
    assert solutions and not [c for c in made.cells if "solution" in tags(c)]
    assert "<summary>Solution" not in text and "Open In Colab" not in text
    for sentence in (s for solution in solutions for s in sentences(solution)):
        assert sentence not in text or sentence in elsewhere, sentence
    for exercise in load_exercises(path):
        assert exercise.solution.strip() not in text
        assert json.dumps(exercise.solution.strip())[1:-1] not in left
    stubs = [cell.source for cell in notebook.cells if "exercise" in tags(cell)]
    assert [cell.source for cell in made.cells if "exercise" in tags(cell)] == stubs
    assert all(not cell.outputs for cell in code_cells(made))
    assert "Hint" in text and made.cells[-1].source.startswith("exercises.progress()")
    nbformat.validate(made)
    assert notebook == read(path), "the notebook itself stays as it is"


class _Said(NotebookSession):
    """Runs nothing; its verdicts say of what they are."""

    def attempt(self, exercise: Any, source: str | None) -> Any:
        return Verdict(False, f"said of {exercise.identifier}", f"Exercise {exercise.identifier}")


def test_a_student_edition_is_handed_in_and_collected(tmp_path: Path) -> None:
    """From both editions of a notebook to a table; the teacher's is what answers are checked by."""
    path = PATHS[0]
    first, second, *_ = every = load_exercises(path)
    handout = editions.student(read(path))
    own = editions.teacher(read(path), every, _Said(path, "ioi-mini"))

    stubs = [cell for cell in handout.cells if "exercise" in tags(cell)]
    for stub, answer in zip(stubs, (first.wrong[0].source, second.solution)):
        stub.source = stub.source.replace("exercises.check", f"{answer}\nexercises.check")
    last = handout.cells[-1]
    last.source = last.source.replace('# exercises.export("your-name")', 'exercises.export("Eva")')
    for edition, made in (("student", handout), ("teacher", own)):
        (tmp_path / edition).mkdir()
        nbformat.write(made, tmp_path / edition / path.name)

    done = execute(tmp_path / "student" / path.name, {"IOI_MODEL": "ioi-mini"}).notebook
    printed = "".join(o.get("text", "") for o in done.cells[-1].outputs)
    assert f"1 of {len(every)} exercises right. Right: {second.identifier}." in printed
    assert "Eva.json holds 2 answers of 'Eva', 1 of them right" in printed

    found = collect(tmp_path / "student", notebooks=tmp_path / "teacher")
    assert found.notices == []
    assert found.rows == [
        Row("Eva", first.identifier, 1, False),
        Row("Eva", second.identifier, 1, True),
    ]


def test_the_teacher_edition_has_what_a_teacher_wants() -> None:
    path = PATHS[0]
    made = editions.teacher(read(path), load_exercises(path), _Said(path, "ioi-mini"))
    text = "\n".join(cell.source for cell in made.cells)
    exercises_of_it = load_exercises(path)
    for exercise in exercises_of_it:
        assert exercise.solution.strip() in text
        assert all(answer.source.strip() in text for answer in exercise.wrong)
    assert text.count("> said of ") == sum(len(e.wrong) for e in exercises_of_it)
    assert f"| together | | | {sum(e.task.minutes for e in exercises_of_it)} |" in text
    assert "None  # your" not in text
    assert any("image/png" in o.get("data", {}) for c in code_cells(made) for o in c.outputs)
    nbformat.validate(made)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_both_editions_run(path: Path, tmp_path: Path) -> None:
    for made in editions.make(path, tmp_path):
        done = execute(made, {"IOI_MODEL": "ioi-mini"}).notebook
        printed = [
            "".join(output.get("text", "") for output in cell.outputs)
            for cell in code_cells(done)
            if "exercise" in tags(cell)
        ]
        expected = {"student": "not attempted yet", "teacher": ": correct."}[made.parent.name]
        assert all(expected in text for text in printed), printed
        if made.parent.name == "teacher":  # what a solution leaves behind changes nothing later
            stubs = [i for i, c in enumerate(code_cells(done), 1) if "exercise" in tags(c)]
            assert [one for one in differences(read(path), done) if one[0] not in stubs] == []

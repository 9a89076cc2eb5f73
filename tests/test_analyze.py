"""``farfield analyze`` and the catalogue behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch

from farfield.analysis import ANALYSES, Subject, Table, analysis, analyze
from farfield.cli.main import main
from farfield.distributions import Gaussian
from farfield.errors import ArgumentError


@dataclass(frozen=True)
class _Options:
    times: int = 2


@dataclass(frozen=True)
class _Found:
    value: int

    def summary(self):
        return f"the value is {self.value}"

    def tables(self):
        return [Table("values", ("value",), ((self.value,),))]

    def to_dict(self):
        return {"value": self.value}

    def plot(self, ax=None):
        from farfield.analysis.plotting import axes_for

        return axes_for(ax)[0].figure


@pytest.fixture
def twice(monkeypatch):
    monkeypatch.setattr("farfield.analysis.catalogue.ANALYSES", found := {})

    @analysis("twice", about="the size of the data, times a number", options=_Options)
    def run(subject, options):
        return _Found(len(subject.data) * options.times)

    return found


def test_options_are_checked_and_reach_the_analysis(twice):
    """An analysis is a name, a subject and options with defaults."""
    subject = Subject(Gaussian(torch.zeros(2), torch.eye(2)), torch.zeros(5, 2))
    assert analyze("twice", subject).to_dict() == {"value": 10}
    assert analyze("twice", subject, {"times": 3}).to_dict() == {"value": 15}
    with pytest.raises(ArgumentError, match="unknown key 'time'"):
        analyze("twice", subject, {"time": 3})
    with pytest.raises(ArgumentError, match="times = 'x'; expected a whole number"):
        analyze("twice", subject, {"times": "x"})
    with pytest.raises(ArgumentError, match="unknown analysis 'thrice'; known: twice"):
        analyze("thrice", subject)
    with pytest.raises(ArgumentError, match="exists already"):
        analysis("twice", about="", options=_Options)(lambda s, o: _Found(0))


def test_every_option_has_a_default():
    """The list of analyses shows the default of each option, so each has one."""
    for found in ANALYSES.values():
        found.options()
        assert found.about
        assert not found.about.endswith(".")


def test_the_command_lists_what_there_is(capsys):
    """Without a model: the names and their options."""
    assert main(["analyze"]) == 0
    out = capsys.readouterr().out
    assert "fidelity" in out
    assert "protocol=noised" in out
    assert main(["analyze", "--json"]) == 0
    assert {a["name"] for a in json.loads(capsys.readouterr().out)} == set(ANALYSES)


def test_the_command_prints_tables_json_and_files(tmp_path, capsys):
    """Table and summary; JSON on request; a figure and JSON in a folder."""
    out = tmp_path / "new" / "folder"
    few = ["queries=4", "sigmas=[10, 1]", "components=2"]
    assert main(["analyze", "digits", *few, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "unexplained fraction" in text
    assert text.rstrip().endswith(str(out))
    assert json.loads((out / "fidelity.json").read_text())["sigmas"] == [10.0, 1.0]
    assert (out / "fidelity.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["analyze", "digits", *few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["analysis"] == "fidelity"
    assert found["model"] == "digits"
    assert found["queries"] == 4


def test_mistakes_are_one_line(tmp_path, capsys):
    """Wrong names, values and folders, each before or instead of a long computation."""
    file = tmp_path / "file"
    file.write_text("")
    for args, message in (
        (["digits", "--what", "fidelty"], "Did you mean 'fidelity'?"),
        (["digits", "queries"], "option 'queries'; expected name=value"),
        (["digits", "quries=3"], "unknown key 'quries'"),
        (["digits", "queries=[1"], "not valid YAML"),
        (["digits", "--out", str(file)], "is a file"),
    ):
        assert main(["analyze", *args]) == 2
        error = capsys.readouterr().err
        assert message in error, error
        assert error.count("\n") == 1, error

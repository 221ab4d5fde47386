"""The workflow, the templates and the citation: they parse, and the workflow runs what .ci/run runs."""

from __future__ import annotations

import configparser
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
LEGS = ("locked", "oldest", "newest")


def workflow() -> dict[str, Any]:
    # BaseLoader, since YAML 1.1 reads the key `on` as true
    return yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)


def steps(job: dict[str, Any], what: str) -> list[str]:
    return [step[what] for step in job["steps"] if what in step]


def test_the_workflow_runs_the_legs_and_nothing_of_its_own() -> None:
    jobs = workflow()["jobs"]
    assert steps(jobs["check"], "run") == [".ci/run ${{ matrix.leg }}"]
    told = jobs["check"]["strategy"]["matrix"]["leg"]
    assert re.findall(r"'(\[.*?\])'", told) == ['["newest"]', str(list(LEGS)).replace("'", '"')]
    assert steps(jobs["docs"], "run") == ["python -m pip install tox", "tox -e docs"]
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert "testenv:docs" in tox


def test_the_workflow_may_read_and_is_pinned() -> None:
    content = workflow()
    assert content["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in content["jobs"].values())
    assert content["on"].keys() == {"push", "pull_request", "workflow_dispatch", "schedule"}
    (times,) = content["on"]["schedule"]
    assert len(times["cron"].split()) == 5 and times["cron"].split()[-1] != "*", "once a week"
    used = [name for job in content["jobs"].values() for name in steps(job, "uses")]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)
    low = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(
        ">="
    )
    for job in content["jobs"].values():
        (python,) = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert python["python-version"] == low and python["cache"] == "pip"
        assert all((ROOT / name).exists() for name in python["cache-dependency-path"].split())


def test_ci_run_takes_legs(tmp_path: Path) -> None:
    """What it has for legs is what the workflow names; another word ends it before anything is installed."""
    text = (ROOT / ".ci" / "run").read_text()
    cases = re.findall(r"^    ([\w |]+)\)", text, re.MULTILINE)
    assert sorted(" ".join(cases).replace("|", " ").split()) == sorted(LEGS)
    assert "${*:-locked oldest newest}" in text
    done = subprocess.run([ROOT / ".ci" / "run", "nearest"], capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 2
        and "There is no leg 'nearest'; there are locked, oldest and newest." in done.stderr
    )


def test_ci_run_and_tox_run_the_same() -> None:
    """Commands of tox's environments stand in .ci/run, too."""
    text = (ROOT / ".ci" / "run").read_text()
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    for name in ("lint", "types", "{oldest,newest}"):
        for line in tox[f"testenv:{name}"]["commands"].strip().splitlines():
            words = [word for word in line.replace("python -m ", "").split() if "{" not in word]
            held = [
                one for one in text.splitlines() if all(word in one.split() or word in one for word in words)
            ]
            assert held, line


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.name
)
def test_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"] and form["description"] and isinstance(form["labels"], list)
    kinds = {"textarea", "input", "dropdown", "checkboxes"}
    assert form["body"] and all(
        (one["type"] in kinds and one["attributes"]["label"]) or one for one in form["body"]
    )
    ids = [one["id"] for one in form["body"]]
    assert len(ids) == len(set(ids))
    assert any(one.get("validations", {}).get("required") for one in form["body"])
    for one in form["body"]:
        assert one["type"] in kinds
        if one["type"] in ("dropdown", "checkboxes"):
            assert one["attributes"]["options"]


def test_what_templates_point_to_is_there() -> None:
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md"]:
        for name in re.findall(r"\b(?:docs|tests|pruners)/[\w/.-]+\.\w+", path.read_text()):
            assert (ROOT / name).exists(), (path.name, name)


def test_the_citation_has_what_the_schema_requires() -> None:
    """Required keys of the Citation File Format 1.2.0, and the project's own facts."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0" and cited["message"] and cited["title"]
    assert cited["authors"] and all("name" in one or "family-names" in one for one in cited["authors"])
    assert cited["type"] in ("software", "dataset")
    assert cited["title"].startswith(project["name"])
    assert str(cited["version"]) == project["version"] and cited["license"] == project["license"]
    known = {
        "cff-version",
        "message",
        "title",
        "type",
        "version",
        "license",
        "authors",
        "abstract",
        "keywords",
    }
    assert set(cited) <= known


def test_the_changelog_is_by_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    dates = re.findall(r"^### (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert dates == sorted(dates, reverse=True) and len(dates) == len(set(dates)) > 3
    kinds = set(re.findall(r"^#### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert "## Unreleased" in text

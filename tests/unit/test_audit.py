"""``scripts/audit.py``: a database that was not asked is never taken for one that knows of nothing."""

from __future__ import annotations

import pytest
from scripts.audit import FOUND, NONE_KNOWN, NOT_ASKED, tell

SOUND = {"name": "sound", "version": "1.0", "vulns": []}
HOLED = {
    "name": "holed",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"], "description": "x"}],
}
UNKNOWN = {"name": "private", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "status"),
    [([SOUND], NONE_KNOWN), ([SOUND, HOLED], FOUND), ([SOUND, UNKNOWN], NONE_KNOWN), ([UNKNOWN, UNKNOWN], NOT_ASKED)],
)
def test_the_status_says_what_is_known(dependencies, status):
    assert tell({"dependencies": dependencies}) == status


def test_a_vulnerability_is_told_with_its_names_and_its_cure(capsys):
    tell({"dependencies": [HOLED, UNKNOWN, SOUND]})
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "holed 2.0: PYSEC-1, CVE-1; fixed in 2.1"
    assert told[1] == "private: not looked up, not found"
    assert told[2] == "2 packages were looked up, 1 of them have known vulnerabilities."


def test_without_an_answer_nothing_is_known(capsys):
    assert tell(None) == NOT_ASKED
    assert capsys.readouterr().out.startswith("NOT AUDITED")

"""What a verb imports: start-up is watched by names of modules, because times are noise."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Made, User

# Each costs milliseconds, and is of no use to who only asks what there is.
HEAVY = {
    "asyncio",
    "cryptography",
    "ctypes",
    "email",
    "http",
    "multiprocessing",
    "numpy",
    "pydantic",
    "rehydrator.bundle.builder",
    "rehydrator.bundle.making",
    "rehydrator.bundle.rehydrate",
    "rehydrator.delta",
    "rehydrator.formats",
    "rehydrator.metadata",
    "rehydrator.serve",
    "ssl",
    "tarfile",
    "urllib.request",
    "urllib3",
    "xxhash",
    "yaml",
}


@pytest.mark.parametrize("verb", ["list", "print-stream-json"])
def test_verbs_that_only_tell(user: User, made: Made, verb: str) -> None:
    """They import what they need, and nothing that is heavy."""
    asked = [sys.executable, "-X", "importtime", "-m", "rehydrator", verb, "--bundle", made.reference]
    ran = subprocess.run(asked, env=user.environment(), capture_output=True, check=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert {"click", "rehydrator.bundle.reader"} <= imported
    assert sorted(HEAVY & imported) == []

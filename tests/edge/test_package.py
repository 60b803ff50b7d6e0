"""The package as pip builds it: for an Airflow whose DAGs come as a bundle, which brings no plugins."""

import importlib.metadata
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
LINK = re.compile(r"\]\(([^)]+)\)")


def test_every_link_of_its_metadata_is_absolute() -> None:
    """A package index shows the description outside the repository, and there a relative link leads nowhere."""
    metadata = SETUP["metadata"]
    description = (ROOT / metadata["long_description"].removeprefix("file: ")).read_text()
    urls = [line.partition(" = ")[2] for line in metadata["project_urls"].strip().splitlines()]
    links = LINK.findall(description)

    assert len(urls) > 1
    assert links
    assert [url for url in [*urls, *links] if not url.startswith("https://")] == []


@pytest.mark.slow
def test_building_it_leaves_nothing_that_is_taken_for_a_second_plugin(tmp_path: Path) -> None:
    """Airflow has plugins/ on its path, and pytest the repository too. A build's metadata there is one more plugin."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("the build backend cannot be had here, so no wheel could be built")
    assert built.returncode == 0, built.stderr

    seen = importlib.metadata.distributions(path=[str(source), str(source / "plugins")])
    assert [one.name for one in seen] == []
    [wheel] = wheels.glob("*.whl")
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    plugins = source / "plugins"
    wanted = {str(path.relative_to(plugins)) for path in (plugins / "pdi2").rglob("*") if path.is_file()}
    assert packed == wanted | {"pdi2_plugin.py"}

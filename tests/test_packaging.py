"""The wheel ships recjax and nothing else; the checkout runs the rest; the README's commands are what CI runs."""

import importlib.metadata
from pathlib import Path
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

REPO = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from the checkout with the installed build backend: no network."""
    pytest.importorskip("hatchling", reason="needs the test extra")
    pytest.importorskip("pip", reason="this environment has no pip")
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(REPO)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_ships_recjax_only(wheel):
    names = wheel.namelist()
    assert {n.split("/")[0] for n in names} == {
        "recjax",
        f"recjax-{PROJECT['project']['version']}.dist-info",
    }
    assert not [n for n in names if "__pycache__" in n or n.endswith((".ipynb", ".parquet"))]


def test_the_wheel_ships_all_of_recjax(wheel):
    inside = {n for n in wheel.namelist() if n.startswith("recjax/")}
    sources = {p.relative_to(REPO).as_posix() for p in (REPO / "recjax").rglob("*.py")}
    assert sources and sources <= inside


def test_the_wheel_carries_the_licence(wheel):
    found = [n for n in wheel.namelist() if n.endswith("licenses/LICENSE")]
    assert found and "The recjax authors" in wheel.read(found[0]).decode()


def test_the_installed_version_is_pyproject_s():
    try:
        installed = importlib.metadata.version("recjax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("recjax is not installed here: pip install -e .")
    assert installed == PROJECT["project"]["version"]


def test_rooms_outside_the_wheel_run_from_the_checkout(run_python):
    shown = run_python(
        "import scaling, experiments, launch; print(scaling.__file__)", devices=1
    ).stdout
    assert shown.startswith(str(REPO))


def test_constraints_cover_every_requirement_and_name_no_index():
    text = (REPO / "constraints.txt").read_text()
    pinned = {normal(line) for line in text.splitlines() if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    for name in PROJECT["project"]["dependencies"] + [
        r for e in ("test", "scaling", "serve", "notebooks") for r in extras[e]
    ]:
        assert normal(name) in pinned | {"recjax"}, f"constraints.txt does not pin {name}"
    assert "://" not in text and not re.search(r"^\s*(-|git\+)", text, re.M)


def test_the_library_needs_nothing_of_the_reports():
    """`pip install recjax` brings what recjax imports; charts and pages are the extra that the README's command names."""
    core = {normal(r) for r in PROJECT["project"]["dependencies"]}
    extra = {normal(r) for r in PROJECT["project"]["optional-dependencies"]["scaling"]}
    assert extra == {"jinja2", "matplotlib"} and not extra & core
    imports = re.compile(rf"^\s*(?:import|from) ({'|'.join(extra)}|markupsafe)\b", re.M)
    found = [p for p in (REPO / "recjax").rglob("*.py") if imports.search(p.read_text())]
    assert not found
    assert re.search(r"pip install -e '\.\[scaling\]' && python -m scaling\.run", readme())


def normal(requirement: str) -> str:
    """ "Array_Record>=0.8; ..." -> "array-record"."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_the_readme_s_test_command_is_where_ci_looks():
    marked = re.findall(
        r"<!-- test-command -->\n```bash\n(.+?)```\n<!-- /test-command -->", readme(), re.S
    )
    assert len(marked) == 1 and "pytest" in marked[0]


def test_links_of_the_documents_lead_somewhere():
    for page in (
        REPO / "README.md",
        REPO / "CONTRIBUTING.md",
        *sorted((REPO / "docs").glob("*.md")),
    ):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_network_fixture_refuses_other_machines():
    import socket

    with socket.socket() as s, pytest.raises(ConnectionRefusedError, match="network-free"):
        s.connect(("192.0.2.1", 80))  # TEST-NET-1: nobody's


def test_run_python_shows_what_failed(run_python):
    assert "8" in run_python("import jax; print(jax.device_count())").stdout
    with pytest.raises(AssertionError, match="the reason"):
        run_python("import sys; sys.exit('the reason')", devices=1)


def readme() -> str:
    return (REPO / "README.md").read_text()

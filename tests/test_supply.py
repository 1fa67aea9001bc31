"""What the product may not do with data that came from elsewhere, read off its source; and what it downloads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT

from kvattn.models.wheel import EMBEDDED
from kvattn.questions.datasets import SOURCES

FILES = sorted(p for top in ("kvattn", "app", "analyses") for p in (CHECKOUT / top).rglob("*.py"))
JAIL = (
    CHECKOUT / "kvattn" / "questions" / "sandbox" / "jail"
)  # runs programs, which is what it is for: in the sandbox's child alone
OWN_SERVER = {"kvattn/cli/app.py", "app/screenshots.py"}  # wait for the app on this machine to answer
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
NETWORK = {"requests", "httpx", "aiohttp", "urllib3", "ftplib", "telnetlib", "http.client", "urllib.request"}
FETCHES = {"snapshot_download", "hf_hub_download", "load_dataset", "urlopen", "urlretrieve"}
LOADERS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pd.read_pickle"}


def dotted(node: ast.expr) -> str:
    """The name that is called: "torch.load"."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str, jailed: bool = False) -> Iterator[str]:
    """What a file does that reads code out of data, or asks a network."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {n}" for n in names if n.split(".")[0] in PICKLES or n in NETWORK)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        said = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen") and not jailed:
            yield f"calls {name}"
        if (name in LOADERS or name.endswith(".read_pickle")) and said.get("weights_only") is not True:
            yield f"calls {name}"
        if said.get("allow_pickle") or said.get("trust_remote_code") or said.get("shell"):
            yield f"calls {name} with {said}"
        if name.endswith(".from_pretrained") and not {"local_files_only", "trust_remote_code"} & set(said):
            yield f"calls {name}, which may ask the Hub"
        if name.split(".")[-1] in FETCHES and "revision" not in {k.arg for k in node.keywords}:
            yield f"calls {name} without a revision"


def test_no_data_becomes_code_and_nothing_is_fetched_unpinned() -> None:
    assert len(FILES) > 100
    for path in FILES:
        name = str(path.relative_to(CHECKOUT))
        found = list(offences(path.read_text(encoding="utf-8"), path.is_relative_to(JAIL)))
        if name in OWN_SERVER:
            assert found == ["imports urllib.request", "calls urllib.request.urlopen without a revision"]
            assert "localhost" in path.read_text(encoding="utf-8")
        else:
            assert not found, name


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "exec(compile(x, 'f', 'exec'))",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, yaml.Loader)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x)",
        "subprocess.run(x, shell=True)",
        "snapshot_download(x)",
        "import urllib.request",
        "pandas.read_pickle(f)",
    ],
)
def test_offences_are_seen(line: str) -> None:
    assert list(offences(line))


def test_every_download_is_pinned() -> None:
    """Where the product fetches anything: a wheel by its SHA-256, data sets by commit, and the model that a user names,
    whose commit a run's manifest holds."""
    fetching = {p.name for p in FILES if re.search("|".join(FETCHES) + r'|"download"', p.read_text(encoding="utf-8"))}
    assert fetching == {"hub.py", "datasets.py", "wheel.py", *(Path(p).name for p in OWN_SERVER)}
    for source in SOURCES.values():
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
    for model in EMBEDDED.values():
        assert re.fullmatch(r"[\w-]+==[\d.]+", model.requirement)
        assert all(re.fullmatch(r"[0-9a-f]{64}", x) for x in (model.wheel_sha256, model.gguf_sha256))


def test_only_safetensors_and_text_are_taken_from_the_hub() -> None:
    from kvattn.models.hub import WANTED

    assert {Path(p).suffix for p in WANTED} == {".safetensors", ".json", ".jinja", ".model", ".txt"}

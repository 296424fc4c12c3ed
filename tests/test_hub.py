"""Models on a hub, by a server of its few endpoints on loopback, and the cards they come with."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
import torch

import scoresde
from conftest import generator
from scoresde.storage.description import weights

Files = dict[str, bytes]
REPO = "me/moons"


class Hub(ThreadingHTTPServer):
    """Repositories as lists of commits, each a dict of files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.commits: dict[str, list[Files]] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sha(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def at(self, repo: str, revision: str) -> tuple[str, Files]:
        commits = self.commits[repo]
        for number in range(len(commits)):
            if revision == self.sha(repo, number):
                return revision, commits[number]
        return self.sha(repo, len(commits) - 1), commits[-1]


class Answers(BaseHTTPRequestHandler):
    """What huggingface_hub asks for in an upload and a download."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def give(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = (found or file or [None, ""])[1]
        if repo not in self.server.commits:
            self.give(b"{}", 404, X_Error_Code="RepoNotFound")
        elif found:
            sha, files = self.server.at(repo, found[3] or "main")
            names = [{"rfilename": name} for name in files]
            answer: Any = {"id": repo, "sha": sha, "siblings": names}
            if found[2] == "tree":
                answer = [
                    {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}
                    for name, body in files.items()
                ]
            self.give(json.dumps(answer).encode(), Content_Type="application/json")
        elif file:
            sha, files = self.server.at(repo, file[2])
            body = files[file[3]]
            self.give(body, ETag=f'"{_oid(body)}"', X_Repo_Commit=sha)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer: dict[str, Any] = {"errors": [], "warnings": []}  # of the card's header
        if path == "/api/repos/create":
            about = json.loads(body)
            repo = f"{about.get('organization') or 'me'}/{about['name']}"
            self.server.commits.setdefault(repo, [{}])
            answer = {"url": f"{self.server.address}/{repo}", "name": repo, "id": repo}
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in files]}
        elif "/commit/" in path:
            repo = "/".join(path.split("/")[3:5])
            files = dict(self.server.commits[repo][-1])
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            self.server.commits[repo].append(files)
            sha = self.server.sha(repo, len(self.server.commits[repo]) - 1)
            url = f"{self.server.address}/{repo}/commit/{sha}"
            answer = {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}
        self.give(json.dumps(answer).encode(), Content_Type="application/json")


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        # Versions before 1.0 take these addresses in some places, whatever the endpoint.
        patch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server.commits.clear()
    server.asked.clear()
    return server


def fitted(**options: Any) -> scoresde.ScoreSDE:
    frame = pd.DataFrame(np.random.default_rng(0).normal(3, 2, (200, 2)), columns=["a", "b"])
    words = np.array(["low", "high"] * 100)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16, classes=2, **options)
    scoresde.fit(sde, frame, given={"y": words}, steps=20, progress=False, validation=None)
    return sde


def same(one: scoresde.ScoreSDE, other: scoresde.ScoreSDE) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_pushed_comes_back_to_the_bit(hub: Hub) -> None:
    sde = fitted()
    how = {"endpoint": hub.address, "token": "hf_none"}
    address = scoresde.push_to_hub(sde, REPO, license="mit", **how)
    assert address.startswith(f"{hub.address}/{REPO}/commit/")
    again = scoresde.from_pretrained(REPO, **how)
    assert same(sde, again)
    assert torch.equal(
        scoresde.sample(again.given(y="high"), 5, generator=generator()),
        scoresde.sample(sde.given(y="high"), 5, generator=generator()),
    )
    files = hub.commits[REPO][-1]
    assert sorted(re.sub("-[0-9a-f]{12}", "", name) for name in files) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]
    assert files["README.md"].decode() == scoresde.model_card(sde, name=REPO, license="mit")


def test_a_new_commit_replaces_the_model_and_the_old_one_stays_by_its_name(hub: Hub) -> None:
    how = {"endpoint": hub.address, "token": "hf_none"}
    first, second = fitted(), fitted(predict="x0")
    old = scoresde.push_to_hub(first, REPO, **how).rpartition("/")[2]
    hub.commits[REPO][-1]["notes.txt"] = b"mine"
    scoresde.push_to_hub(second, REPO, **how)
    names = list(hub.commits[REPO][-1])
    assert len([name for name in names if name.endswith(".safetensors")]) == 1
    assert "notes.txt" in names
    assert same(scoresde.from_pretrained(REPO, **how), second)
    assert same(scoresde.from_pretrained(REPO, revision=old, **how), first)
    # Only the model's own files are fetched.
    assert not any(path.endswith(("notes.txt", "README.md")) for path in hub.asked)


def test_a_repository_is_not_trusted(hub: Hub) -> None:
    how = {"endpoint": hub.address, "token": "hf_none"}
    scoresde.push_to_hub(fitted(), REPO, **how)
    files = hub.commits[REPO][-1]
    (name,) = [name for name in files if name.endswith(".safetensors")]
    files[name] = files[name][:-1] + b"\xff"
    with pytest.raises(scoresde.CheckpointError, match=r"^me/moons on the hub: .*damaged"):
        scoresde.from_pretrained(REPO, **how)
    del files["model.json"]
    hub.commits[REPO].append({**files, "pytorch_model.bin": b"cos\nsystem\n"})
    with pytest.raises(scoresde.CheckpointError, match="me/moons on the hub: no model"):
        scoresde.from_pretrained(REPO, **how)
    errors = pytest.importorskip("huggingface_hub.errors")
    with pytest.raises(errors.RepositoryNotFoundError):
        scoresde.from_pretrained("me/nothing", **how)


def test_a_folder_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sde = fitted()
    folder = scoresde.save(sde, tmp_path / "me")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert same(scoresde.from_pretrained(folder), sde)
    with pytest.raises(ValueError, match="revision= is of a repository"):
        scoresde.from_pretrained(folder, revision="main")
    with pytest.raises(
        ImportError, match=r"from_pretrained needs huggingface_hub: pip install sc"
    ):
        scoresde.from_pretrained(REPO)
    with pytest.raises(ImportError, match=r"push_to_hub needs huggingface_hub: .*\[hub\]"):
        scoresde.push_to_hub(sde, REPO)
    with pytest.raises(ValueError, match=r"no folder .*nothing/here/it, and it is no 'user/name'"):
        scoresde.from_pretrained("nothing/here/it")


def test_what_can_not_be_pushed_is_said_first() -> None:
    sde = fitted()
    with pytest.raises(ValueError, match="repo is 'user/name', got 'me/a b'"):
        scoresde.push_to_hub(sde, "me/a b")
    with pytest.raises(TypeError, match="private is True or False"):
        scoresde.push_to_hub(sde, REPO, private="yes")
    with pytest.raises(TypeError, match="license is text, got 3"):
        scoresde.push_to_hub(sde, REPO, license=3)
    with pytest.raises(ValueError, match="push_to_hub"):
        scoresde.push_to_hub(sde.given(y="low"), REPO)


# ---------------------------------------------------------------------- cards


def run_code(card: str, name: str, folder: Path) -> dict[str, Any]:
    """Run the code of a card, with the folder in place of the repository."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert f'"{name}"' in code
    space: dict[str, Any] = {}
    exec(code.replace(f'"{name}"', repr(str(folder))), space)
    return space


def test_a_card_says_what_the_model_is_and_its_code_runs(tmp_path: Path) -> None:
    sde = fitted()
    folder = scoresde.save(sde, tmp_path / "model")
    history = scoresde.History([10, 20], [0.9, 0.8], [20], [0.85], seconds=2.0)
    card = scoresde.model_card(
        sde, name=REPO, license="cc-by-4.0", data="Two columns.", history=history, evaluation=-3.25
    )
    assert card.startswith("---\nlibrary_name: scoresde\nlicense: cc-by-4.0\n")
    count = sum(p.numel() for p in sde.net.parameters())
    mean, scale = sde.mean.tolist(), sde.scale.tolist()
    for said in (
        "`VPSDE(beta_min=0.1, beta_max=20.0)`",
        "| network | `mlp`, width=16, classes=2 |",
        f"| parameters | {count:,} |",
        f"| column `a` | mean {mean[0]:.4g}, standard deviation {scale[0]:.4g} |",
        "| condition `y` | one of ",
        "Two columns.",
        "| last training loss | 0.8 |",
        "Mean held-out log p(x): -3.2500 nats",
    ):
        assert said in card, said
    space = run_code(card, REPO, folder)
    assert "model = model.given(y='high')" in card
    assert torch.equal(space["log_p"], scoresde.log_prob(sde.given(y="high"), space["x"]))


def test_a_card_has_the_settings_of_a_run_and_the_conditions_that_must_be_given(
    tmp_path: Path,
) -> None:
    sde = scoresde.build("rectified", "mlp", shape=(2,), width=8, vector=3, condition_dropout=0.0)
    x = torch.randn(64, 2, generator=generator())
    given = {"vector": torch.randn(64, 3, generator=generator(1))}
    run = tmp_path / "run"
    scoresde.fit(sde, x, given=given, steps=7, lr=0.004, checkpoints=run, validation=None)
    card = scoresde.model_card(sde, name=REPO, history=run)
    assert "| steps | 7 |" in card
    assert "| `lr` | 0.004 |" in card
    assert "model.given(vector=torch.zeros(3,))" in card
    assert run_code(card, REPO, run)["log_p"].shape == (16,)
    with pytest.raises(scoresde.CheckpointError, match="holds no checkpoint"):
        scoresde.model_card(sde, history=tmp_path)


@pytest.mark.parametrize("kind", ["flow", "stage", "untrained"])
def test_a_card_of_any_model_that_can_be_saved(kind: str, tmp_path: Path) -> None:
    model: Any = {
        "flow": lambda: scoresde.coupling_flow(shape=(2,), layers=2, width=8),
        "stage": lambda: scoresde.first_stage("vae", shape=(6,), latent=(2,), width=8),
        "untrained": lambda: scoresde.build(
            "ve", "dit", shape=(1, 8, 8), width=8, heads=2, depth=1
        ),
    }[kind]()
    card = scoresde.model_card(model, name=REPO, license='odd: "licence"')
    assert 'license: "odd: \\"licence\\""\n' in card
    assert "It has not been fitted" in card
    space = run_code(card, REPO, scoresde.save(model, tmp_path / "model"))
    assert same(space["model"], model)


WORDS = ("mit", "cc-by-4.0", "null", "No", "1.0", "0x10", "2026-01-01", ".nan", "a: b", 'say "it"')
ODD = ("mit\ntags: [x]", "mit # x", "\\", "\u2028", "é", "\U0001f600", "", "---", "1e3", "y")


@pytest.mark.parametrize("word", WORDS + ODD)
def test_a_license_is_text_of_the_header_and_nothing_else(word: str) -> None:
    yaml = pytest.importorskip("yaml")
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    card = scoresde.model_card(sde, license=word, name="a\n---\nb")
    assert card.isascii()
    assert card.count("\n---\n") == 1
    about = yaml.safe_load(card.split("---\n")[1])
    assert about["license"] == word
    assert set(about) == {"library_name", "license", "tags"}


def test_what_was_measured_is_a_number_or_text() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    for value in (-1.5, torch.tensor([-1.5]), torch.tensor(-1.5).numpy(), torch.tensor(-1.5)):
        card = scoresde.model_card(sde, evaluation=value)
        assert "Mean held-out log p(x): -1.5000 nats" in card
    for wrong in (True, torch.zeros(2)):
        with pytest.raises(TypeError, match="a mean log p or text"):
            scoresde.model_card(sde, evaluation=wrong)


def test_a_model_with_a_network_of_the_users_comes_back_with_it(hub: Hub) -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, vector=4, embed=torch.nn.Linear(3, 4))
    data = {"given": {"vector": torch.randn(50, 3)}, "steps": 1, "validation": None}
    scoresde.fit(sde, torch.randn(50, 2), **data)
    how = {"endpoint": hub.address, "token": "hf_none"}
    scoresde.push_to_hub(sde, REPO, **how)
    again = scoresde.from_pretrained(REPO, embed=torch.nn.Linear(3, 4), **how)
    assert same(sde, again)
    with pytest.raises(scoresde.CheckpointError, match=r"from_pretrained\(repo, embed=net\)"):
        scoresde.from_pretrained(REPO, **how)
    card = scoresde.model_card(sde)
    assert 'scoresde.from_pretrained("user/name", embed=networks)' in card
    assert "given(vector=...)" in card

"""Where a checkpoint comes from. The hub itself is out of reach here; its cache and its protocol are not."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.checkpoints.source import is_hub_name, local_folder
from harness.errors import GraftbenchError

REVISIONS = {"main": "a" * 40, "v1": "b" * 40}


def cached(hub: Path, name: str) -> Path:
    """A repository in the layout of the hub's cache: two revisions by name, each with its files."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in REVISIONS.items():
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text(f'{{"revision": "{revision}"}}')
    return repository


def in_a_process(name: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`local_folder` in a process of its own, since the hub's library reads its settings when it is imported."""
    program = (
        "import sys; from harness.checkpoints.source import local_folder; from harness.errors import GraftbenchError\n"
        "try: print(local_folder(sys.argv[1]))\n"
        "except GraftbenchError as error: sys.exit(str(error))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | settings
    return subprocess.run([sys.executable, "-c", program, name], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "commit"),
    [("owner/model", "a" * 40), ("owner/model@v1", "b" * 40), (f"owner/model@{'b' * 40}", "b" * 40)],
)
def test_a_hub_name_with_its_revision_is_found_in_the_cache(tmp_path: Path, name: str, commit: str) -> None:
    repository = cached(tmp_path, "owner/model")
    assert (
        Path(in_a_process(name, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path)).stdout.strip())
        == repository / "snapshots" / commit
    )


def test_a_revision_that_is_not_there_is_named(tmp_path: Path) -> None:
    cached(tmp_path, "owner/model")
    assert "'owner/model@v2' is no folder here, and the Hugging Face hub did not give it" in (
        in_a_process("owner/model@v2", HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path)).stderr
    )


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin", "training_args.bin"], ["config.json", "pytorch_model.bin"]),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "optimizer.bin"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
        ),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json", "adapter_model.safetensors"]),
        (["adapter_config.json", "adapter_model.bin"], ["adapter_config.json", "adapter_model.bin"]),
        (
            ["model.safetensors", "consolidated.safetensors", "checkpoint-9/model.safetensors"],
            ["model.safetensors"],
        ),
    ],
)
def test_pickles_are_downloaded_only_where_there_are_no_safetensors(
    tmp_path: Path, files: list[str], fetched: list[str]
) -> None:
    with hub_of(files) as endpoint:
        folder = Path(in_a_process("owner/model@v1", HF_ENDPOINT=endpoint, HF_HUB_CACHE=str(tmp_path)).stdout.strip())
    assert folder.name == REVISIONS["v1"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(fetched)


@contextmanager
def hub_of(files: list[str]) -> Iterator[str]:
    """A server on this machine that speaks as much of the hub's protocol as a download needs; each file is 1 byte."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_listing = self.path.startswith("/api/")
            commit = REVISIONS["v1"]
            listing = {"id": "owner/model", "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            tree = [{"type": "file", "path": file, "size": 1, "oid": "0" * 40} for file in files]
            body = json.dumps(tree if "/tree/" in self.path else listing).encode() if is_listing else b"x"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{self.path.rpartition("/")[2]}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder("owner/model") == tmp_path / "owner" / "model"


@pytest.mark.parametrize("name", ["/absolute/path", "./relative/path", "name", "a/b/c", "owner/name+other"])
def test_what_is_neither_a_folder_nor_a_hub_name(name: str) -> None:
    assert not is_hub_name(name)
    with pytest.raises(GraftbenchError, match="does not exist, and it is no hub name"):
        local_folder(name)

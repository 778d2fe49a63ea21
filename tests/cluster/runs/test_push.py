"""A model is published whole or not at all, and what other people publish is not trusted before it is checked."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save

from larmor import load_model, pull, push
from larmor.cluster.experiments.experiment import Experiment, dump_yaml
from larmor.cluster.runs.published import MARKER, open_place, read_listing
from larmor.cluster.runs.pull import pull_published, pull_run
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects import web_files
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from larmor.storage.objects.web_files import WebFiles
from tests.helpers import add_checkpoint, contents_of, make_generator, random_images, small_recipe
from tests.hub_server import HubServer, Repository, WebServer, serving
from tests.workbench import REPOSITORY

FILES = {"generator.safetensors", "config.yaml", "metrics.json", "model-card.md"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LARMOR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_model(folder: Path, seed: int = 5, **sections: Any) -> Path:
    """A pulled model."""
    recipe = small_recipe(**sections)
    run = RunFolder(str(folder.parent / f"run-{folder.name}"))
    run.create(dump_yaml(Experiment.model_validate({**recipe.model_dump(mode="json"), "name": "mine"})))
    weights = save(make_generator(small_recipe(), seed=seed).state_dict())
    add_checkpoint(
        run, folder.parent / "scratch", 10, {"val/psnr": 31.5}, {"generator.safetensors": weights}, str(seed)
    )
    pull_run(run, "psnr", folder)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_model(tmp_path / "other", seed=6)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(web_files, "_RETRY", web_files._RETRY.new(backoff_factor=0))
    with serving(WebServer()) as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """What HF_ENDPOINT and HF_TOKEN lead to, where the library is imported already."""
    import huggingface_hub

    with serving(HubServer()) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def weights_of(folder: Path) -> bytes:
    return (folder / "generator.safetensors").read_bytes()


def publish(model: Path, web: WebServer, scratch: Path) -> str:
    """The URL of a model on the web server."""
    push(model, str(scratch / "public"))
    web.files = {f"m/{name}": content for name, content in contents_of(scratch / "public").items()}
    return f"{web.url}/m"


class TestStore:
    def test_what_is_pushed_is_pulled_and_loaded(
        self, model: Path, tmp_path: Path, store_environment: dict[str, str]
    ) -> None:
        url = f"s3://larmor/{tmp_path.name}/public"
        assert push(model, url, licence="apache-2.0").is_new
        assert not push(model, url, licence="apache-2.0").is_new
        assert set(ObjectStore(url).list()) == FILES | {MARKER}
        pulled = pull(url, tmp_path / "back")
        assert (pulled.checkpoint.step, pulled.checkpoint.metrics["val/psnr"]) == (10, 31.5)
        assert set(contents_of(tmp_path / "back")) == FILES
        assert weights_of(tmp_path / "back") == weights_of(model)
        image = random_images(1, 32, 32)
        assert load_model(url)(image).equal(load_model(model)(image))

    def test_another_model_is_replaced_only_if_told(self, model: Path, other: Path, tmp_path: Path) -> None:
        place = tmp_path / "public"
        push(model, str(place))
        before = contents_of(place)
        with pytest.raises(InputError, match="holds another model; pass --overwrite"):
            push(other, str(place))
        assert contents_of(place) == before
        push(other, str(place), overwrite=True)
        assert weights_of(place) == weights_of(other)

    def test_what_is_no_model_is_never_touched(self, model: Path, tmp_path: Path) -> None:
        (tmp_path / "public").mkdir()
        (tmp_path / "public" / "thesis.txt").write_text("mine")
        with pytest.raises(InputError, match=r"holds thesis.txt, which belongs to no published model"):
            push(model, str(tmp_path / "public"), overwrite=True)
        assert contents_of(tmp_path / "public") == {"thesis.txt": b"mine"}

    def test_a_push_that_breaks_leaves_no_model(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = ObjectStore.write

        def breaks(self: ObjectStore, path: str, *arguments: Any, **options: Any) -> None:
            if path == "metrics.json":
                raise OSError("the line is cut")
            write(self, path, *arguments, **options)

        place = tmp_path / "public"
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "write", breaks)
            with pytest.raises(OSError, match="cut"):
                push(model, str(place))
        with open_place(str(place)) as there, pytest.raises(InputError, match="there is no published model here"):
            read_listing(there)
        push(model, str(place))
        assert pull(str(place), tmp_path / "back").checkpoint.step == 10

    def test_weights_that_have_changed_are_not_published(self, model: Path, tmp_path: Path) -> None:
        path = model / "generator.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(InputError, match="has changed since it was pulled"):
            push(model, str(tmp_path / "public"))
        path.unlink()
        with pytest.raises(InputError, match=r"no such file; a model directory is made by `larmor pull`"):
            push(model, str(tmp_path / "public"))
        assert not (tmp_path / "public").exists()

    def test_a_run_is_pushed_by_its_url(self, model: Path, tmp_path: Path) -> None:
        push(str(tmp_path / "run-model"), str(tmp_path / "public"))
        assert weights_of(tmp_path / "public") == weights_of(model)

    @pytest.mark.parametrize("option", ["metric", "trial", "prefer", "full"])
    def test_a_published_model_is_of_one_checkpoint(self, model: Path, tmp_path: Path, option: str) -> None:
        push(model, str(tmp_path / "public"))
        with pytest.raises(InputError, match=f"leave --{option} out"):
            pull(str(tmp_path / "public"), tmp_path / "back", **{option: "psnr"})  # type: ignore[arg-type]


class TestCard:
    def matter(self, folder: Path) -> dict[str, Any]:
        return dict(yaml.safe_load((folder / "model-card.md").read_text().split("---\n")[1]))

    def test_the_hubs_library_reads_the_figures(self, model: Path) -> None:
        from huggingface_hub import ModelCard

        data = ModelCard.load(str(model / "model-card.md")).data
        assert (data.library_name, data.pipeline_tag) == ("larmor", "image-to-image")
        assert {"mri", "image-to-image"} <= set(data.tags or ())
        (result,) = list(data.eval_results or [])
        assert (result.metric_type, result.metric_value, result.dataset_split) == ("psnr", 31.5, "validation")

    def test_a_licence_is_stated_or_its_absence_is_told(self, model: Path, tmp_path: Path) -> None:
        assert self.matter(model)["license"] == "unknown"
        assert "the card states no licence; --licence ID does" in push(model, str(tmp_path / "a")).notes
        assert push(model, str(tmp_path / "b"), licence="cc-by-4.0").notes == ()
        assert self.matter(tmp_path / "b")["license"] == "cc-by-4.0"
        with pytest.raises(InputError, match="is no id of a licence"):
            push(model, str(tmp_path / "c"), licence="mine: all\nrights")

    def test_a_card_of_an_older_larmor_is_written_anew(self, model: Path, tmp_path: Path) -> None:
        (model / "model-card.md").write_text("# old")
        push(model, str(tmp_path / "public"))
        assert self.matter(tmp_path / "public")["library_name"] == "larmor"


def cut(handler: Any, content: bytes) -> None:
    """Announces all, sends half."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def shorter(handler: Any, content: bytes) -> None:
    handler.answer(content[:-9])


def endless(handler: Any, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        handler.close_connection = True


def silent(handler: Any, content: bytes) -> None:
    time.sleep(3)
    handler.close_connection = True


def status(code: int) -> Callable[[Any, bytes], None]:
    return lambda handler, content: handler.answer(b"", code)


def packed(handler: Any, content: bytes) -> None:
    handler.answer(content, Content_Encoding="gzip")


def to_plain_http(handler: Any, content: bytes) -> None:
    handler.answer(b"", 302, Location="http://example.invalid/model.json")


def circle(handler: Any, content: bytes) -> None:
    handler.answer(b"", 302, Location=handler.path)


WEIGHTS_FAULTS: dict[str, tuple[Any, str]] = {
    "wrong bytes": (lambda handler, content: handler.answer(bytes(len(content))), "checksum .* does not match"),
    "broken off": (cut, "cannot be reached, or broke off"),
    "shorter": (shorter, r"ends after \d+ of \d+ bytes"),
    "endless": (endless, r"has more than \d+ bytes"),
    "not there": (status(404), "generator.safetensors is missing there"),
    "server error": (status(500), r"the server fails \(500"),
    "refused": (status(403), r"the server refuses \(403"),
    "packed": (packed, "the server packs what it sends"),
}
LISTING_FAULTS: dict[str, tuple[Any, str]] = {
    "endless": (endless, r"model.json: has more than \d+ bytes"),
    "not there": (status(404), "there is no published model here"),
    "server error": (status(503), r"the server fails \(503"),
    "to plain http": (to_plain_http, "leads to another place than https"),
    "circle": (circle, "leads in a circle"),
    "no JSON": (lambda handler, content: handler.answer(b"<html>"), "is not what `larmor push` writes"),
}


class TestWeb:
    @pytest.mark.parametrize("archive", [False, True])
    def test_a_folder_and_an_archive_are_pulled(
        self, model: Path, web: WebServer, tmp_path: Path, archive: bool
    ) -> None:
        url = publish(model, web, tmp_path)
        if archive:
            web.files = {"m.zip": zipped({f"m/{name}": web.files[f"m/{name}"] for name in (*FILES, MARKER)})}
            url = f"{web.url}/m.zip"
        pull(url, tmp_path / "back")
        assert set(contents_of(tmp_path / "back")) == FILES
        assert weights_of(tmp_path / "back") == weights_of(model)

    @pytest.mark.parametrize("case", WEIGHTS_FAULTS)
    def test_weights_that_do_not_arrive_as_they_should(
        self, model: Path, web: WebServer, tmp_path: Path, case: str
    ) -> None:
        url = publish(model, web, tmp_path)
        web.faults["generator.safetensors"], reason = WEIGHTS_FAULTS[case]
        with pytest.raises(InputError, match=reason) as caught:
            pull(url, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        assert (tmp_path / "back.partial").exists() == isinstance(caught.value, StoreAway), "what can be resumed stays"
        web.faults.clear()
        pull(url, tmp_path / "back")
        assert weights_of(tmp_path / "back") == weights_of(model)
        assert not (tmp_path / "back.partial").exists()

    @pytest.mark.parametrize("case", LISTING_FAULTS)
    def test_a_listing_that_does_not_arrive_as_it_should(
        self, model: Path, web: WebServer, tmp_path: Path, case: str
    ) -> None:
        url = publish(model, web, tmp_path)
        web.faults[MARKER], reason = LISTING_FAULTS[case]
        with pytest.raises(InputError, match=reason):
            pull(url, tmp_path / "back")
        assert not (tmp_path / "back").exists()

    def test_a_server_that_says_nothing_is_left(self, web: WebServer) -> None:
        web.faults[MARKER] = silent
        with pytest.raises(StoreAway, match="cannot be reached"):
            WebFiles(web.url, timeout=(0.2, 0.2)).read(MARKER, 100)

    def test_what_broke_off_is_resumed(self, web: WebServer, tmp_path: Path) -> None:
        content = bytes(range(256)) * 2000
        web.files = {"m/weights": content}
        web.faults["weights"] = cut
        with pytest.raises(StoreAway):
            WebFiles(f"{web.url}/m").download("weights", tmp_path / "weights", len(content))
        left = (tmp_path / "weights.partial").stat().st_size
        assert 0 < left < len(content)
        web.faults.clear()
        WebFiles(f"{web.url}/m").download("weights", tmp_path / "weights", len(content))
        assert (tmp_path / "weights").read_bytes() == content
        assert web.log[-1][2]["Range"] == f"bytes={left}-"

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"../../evil": {"size": 1, "sha256": "0"}}, "outside of its folder"),
            ({"/etc/evil": {"size": 1, "sha256": "0"}}, "outside of its folder"),
            ({"evil.py": {"size": 1, "sha256": "0"}}, "names 'evil.py', which no model has"),
            ({"config.yaml": {"size": 2**40, "sha256": "0"}}, "the limit is 1048576"),
            ({"config.yaml": {"size": -1, "sha256": "0"}}, "the limit is 1048576"),
            ({"config.yaml": "text"}, "is not what `larmor push` writes"),
            ({"config.yaml": None}, "names no config.yaml"),
        ],
    )
    def test_names_and_sizes_of_a_listing_are_checked(
        self, model: Path, web: WebServer, tmp_path: Path, change: dict[str, Any], reason: str
    ) -> None:
        url = publish(model, web, tmp_path)
        document = json.loads(web.files[f"m/{MARKER}"])
        document["files"] = {key: value for key, value in {**document["files"], **change}.items() if value}
        web.files[f"m/{MARKER}"] = json.dumps(document).encode()
        with pytest.raises(InputError, match=reason):
            pull(url, tmp_path / "back")
        assert not (tmp_path / "back").exists()

    def test_a_newer_format_is_refused(self, model: Path, web: WebServer, tmp_path: Path) -> None:
        url = publish(model, web, tmp_path)
        web.files[f"m/{MARKER}"] = json.dumps({"format": 2}).encode()
        with pytest.raises(InputError, match="has model format 2, this Larmor reads up to 1; update Larmor"):
            pull(url, tmp_path / "back")

    def test_a_pickle_in_place_of_weights_is_refused(self, model: Path, web: WebServer, tmp_path: Path) -> None:
        """Also where every checksum is right: the author is the one who is not trusted."""
        import hashlib

        url = publish(model, web, tmp_path)
        evil = pickle.dumps({"weights": [1.0]}, protocol=2)
        document, record = (json.loads(web.files[f"m/{name}"]) for name in (MARKER, "metrics.json"))
        digest = hashlib.sha256(evil).hexdigest()
        record["sha256"]["generator.safetensors"] = digest
        new = {"generator.safetensors": evil, "metrics.json": json.dumps(record).encode()}
        for name, content in new.items():
            web.files[f"m/{name}"] = content
            document["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        web.files[f"m/{MARKER}"] = json.dumps(document).encode()
        with pytest.raises(InputError, match="is not a safetensors file"):
            pull(url, tmp_path / "back")
        assert not (tmp_path / "back").exists()

    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            (["../evil", "../../model.json"], "no published model"),
            (["a/model.json", "b/model.json"], "holds 2 files model.json"),
            (["readme"], "no published model"),
        ],
    )
    def test_an_archive_writes_nothing_beside(
        self, web: WebServer, tmp_path: Path, members: list[str], reason: str
    ) -> None:
        web.files = {"m.zip": zipped(dict.fromkeys(members, b"{}"))}
        before = set(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=reason if "evil" not in members[0] else "is not what"):
            pull(f"{web.url}/m.zip", tmp_path / "back")
        assert set(tmp_path.rglob("*")) == before

    def test_what_is_no_archive_is_said(self, web: WebServer, tmp_path: Path) -> None:
        web.files = {"m.zip": b"PK but no more"}
        with pytest.raises(InputError, match=r"is no archive \(.zip\) that can be read"):
            pull(f"{web.url}/m.zip", tmp_path / "back")
        with pytest.raises(InputError, match="there is no such file"):
            pull(f"{web.url}/n.zip", tmp_path / "back")

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://example.invalid/model", "only https:// is trusted"),
            ("http://127.0.0.1.example.invalid/model", "only https:// is trusted"),
            ("https://ann:secret@example.invalid/model", "a password in a URL ends up in logs"),
        ],
    )
    def test_where_no_request_is_made(self, tmp_path: Path, url: str, reason: str) -> None:
        with pytest.raises(InputError, match=reason) as caught:
            pull(url, tmp_path / "back")
        assert "secret" not in str(caught.value)

    def test_a_signed_url_is_not_shown(self, model: Path, web: WebServer, tmp_path: Path) -> None:
        url = publish(model, web, tmp_path)
        web.faults["generator.safetensors"] = status(403)
        with pytest.raises(InputError) as caught:
            pull(f"{url}?signature=secret", tmp_path / "back")
        assert "secret" not in str(caught.value)
        assert web.log[-1][1].endswith("generator.safetensors?signature=secret")


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class TestHub:
    def test_one_commit_brings_all_and_the_model_comes_back(self, model: Path, hub: HubServer, tmp_path: Path) -> None:
        push(model, "hf://lab/heads", licence="mit")
        repository = hub.repositories["lab/heads"]
        assert repository.private
        assert len(repository.commits) == 2, "the first one is the hub's own"
        files = repository.commits[-1][1]
        assert set(files) == FILES | {MARKER, "README.md", ".gitattributes"}
        assert files["README.md"].startswith(b"---\nlicense: mit\nlibrary_name: larmor\n")
        pull("hf://lab/heads", tmp_path / "back")
        assert weights_of(tmp_path / "back") == weights_of(model)
        large = [headers for _, path, headers in hub.log if path.startswith("/lfs/")]
        assert large, "weights are read by a redirect"

    def test_the_command_line_finds_the_hub_by_its_own_variables(
        self, model: Path, hub: HubServer, tmp_path: Path
    ) -> None:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "PYTHONPATH": str(REPOSITORY)}
        for words in (("push", str(model), "hf://lab/heads"), ("pull", "hf://lab/heads", "--to", "back")):
            command = [sys.executable, "-m", "larmor", *words]
            subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
        assert weights_of(tmp_path / "back") == weights_of(model)

    def test_another_model_is_replaced_only_if_told(
        self, model: Path, other: Path, hub: HubServer, tmp_path: Path
    ) -> None:
        push(model, "hf://lab/heads", public=True)
        first = hub.repositories["lab/heads"].commits[-1][0]
        assert not hub.repositories["lab/heads"].private
        assert not push(model, "hf://lab/heads").is_new
        with pytest.raises(InputError, match="holds another model; pass --overwrite"):
            push(other, "hf://lab/heads")
        push(other, "hf://lab/heads", overwrite=True)
        pull("hf://lab/heads", tmp_path / "new")
        pull(f"hf://lab/heads@{first}", tmp_path / "old")
        assert (weights_of(tmp_path / "new"), weights_of(tmp_path / "old")) == (weights_of(other), weights_of(model))

    def test_a_repository_of_something_else_is_left_alone(self, model: Path, hub: HubServer) -> None:
        hub.repositories["lab/book"] = Repository(False, [("1" * 40, {"thesis.tex": b"mine"})])
        with pytest.raises(InputError, match=r"holds thesis.tex, which belongs to no model of Larmor"):
            push(model, "hf://lab/book", overwrite=True)
        assert len(hub.repositories["lab/book"].commits) == 1

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("hf://lab", r"write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
            ("hf://lab/heads/../../x", "is no repository of a hub"),
            ("hf://lab/none", "the hub has no such repository; check the name, and whether HF_TOKEN"),
            ("hf://lab/book@v2", "the hub has no such revision"),
            ("hf://lab/book", "there is no published model here"),
        ],
    )
    def test_what_is_not_there_is_said(self, hub: HubServer, tmp_path: Path, url: str, reason: str) -> None:
        hub.repositories["lab/book"] = Repository(False, [("1" * 40, {"thesis.tex": b"mine"})])
        with pytest.raises(InputError, match=reason):
            pull(url, tmp_path / "back")

    def test_a_private_one_needs_the_token(
        self, model: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        push(model, "hf://lab/heads")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(InputError, match="HF_TOKEN") as caught:
            pull("hf://lab/heads", tmp_path / "back")
        assert "hf_wrong" not in str(caught.value)
        with pytest.raises(InputError, match="HF_TOKEN"):
            push(model, "hf://lab/more")

    def test_a_token_is_sent_to_no_plain_http(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.example.invalid")
        with pytest.raises(InputError, match="only https:// is trusted"):
            pull("hf://lab/heads", tmp_path / "back")

    def test_a_hub_that_is_away_is_said(self, hub: HubServer, tmp_path: Path) -> None:
        hub.close()
        with pytest.raises(StoreAway, match=r"the hub at http://127.0.0.1:\d+ cannot be reached"):
            pull("hf://lab/heads", tmp_path / "back")

    def test_no_code_of_a_hub_is_run(self, hub: HubServer, tmp_path: Path) -> None:
        model = make_model(tmp_path / "coded", generator={"name": "os:getcwd", "options": {}})
        push(model, "hf://lab/coded")
        with pytest.raises(InputError, match=r"runs code that is not Larmor's .*--trust-code"):
            load_model("hf://lab/coded")


class TestCache:
    def test_a_url_serves_offline_once_it_was_used(
        self, model: Path, web: WebServer, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        url, image = publish(model, web, tmp_path), random_images(1, 32, 32)
        expected = load_model(url)(image)
        asked = len(web.log)
        load_model(url)
        assert [path for _, path, _ in web.log[asked:]] == [f"/m/{MARKER}"], "weights come once"
        web.close()
        with caplog.at_level(logging.WARNING):
            assert load_model(url)(image).equal(expected)
        assert "using what it gave last" in caplog.text
        with pytest.raises(StoreAway):
            load_model(f"{url}/other")

    def test_a_model_that_was_replaced_or_removed_is_noticed(
        self, model: Path, other: Path, web: WebServer, tmp_path: Path
    ) -> None:
        url, image = publish(model, web, tmp_path), random_images(1, 32, 32)
        first = load_model(url)(image)
        push(other, str(tmp_path / "second"))
        web.files = {f"m/{name}": content for name, content in contents_of(tmp_path / "second").items()}
        assert not load_model(url)(image).equal(first)
        web.files = {}
        with pytest.raises(InputError, match="no published model here"):
            load_model(url)

    def test_a_run_is_read_again_only_when_its_best_changes(self, model: Path, tmp_path: Path, home: Path) -> None:
        run = str(tmp_path / "run-model")
        load_model(run)
        kept = {path.name for path in (home / "models").iterdir() if path.is_dir()} - {"references"}
        assert len(kept) == 1
        load_model(run)
        weights = save(make_generator(small_recipe(), seed=9).state_dict())
        files = {"generator.safetensors": weights}
        add_checkpoint(RunFolder(run), tmp_path / "scratch", 20, {"val/psnr": 40.0}, files)
        image = random_images(1, 32, 32)
        assert load_model(run)(image).equal(make_generator(small_recipe(), seed=9)(image))

    def test_a_pull_that_broke_is_resumed_for_the_same_model_only(
        self, model: Path, other: Path, web: WebServer, tmp_path: Path
    ) -> None:
        url = publish(model, web, tmp_path)
        web.faults["generator.safetensors"] = cut
        with pytest.raises(StoreAway):
            pull(url, tmp_path / "back")
        web.faults.clear()
        push(other, str(tmp_path / "second"))
        web.files = {f"m/{name}": content for name, content in contents_of(tmp_path / "second").items()}
        with open_place(url) as place:
            pull_published(place, read_listing(place), tmp_path / "back")
        assert weights_of(tmp_path / "back") == weights_of(other)

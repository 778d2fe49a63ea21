"""Mistakes as a person meets them: one sentence with value, cause and remedy, no traceback, nothing half-written."""

from __future__ import annotations

import configparser
import contextlib
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from s3fs import S3FileSystem

from larmor.cli import main
from larmor.cluster.experiments.experiment import dump_yaml
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.conversion.convert import ConvertOptions, convert
from larmor.storage.dataset import dataset
from larmor.storage.formats.recognise import find_sources
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.ports import free_ports
from larmor.tuning.search.experiment import load_sweep_experiment
from larmor.tuning.search.sweep_folder import SweepFolder
from tests import workbench
from tests.helpers import (
    add_checkpoint,
    contents_of,
    ellipsoid,
    flip_byte,
    small_recipe,
    write_heads,
    write_model,
    write_volume,
)

SMALL = ("--matrix", "64", "--min-foreground", "0.02")
SUBJECTS = ("ann", "bob", "cat")
HELD_OUT = {"validation": ["bob"], "test": ["cat"]}


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
Refused = Callable[..., str]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process, in an empty folder; anything but a clean exit is an error of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARMOR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LARMOR_DEBUG", raising=False)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["larmor", *map(str, arguments)])
        S3FileSystem.clear_instance_cache()
        code: Any = 0
        try:
            main.main()
        except SystemExit as ending:
            code = ending.code
        printed = capsys.readouterr()
        return Outcome(code or 0, printed.out, printed.err)

    return run


@pytest.fixture
def refused(cli: Command, tmp_path: Path) -> Refused:
    """Run a command that must fail, and say why with all of `parts`, and leave every file here as it was."""

    def run(arguments: tuple[object, ...], *parts: object) -> str:
        before = tree(tmp_path)
        outcome = cli(*arguments)
        assert outcome.code in (1, 2), outcome
        check_message(outcome.err, *parts)
        assert tree(tmp_path) == before
        return outcome.err

    return run


def check_message(text: str, *parts: object) -> None:
    assert [str(part) for part in parts if str(part) not in text] == [], text
    assert "Traceback" not in text
    assert len(text) < 1500, "a person reads it"


def tree(folder: Path) -> tuple[set[Path], dict[str, bytes]]:
    """Every path below a folder, and the contents of the files."""
    return set(folder.rglob("*")), contents_of(folder)


@pytest.fixture
def heads(tmp_path: Path) -> list[Path]:
    return write_heads(tmp_path / "heads", SUBJECTS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small data set on disk that no test changes."""
    folder = tmp_path_factory.mktemp("bad-input")
    convert_heads(write_heads(folder / "heads", SUBJECTS), str(folder / "data"))
    return str(folder / "data")


def convert_heads(heads: list[Path], url: str) -> None:
    convert(find_sources([str(path) for path in heads]), url, ConvertOptions((64, 64), 0.02, HELD_OUT))


def overrides(data: str, *more: str, output: str = "results") -> tuple[str, ...]:
    small = ("data.crop=[32,32]", "generator.width=4", "critic.width=4", "training.num_steps=1")
    return (f"data.url={data}", f"output_url={output}", "name=mine", *small, "cluster.num_workers=1", *more)


def train(data: str, *more: str) -> tuple[str, ...]:
    return ("train", "laptop", *overrides(data, *more))


def make_run(data: str, *more: str, output: str = "results") -> RunFolder:
    """A run that has begun, and has no checkpoint yet."""
    experiment = load_sweep_experiment("laptop", overrides(data, *more, output=output)).training_part()
    run = RunFolder(experiment.run_url)
    assert run.create(dump_yaml(experiment))
    return run


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestConvert:
    @staticmethod
    def make_bad(kind: str, path: Path) -> None:
        if kind == "text":
            path.write_text("not a volume")
        elif kind == "truncated":
            whole = write_volume(path, ellipsoid((28, 14, 30))).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        elif kind == "nan":
            values = ellipsoid((28, 14, 30))
            values[3, 4, 5] = np.nan
            write_volume(path, values)
        elif kind == "constant":
            write_volume(path, np.full((28, 14, 30), 7, np.float32))

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("text", "does not match its suffix"),
            ("truncated", "cannot be read to its end"),
            ("nan", "1 of 11760 voxels are not finite"),
            ("constant", "every voxel has the same value"),
        ],
    )
    def test_a_bad_volume(self, heads: list[Path], refused: Refused, kind: str, reason: str) -> None:
        self.make_bad(kind, heads[0].with_name("dan.nii.gz"))
        parts = ("dan.nii.gz", reason, "nothing was written", "--skip-invalid")
        refused(("convert", "heads", "--to", "data", *SMALL), *parts)

    def test_sources_that_are_not_there(self, heads: list[Path], refused: Refused, tmp_path: Path) -> None:
        refused(("convert", "nobody.nii.gz", "--to", "data"), "nobody.nii.gz", "no such file or folder")
        (tmp_path / "empty").mkdir()
        refused(("convert", "empty", "--to", "data"), "empty", "no volume", ".nii.gz")
        refused(("convert", "heads/*.dcm", "--to", "data"), "heads/*.dcm", "no volume matches", ".nii.gz")
        (tmp_path / "notes.txt").write_text("not a volume")
        refused(("convert", "heads", "notes.txt", "--to", "data"), "notes.txt", "not a file of a known kind", ".dcm")
        refused(("convert", "ftp://host/heads", "--to", "data"), "ftp://host/heads", "no such file or folder")

    def test_a_series(self, heads: list[Path], refused: Refused, tmp_path: Path) -> None:
        path = write_volume(tmp_path / "heads" / "bold.nii", np.stack([ellipsoid((28, 14, 30))] * 3, axis=3))
        refused(("convert", "heads", "--to", "data", *SMALL), "bold.nii", "(28, 14, 30, 3)", "--plane native")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(
            ("convert", "heads", "--to", "data", "--plane", "native", *SMALL), "bold.nii: cannot be read to its end"
        )

    def test_a_name_that_two_files_have(self, heads: list[Path], refused: Refused, tmp_path: Path) -> None:
        write_volume(heads[0].parent / "ann.nii", ellipsoid((28, 14, 30)))
        parts = ("volume ann comes from several files", "heads/ann.nii.gz", "heads/ann.nii", "a name of its own")
        refused(("convert", "heads", "--to", "data", *SMALL), *parts)

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            (("--validation", "ann", "--test", "ann"), ("'ann'", "validation", "test", "choose one")),
            (("--validation", "zoe"), ("'zoe'", "not among the sources", "ann, bob, cat")),
            (("--splits", "twice.yaml"), ("'ann'", "validation", "test", "choose one")),
            (("--splits", "nothere.yaml"), ("nothere.yaml", "no such file")),
            (("--splits", "heads/ann.nii.gz"), ("heads/ann.nii.gz", "is not YAML")),
            (("--min-foreground", "0.9"), ("90%", "'train'", "lower --min-foreground")),
            (("--matrix", "8"), ("--matrix", "32")),
            (("--plane", "axial"), ("--plane axial", "coronal, native")),
        ],
    )
    def test_splits_and_limits(
        self, heads: list[Path], refused: Refused, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
    ) -> None:
        (tmp_path / "twice.yaml").write_text("validation: [ann, bob]\ntest: [ann, cat]\n")
        refused(("convert", "heads", "--to", "data", *SMALL, *arguments), *parts)

    def test_too_few_subjects(self, heads: list[Path], refused: Refused) -> None:
        refused(("convert", heads[0], heads[1], "--to", "data", *SMALL), "2 subject(s)", "at least 3", "--validation")

    def test_an_existing_data_set_is_replaced_only_on_demand_and_only_by_a_good_one(
        self, heads: list[Path], cli: Command, refused: Refused, tmp_path: Path
    ) -> None:
        command = ("convert", "heads", "--to", "data", *SMALL)
        assert cli(*command).code == 0
        refused(command, tmp_path / "data", "there is a data set here already", "--overwrite")
        refused((*command, "--overwrite", "--min-foreground", "0.9"), "90%", "lower --min-foreground")
        refused((*command, "--overwrite", "--test", "zoe"), "'zoe'")
        self.make_bad("nan", heads[0].with_name("dan.nii.gz"))
        refused((*command, "--overwrite"), "dan.nii.gz", "not finite")
        heads[0].with_name("dan.nii.gz").unlink()
        matrix = ("--matrix", "96")
        assert cli(*command, *matrix, "--overwrite").code == 0
        assert dataset.read_split(ObjectStore(tmp_path / "data"), "train").largest_matrix == (96, 96)

    def test_if_missing_asks_for_a_data_set_that_can_be_read(
        self, heads: list[Path], cli: Command, refused: Refused, tmp_path: Path
    ) -> None:
        command = ("convert", "heads", "--to", "data", *SMALL)
        assert cli(*command, "--if-missing").code == 0
        before = tree(tmp_path)
        again = cli(*command, "--if-missing")
        assert (again.code, tree(tmp_path)) == (0, before)
        assert "nothing to do" in again.out
        root = tmp_path / "data" / "zarr.json"
        root.write_text(root.read_text().replace(f'"format": {dataset.FORMAT_VERSION}', '"format": 1'))
        refused((*command, "--if-missing"), tmp_path / "data", "has format 1", "convert again with --overwrite")

    def test_what_was_taken_for_granted_is_said_once(self, heads: list[Path], cli: Command, tmp_path: Path) -> None:
        for head in heads[:2]:
            image: Any = nibabel.load(head)
            nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None), head)
        names = ", ".join(head.name.removesuffix(".nii.gz") for head in heads[:2])
        write_model(tmp_path / "model", small_recipe())
        commands = (("convert", "heads", "--to", "data", *SMALL), ("reconstruct", "model", "heads", "--to", "images"))
        for command in commands:
            outcome = cli(*command)
            assert outcome.code == 0, outcome
            said = " ".join(outcome.out.split())
            assert said.count(f"note: {names}: the header states no orientation") == 1
            assert said.count("note:") == 1
        assert "no orientation" in ObjectStore(tmp_path / "data").read("zarr.json").decode()

    def test_damage_is_named_and_counted(
        self, heads: list[Path], cli: Command, refused: Refused, tmp_path: Path
    ) -> None:
        assert cli("convert", "heads", "--to", "data", *SMALL).code == 0
        assert "all is well" in cli("verify", "data").out
        flip_byte(ObjectStore(tmp_path / "data"), "train/kspace/c/0/0/0/0", 70)
        refused(("verify", "data"), "data/train/kspace/c/0/0/0/0: slice 0 (row 0) is damaged", "convert the data again")
        assert "2 problem(s)" in cli("verify", "data").out
        refused(("verify", "nothere"), "nothere", "there is no data set here", "larmor convert")

    def test_places_that_hold_something_else(self, heads: list[Path], refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.tex").write_text("precious")
        for more in ((), ("--overwrite",)):
            parts = (tmp_path / "thesis", "holds other files", "chapter.tex", "choose an empty place")
            refused(("convert", "heads", "--to", "thesis", *SMALL, *more), *parts)
        for place in ("thesis/chapter.tex", "thesis/chapter.tex/deeper"):
            refused(("convert", "heads", "--to", place, *SMALL), tmp_path / place, "is a file", "another place")
        refused(("convert", "heads", "--to", "ftp://host/data", *SMALL), "ftp://host/data", "local path, or s3://")


@dataclass(frozen=True)
class Shop:
    url: str
    endpoint: str
    access_key: str
    secret: str

    def commands(self, url: str) -> list[tuple[str, ...]]:
        """What touches the store first: each must refuse, and change nothing."""
        return [
            ("convert", "heads", "--to", f"{url}/new", *SMALL),
            ("convert", "heads", "--to", f"{url}/data", *SMALL, "--overwrite"),
            ("train", "laptop", *overrides(f"{url}/data", "loss.a=7", output=url), "--local", "--overwrite"),
            ("pull", f"{url}/runs/mine", "--to", "model"),
        ]

    def settings(self, **changes: str) -> dict[str, str]:
        right = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }
        return {**right, **changes}


@contextlib.contextmanager
def aws(settings: dict[str, str]) -> Iterator[None]:
    """Only these AWS settings, and no role of the machine."""
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_CONFIG_FILE": "/nowhere"}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **nowhere, **settings}.items():
            patch.setenv(name, value)
        yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def shop(embedded_store: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A data set and a run in the real store."""
    folder, url = tmp_path_factory.mktemp("shop"), f"s3://larmor/{uuid.uuid4().hex}"
    environment = embedded_store.environment()
    with aws(environment):
        convert_heads(write_heads(folder / "heads", SUBJECTS), f"{url}/data")
        run = make_run(f"{url}/data", output=url)
        add_checkpoint(run, folder / "scratch", 1, {"val/psnr": 20.0})
    keys = configparser.ConfigParser()
    keys.read(environment["AWS_SHARED_CREDENTIALS_FILE"])
    access_key, secret = keys["larmor"]["aws_access_key_id"], keys["larmor"]["aws_secret_access_key"]
    return Shop(url, str(embedded_store.status().endpoint), access_key, secret)


@pytest.mark.usefixtures("store_environment", "heads")
class TestObjectStore:
    @pytest.mark.timeout(90)  # each command ends by itself within seconds, whatever the store does
    @pytest.mark.parametrize(
        ("mistake", "parts"),
        [
            ("wrong secret", ("access refused", "signature", "check the credentials", "AWS_PROFILE")),
            ("unknown key", ("access refused", "access key", "does not exist", "check the credentials")),
            ("no keys", ("no S3 credentials were found", "larmor store start", "AWS_PROFILE")),
            ("half a key", ("no S3 credentials were found", "AWS_SECRET_ACCESS_KEY")),
            ("unknown profile", ("nobody", "could not be found", "correct AWS_PROFILE")),
            ("broken profile", ("is not set up right", "broken.ini", "check the AWS settings")),
            ("closed port", ("cannot be reached", "{endpoint}", "larmor store status", "AWS_ENDPOINT_URL")),
            ("no URL", ("somewhere", "correct AWS_ENDPOINT_URL")),
            ("https", ("no secure connection", "http:// or https://", "AWS_CA_BUNDLE")),
        ],
    )
    def test_every_command_says_what_is_wrong(
        self, shop: Shop, refused: Refused, tmp_path: Path, mistake: str, parts: tuple[str, ...]
    ) -> None:
        (tmp_path / "broken.ini").write_text("no section\n")
        endpoint = f"http://127.0.0.1:{closed_port()}"
        settings = {
            "wrong secret": shop.settings(AWS_SECRET_ACCESS_KEY="f" * 40),
            "unknown key": shop.settings(AWS_ACCESS_KEY_ID="LARMORNOBODY"),
            "no keys": {"AWS_ENDPOINT_URL": shop.endpoint},
            "half a key": {"AWS_ENDPOINT_URL": shop.endpoint, "AWS_ACCESS_KEY_ID": shop.access_key},
            "unknown profile": {"AWS_ENDPOINT_URL": shop.endpoint, "AWS_PROFILE": "nobody"},
            "broken profile": {"AWS_PROFILE": "nobody", "AWS_CONFIG_FILE": str(tmp_path / "broken.ini")},
            "closed port": shop.settings(AWS_ENDPOINT_URL=endpoint),
            "no URL": shop.settings(AWS_ENDPOINT_URL="somewhere"),
            "https": shop.settings(AWS_ENDPOINT_URL=shop.endpoint.replace("http://", "https://")),
        }
        before = ObjectStore(shop.url).list()
        for command in shop.commands(shop.url):
            with aws(settings[mistake]):
                message = refused(command, shop.url, *(part.format(endpoint=endpoint) for part in parts))
            assert shop.secret not in message
        assert ObjectStore(shop.url).list() == before
        assert len(before) > 10, "there was something to lose"

    def test_a_bucket_that_is_not_there(self, shop: Shop, refused: Refused) -> None:
        for command in shop.commands("s3://larmor-nothere"):
            refused(command, "s3://larmor-nothere", "'larmor-nothere' does not exist", "create it, or correct the URL")

    def test_a_server_that_is_no_object_store(self, shop: Shop, refused: Refused) -> None:
        class Nothing(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, *_: Any) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Nothing) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            endpoint = f"http://127.0.0.1:{server.server_port}"
            try:
                for command in shop.commands(shop.url):
                    with aws(shop.settings(AWS_ENDPOINT_URL=endpoint)):
                        refused(command, shop.url, endpoint, "is it an S3 store", "AWS_ENDPOINT_URL")
            finally:
                server.shutdown()
                thread.join()


class TestSimulate:
    def test_scans_that_cannot_be_simulated(
        self, heads: list[Path], cli: Command, refused: Refused, tmp_path: Path
    ) -> None:
        simulate = ("simulate", "coils")
        refused((*simulate, "nothere", "--to", "coils"), "nothere", "no such file")
        refused((*simulate, "heads", "--to", "s3://bucket/coils"), "s3://bucket/coils", "is a URL")
        refused((*simulate, "heads", "--to", "coils", "--noise", "-1"), "--noise", "greater than or equal to 0")
        (tmp_path / "coils").mkdir()
        np.save(tmp_path / "scan.npy", np.ones((2, 32, 32), np.complex64))
        refused((*simulate, "scan.npy", "--to", "coils"), "scan.npy: is k-space already", "give images")
        assert cli(*simulate, "heads", "--to", "coils", *SMALL).code == 0
        refused((*simulate, "heads", "--to", "coils", *SMALL), "ann.npy: already exists", "--overwrite")


class TestTrain:
    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("training.num_step=3", ("unknown key 'training.num_step'", "'num_steps'", "global_batch_size")),
            ("xyz=3", ("unknown key 'xyz'.", "Valid keys of the top level", "training")),
            ("mask.sampling_ratio=0", ("mask.sampling_ratio=0", "greater than 0")),
            ("mask.sampling_ratio=1.5", ("mask.sampling_ratio=1.5", "less than or equal to 1")),
            ("mask.kind=cubes", ("mask.kind='cubes'", "gaussian1d", "gaussian2d")),
            ("cluster.num_workers=3", ("global_batch_size=4", "3 workers", "use a multiple of 3")),
            ("name=../elsewhere", ("name='../elsewhere'", "should match")),
            ("name=", ("name=None", "valid string")),
            ("training.best_metric=loss", ("training.best_metric='loss'", "psnr", "nmse")),
            ("data.crop=[32,0]", ("data.crop", "=0", "greater than or equal to 8")),
            ("data.crop=[-8,32]", ("data.crop", "=-8", "greater than or equal to 8")),
            ("data.crop=[128,32]", ("data.crop=128×32", "64×64", "lower it")),
            ("data.stack=300", ("data.stack=300", "slices or frames of ann", "set data.stack to at most")),
            ("data.validation_split=nothere", ("'nothere'", "test, train, validation")),
            ("data.url=nodata", ("nodata", "there is no data set here", "larmor convert")),
            ("output_url=occupied", ("occupied", "is a file", "another place")),
            ("output_url=ftp://bucket", ("ftp://bucket", "local path, or s3://")),
            ("nonsense", ("'nonsense'", "key=value")),
            ("system=deepcomplexmri", ("ann holds magnitude images", "no phase", "larmor simulate coils")),
            ("signal.coils=all", ("coils=all needs the phase", "mode=magnitude", "set mode=complex")),
            ("training.num_steps.deep=3", ("training.num_steps.deep", "not a section")),
        ],
    )
    def test_an_impossible_experiment(
        self, data: str, refused: Refused, tmp_path: Path, override: str, parts: tuple[str, ...]
    ) -> None:
        (tmp_path / "occupied").write_text("a file")
        refused((*train(data, override), "--local"), *parts)

    def test_an_experiment_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "list.yaml").write_text("- 1\n")
        (tmp_path / "open.yaml").write_text("a: [\n")
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        refused(("train", "latop"), "latop", "no such file", "laptop", "paper_256x256")
        refused(("train", "list.yaml"), "list.yaml", "expected keys and values")
        refused(("train", "open.yaml"), "open.yaml", "is not YAML")
        refused(("train", "binary.yaml"), "binary.yaml", "is not a text file")
        refused(("train", "laptop", "--best-of", "nosweep"), "nosweep", "there is no sweep here", "check the URL")

    @pytest.mark.parametrize("more", [(), ("--overwrite",)])
    def test_what_cannot_start_leaves_the_old_run(self, data: str, refused: Refused, more: tuple[str, ...]) -> None:
        make_run(data).write_history(1, [{"step": 1}])
        port = closed_port()
        command = (*train(data), *more)
        refused((*command, "--local", "--device", "tpu"), "'tpu'", "choose cpu or cuda")
        refused((*command, "--local", "--device", "cuda:99"), "'cuda:99'", "GPUs here", "choose cpu")
        refused((*command, "cluster.num_workers=2", "--local"), "cluster.num_workers=2", "one worker", "--local")
        refused((*command, "--address", f"127.0.0.1:{port}"), f"127.0.0.1:{port}", "cannot be reached", "is it running")
        refused((*command, "--address", "ray://nowhere:port"), "ray://nowhere:port", "cannot be reached")

    def test_a_name_that_is_taken(self, data: str, cli: Command, refused: Refused) -> None:
        run = make_run(data)
        run.write_history(1, [{"step": 1}])
        other = train(data, "loss.a=7", "mask.seed=3")
        parts = (run.url, "another experiment of that name", "loss.a", "mask.seed", "name=", "--overwrite")
        refused((*other, "--local"), *parts)
        # accepted: the old run is gone, and the training gets as far as the next mistake
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("larmor.cluster.launch.run_locally.train_locally", lambda *_: None)
            outcome = cli(*other, "--local", "--overwrite")
        assert "no whole checkpoint yet" in outcome.err
        assert "a: 7" in run.config_yaml()
        assert run.history() == []

    @pytest.mark.timeout(300)
    def test_more_workers_than_there_are(self, data: str, tmp_path: Path) -> None:
        workers = ("cluster.num_workers=64", "training.global_batch_size=64", "cluster.wait_seconds=2")
        results, home = str(tmp_path / "results"), str(tmp_path / "home")
        command = ("train", "laptop", *overrides(data, *workers, output=results))
        outcome = workbench.larmor(*command, timeout=240, LARMOR_HOME=home, LARMOR_DEBUG="")
        assert outcome.returncode == 1, outcome
        check_message(outcome.stderr, "64 workers", "64 CPU", "it has", "lower cluster.num_workers", "add nodes")
        assert not (tmp_path / "results").exists()


class TestPull:
    @pytest.fixture
    def run(self, data: str, tmp_path: Path, cli: Command) -> RunFolder:
        run = make_run(data)
        add_checkpoint(run, tmp_path / "scratch", 1, {"val/psnr": 20.0})
        return run

    def test_what_is_not_there(self, data: str, refused: Refused) -> None:
        refused(
            ("pull", "results/runs/mine", "--to", "model"), "results/runs/mine", "there is no run here", "check the URL"
        )
        run = make_run(data)
        refused(("pull", run.url, "--to", "model"), run.url, "'val/psnr'", "no whole checkpoint yet")

    def test_metrics_that_are_not_there(self, run: RunFolder, refused: Refused) -> None:
        command = ("pull", run.url, "--to", "model", "--metric")
        refused((*command, "fid"), "'fid'", "choose one of psnr, ssim, mse, rmse, nmse")
        refused((*command, "ssim"), run.url, "'val/ssim'", "its metrics are val/psnr")

    def test_a_preference_without_a_front(self, run: RunFolder, refused: Refused) -> None:
        command = ("pull", run.url, "--to", "model", "--prefer")
        refused((*command, "hfen"), run.url, "is not a sweep", "no front of trade-offs", "--metric")
        sweep = SweepFolder("results/sweeps/mine")
        sweep.create("sweep: {metric: psnr}")
        command = ("pull", sweep.url, "--to", "model", "--prefer")
        refused((*command, "hfen"), sweep.url, "its metric is psnr", "leave --prefer out")
        sweep.store.write("sweep.yaml", b"sweep: {metric: [psnr, hfen]}")
        refused((*command, "fid"), "'fid' is not a validation metric", "choose one of psnr")
        refused((*command, "ssim"), "--prefer ssim", "psnr, hfen, not 'ssim'")
        refused((*command, "psnr=a"), "--prefer psnr=a", "'a' is no weight", "METRIC=NUMBER")
        refused((*command, "hfen", "--metric", "psnr"), "--prefer hfen", "--metric also chooses a trial")
        refused((*command, "hfen"), "none of 0 trials has finished", "'val/psnr' and 'val/hfen'")

    def test_targets_that_are_taken(self, run: RunFolder, cli: Command, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("precious")
        (tmp_path / "file").write_text("precious")
        refused(("pull", run.url, "--to", "mine"), "mine", "already exists", "--overwrite", "--to")
        refused(("pull", run.url, "--to", "mine", "--overwrite"), "mine", "is not a model directory", "--to")
        for more in ((), ("--overwrite",)):
            refused(("pull", run.url, "--to", "file", *more), "file", "is a file", "--to")
            refused(("pull", run.url, "--to", "file/deeper", *more), "file/deeper", "Not a directory", "another place")
        assert cli("pull", run.url, "--to", "model").code == 0
        refused(("pull", run.url, "--to", "model"), "model", "already exists", "--overwrite")
        (tmp_path / "model" / "metrics.json").write_text("old")
        assert cli("pull", run.url, "--to", "model", "--overwrite").code == 0
        assert "val/psnr" in (tmp_path / "model" / "metrics.json").read_text()

    def test_a_changed_byte(self, run: RunFolder, cli: Command, refused: Refused) -> None:
        assert cli("pull", run.url, "--to", "old").code == 0
        (checkpoint,) = run.checkpoints()
        flip_byte(run.store, f"{checkpoint.folder}/generator.safetensors", 3)
        parts = ("generator.safetensors", "checksum", "does not match", "remove this checkpoint's folder")
        refused(("pull", run.url, "--to", "model"), *parts)
        refused(("pull", run.url, "--to", "old", "--overwrite"), *parts)

    @pytest.mark.parametrize("damage", ["gone", "cut"])
    def test_a_file_that_is_missing_or_short(self, run: RunFolder, refused: Refused, damage: str) -> None:
        (checkpoint,) = run.checkpoints()
        weights = f"{checkpoint.folder}/generator.safetensors"
        content = run.store.read(weights)
        run.store.delete(weights)
        if damage == "cut":
            run.store.write(weights, content[:-1])
        refused(("pull", run.url, "--to", "model"), run.url, "no whole checkpoint", weights, "missing or cut short")

    @pytest.mark.parametrize("manifest", [b"[]", b'{"format": 1}', b"{", b'{"format": 9}'])
    def test_a_manifest_that_makes_no_sense(self, run: RunFolder, refused: Refused, manifest: bytes) -> None:
        (checkpoint,) = run.checkpoints()
        run.store.write(f"{checkpoint.folder}/manifest.json", manifest)
        refused(("pull", run.url, "--to", "model"), checkpoint.folder, "manifest")


class TestModel:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        return write_model(tmp_path / "model", small_recipe())

    def commands(self, data: str) -> list[tuple[str, ...]]:
        reconstruct = ("reconstruct", "model", "heads/ann.nii.gz", "--to", "images")
        return [reconstruct, ("evaluate", "model", data, "--to", "table")]

    def test_a_model_that_is_not_there(self, data: str, heads: list[Path], refused: Refused) -> None:
        for command in self.commands(data):
            refused(command, "model/config.yaml", "no such file", "larmor pull")

    @pytest.mark.parametrize("damage", ["cut", "header", "other network"])
    def test_damaged_weights(self, model: Path, data: str, heads: list[Path], refused: Refused, damage: str) -> None:
        weights = model / "generator.safetensors"
        content = bytearray(weights.read_bytes())
        if damage == "cut":
            weights.write_bytes(content[: len(content) // 2])
        elif damage == "header":
            content[4] ^= 0xFF
            weights.write_bytes(content)
        else:
            config = model / "config.yaml"
            config.write_text(config.read_text().replace("width: 4", "width: 8"))
        for command in self.commands(data):
            refused(command, "model/generator.safetensors", "does not fit config.yaml", "pull it again")

    def test_a_device_that_is_not_there(self, model: Path, data: str, heads: list[Path], refused: Refused) -> None:
        for command in self.commands(data):
            refused((*command, "--device", "tpu"), "'tpu'", "choose cpu or cuda")
            refused((*command, "--device", "meta"), "'meta'", "choose cpu or cuda")
            refused((*command, "--device", "cuda:99"), "'cuda:99'", "choose cpu")

    def test_places_that_are_files(self, model: Path, data: str, heads: list[Path], refused: Refused) -> None:
        for command in self.commands(data):
            refused((*command[:-1], str(heads[0])), heads[0], "File exists", "choose another place")

    def test_input_of_the_wrong_kind(self, model: Path, heads: list[Path], refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "words.npy").write_text("not an array")
        (tmp_path / "scan.dcm").write_text("something else")
        (tmp_path / "empty").mkdir()
        np.save(tmp_path / "line.npy", np.zeros(32))
        for source, parts in {
            "nothere.nii.gz": ("no such file",),
            "empty": ("no volume in this folder", ".nii.gz"),
            "scan.dcm": ("is no DICOM image", ".npy"),
            "words.npy": ("is not a complete array of numbers",),
            "line.npy": ("(32,)", "float64", "is expected"),
        }.items():
            named = (source.removesuffix(".npy"),)
            refused(("reconstruct", "model", source, "--to", "images"), *named, *parts)
        refused(("reconstruct", "model", "heads", "--to", "heads/images"), "heads/images", "outside")
        refused(
            ("reconstruct", "model", "heads", "--to", "images", "--split", "test"), "--split test", "not a data set"
        )

    def test_a_mask_for_measured_kspace_alone(
        self, model: Path, data: str, heads: list[Path], cli: Command, refused: Refused, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "mask.npy", np.eye(32) + np.eye(32)[::-1])
        np.save(tmp_path / "scan.npy", np.ones((2, 32, 32), np.complex64))
        reconstruct, mask = ("reconstruct", "model"), ("--to", "images", "--mask", "mask.npy")
        refused((*reconstruct, "scan.npy", *mask, "--undersample"), "--mask mask.npy", "--undersample", "leave one")
        refused((*reconstruct, data, *mask), "--mask mask.npy", "is a data set, which is whole")
        refused((*reconstruct, "heads/ann.nii.gz", *mask), "ann: holds whole images", "leave it out")
        refused((*reconstruct, "scan.npy", *mask, "--ratio", "0.3"), "--ratio 0.3", "--mask", "leave one")
        refused((*reconstruct, data, *mask[:2], "--ratio", "1.5"), "--ratio 1.5", "above 0, up to 1")
        refused((*reconstruct, "scan.npy", *mask[:3], "no.npy"), "no.npy does not exist", "1/0 in (height, width)")
        assert cli(*reconstruct, "scan.npy", *mask).code == 0

    def test_a_url_is_no_path_of_this_machine(
        self, model: Path, data: str, heads: list[Path], refused: Refused, tmp_path: Path
    ) -> None:
        url = "s3://bucket/runs/mine"
        for command in self.commands(data):
            refused((command[0], "ftp://bucket/mine", *command[2:]), "ftp://bucket/mine", "not supported", "s3://")
            refused((command[0], "larmor://big", *command[2:]), "larmor://big", "is not shipped here; choose of small")
            refused((*command[:-1], url), url, "is a URL", "path on this machine")
        refused(("export", "http://host/m", "--to", "model.onnx"), "http://host/m", "only https:// is trusted")
        refused(("push", "model", "hf://mine"), "hf://mine", "hf://OWNER/NAME")
        refused(("push", "model", "https://host/m"), "https://host/m", "not supported")
        refused(("evaluate", "larmor://small", data), "larmor://small", "is a URL", "--to FOLDER")
        refused(("convert", "heads", "--to", "data", "--splits", url), url, "is a URL")

    def test_a_bad_scan_among_others(self, model: Path, heads: list[Path], cli: Command, tmp_path: Path) -> None:
        (tmp_path / "heads" / "bad.nii.gz").write_text("hello")
        outcome = cli("reconstruct", "model", "heads", "--to", "images")
        assert outcome.code == 1
        check_message(outcome.err, "heads/bad.nii.gz", "does not match its suffix")
        assert len(list((tmp_path / "images").iterdir())) == 3 * len(heads), "the others are done"
        outcome = cli("reconstruct", "model", "heads", "--to", "images", "--skip-invalid")
        assert outcome.code == 0
        assert "left out: heads/bad.nii.gz" in outcome.out
        assert "ms per slice for the generator" in outcome.out

    def test_data_to_evaluate(self, model: Path, data: str, refused: Refused) -> None:
        refused(("evaluate", "model", "nodata"), "nodata", "there is no data set here", "larmor convert")
        refused(("evaluate", "model", data, "--split", "nothere"), "'nothere'", "test, train, validation")
        refused(("evaluate", "model", data, "--preset", "mine"), "'mine'", "paper", "fastmri")


class TestSweepAndStore:
    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("space.loss.aa=uniform(0,1)", ("unknown key 'loss.aa'", "Valid keys of loss: adversarial, critic_sees")),
            ("space.mask.sampling_ratio=uniform(0.1,2)", ("mask.sampling_ratio=2", "less than or equal to 1")),
            ("space.loss.a=uniform(5", ("uniform(5", "expected one of loguniform(low, high)")),
            ("space.loss.a=normal(0,1)", ("normal(0,1)", "expected one of loguniform(low, high)")),
            ("space.loss.a=uniform(5,1)", ("uniform(5,1)", "low < high")),
            ("space.loss.a=loguniform(0,1)", ("loguniform(0,1)", "above 0")),
            ("space.loss.a", ("'space.loss.a'", "space.KEY=loguniform(low,high)")),
            ("sweep.metric=loss", ("sweep.metric='loss'", "psnr")),
            (
                "sweep.metric=[psnr,loss]",
                ("sweep.metric=['psnr', 'loss']", "'loss' is not a validation metric", "hfen"),
            ),
            ("sweep.metric=[psnr,psnr]", ("sweep.metric=['psnr', 'psnr']", "'psnr' twice", "must be another one")),
            ("sweep.metric=[psnr,ssim,hfen]", ("3 metrics", "a list of two")),
            ("sweep.metric=3", ("sweep.metric=3", "a list of two, such as [psnr, hfen]")),
            ("sweep.start_seeds=0", ("sweep.start_seeds=0", "greater than or equal to 1")),
            ("sweep.overrides={colour: 1}", ("unknown key 'colour'", "Valid keys")),
        ],
    )
    def test_a_space_that_makes_no_sense(
        self, data: str, refused: Refused, override: str, parts: tuple[str, ...]
    ) -> None:
        refused(("sweep", "laptop", *overrides(data, override)), *parts)

    def test_a_space_that_is_empty_or_none(self, data: str, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("output_url: results\n")
        refused(("sweep", "mine.yaml"), "nothing to search", "sweep.space", "loguniform(0.1,100)")
        for section in ("sweep=3", "sweep={space: 3}"):
            refused(("sweep", "mine.yaml", section, "space.loss.a=uniform(0,1)"), "space.loss.a", "not a section")
        refused(("sweep", "laptop", "--trials", "0"), "--trials", "greater than or equal to 1")

    def test_a_port_that_is_taken_or_impossible(self, cli: Command, tmp_path: Path) -> None:
        port = free_ports(())[0]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            for wanted, parts in {port: (f"port {port} is taken", "choose another"), 80: ("80", "1024")}.items():
                outcome = cli("store", "start", "--port", wanted)
                assert outcome.code == 1
                check_message(outcome.err, *parts)
                assert not (tmp_path / "home" / "store" / "data").exists()

    def test_manifests_over_somebody_elses_files(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "quotas.yaml").touch()
        refused(("kubernetes", "--to", "base"), "--to base", "not an empty folder", "name a new one")
        refused(("kubernetes",), "--to")

    def test_a_bucket_name_that_s3_does_not_know(self, refused: Refused) -> None:
        refused(("store", "start", "--bucket", "My_Bucket"), "'My_Bucket'", "lower-case letters")


class TestOtherModalities:
    def test_trials_that_cannot_be_made(self, refused: Refused, tmp_path: Path) -> None:
        refused(("decode", "fetch", "--source", "dreams", "--to", "data"), "'dreams'", "choose haxby or digits")
        refused(("decode", "fetch", "--source", "digits", "--snr", "0", "--to", "data"), "snr=0", "no signal")
        refused(("decode", "convert", "nothere.npz", "--to", "data"), "nothere.npz", "no such file")
        np.savez(tmp_path / "half.npz", bold=np.zeros((3, 2, 2)))
        refused(("decode", "convert", "half.npz", "--to", "data"), "half.npz", "stimulus, bold and run")
        np.savez(tmp_path / "odd.npz", bold=np.zeros((3, 2, 2)), stimulus=np.zeros((3, 1, 20, 20)), run=np.zeros(3))
        refused(("decode", "convert", "odd.npz", "--to", "data"), "(1, 20, 20)", "16, 32, 64, 128", "resample")

    def test_a_model_that_is_none(self, data: str, refused: Refused) -> None:
        refused(("decode", "evaluate", "nothere", data), "nothere", "`larmor pull`")

    def test_heads_that_are_none(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        refused(("pet", "simulate", "empty", "--to", "maps"), "empty", "no NIfTI file", "larmor fetch heads")
        refused(("pet", "simulate", "nothere.nii.gz", "--to", "maps"), "nothere.nii.gz", "no such file")

    def test_settings_of_another_task(self, data: str, refused: Refused) -> None:
        refused(("train", "tigan", f"data.url={data}", "mask.seed=1"), "mask", "of no use to system=tigan")
        refused(("train", "pet", f"data.url={data}", "generator.data_consistency=hard"), "signal.mode=pet has none")
        refused(("train", "pet", f"data.url={data}", "signal.noise=[0,0.1]"), "added to k-space", "pet.counts")
        refused(
            ("train", "tigan", f"data.url={data}", f"output_url={data}/out"), "k-space slices", "larmor decode fetch"
        )
        refused(
            ("train", "pet", f"data.url={data}", f"output_url={data}/out", "data.crop=[32,32]"),
            "holds MRI",
            "larmor pet simulate",
        )


def test_debugging_shows_where_it_came_from(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARMOR_DEBUG", "1")
    with pytest.raises(InputError, match="nothere"):
        cli("inspect", "nothere")


def test_a_defect_keeps_its_traceback(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("larmor.commands.data.describe", broken)
    with pytest.raises(KeyError, match="a defect"):
        cli("inspect", "nothere")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--http", "--runtime", "bfloat16"), ("bfloat16", "--http", "leave it out")),
        (("--runtime", "faster"), ("faster", "bfloat16")),
        (("--http", "--metrics-port", 9000), ("--metrics-port", "/metrics")),
        (("--replicas", 2), ("--replicas", "add --http")),
    ],
)
def test_options_of_servers(refused: Refused, options: tuple[object, ...], parts: tuple[str, ...]) -> None:
    refused(("serve", "model", *options), *parts)

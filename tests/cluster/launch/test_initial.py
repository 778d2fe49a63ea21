"""A training starts from the weights of another: exactly those, and refused in one sentence where they do not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from larmor.cluster.experiments.experiment import Experiment, build, dump_for_workers
from larmor.cluster.launch.initial import pin_initial
from larmor.cluster.launch.run import check, claim, claimed
from larmor.cluster.runs.initial import Initial, read_initial
from larmor.cluster.runs.pull import pull_run
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.engines.engine_state import open_state
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.tuning.search.experiment import load_sweep_experiment
from larmor.tuning.search.sweep import check_sweep
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.cluster.launch.test_systems import coils_url, deepspeed, kspace_url, run_in, tiny, trained  # noqa: F401
from tests.helpers import flip_byte, random_kspace, write_dataset
from tests.interrupted import Interrupted, interrupted_after

GENERATOR, CRITIC = "generator.safetensors", "critic.safetensors"
CLIP = 0.02


def started(experiment: Experiment, run: RunFolder, **options: Any) -> RunFolder:
    """Claimed as `larmor train` does it, and trained."""
    claim(experiment, run)
    return trained(experiment, run, **options)


@pytest.fixture(scope="module")
def source(kspace_url: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:  # noqa: F811
    """A GAN with averaged weights, on images of 32×40."""
    run = run_in(tmp_path_factory.mktemp("source"))
    return started(tiny(kspace_url, "training.ema_decay=0.5", "training.checkpoint_every=4"), run)


@pytest.fixture(scope="module")
def model(source: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    pull_run(source, "psnr", folder)
    return folder


@pytest.fixture
def fine(kspace_url: str, source: RunFolder) -> Callable[..., Experiment]:  # noqa: F811
    """The same network again, from the source, unless it is told otherwise."""
    return lambda *overrides: tiny(kspace_url, f"init_from={source.url}", *overrides)


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    """Of the generator that would be pulled."""
    last = run.latest()
    assert last is not None
    return load_file(Path(run.url, last.folder, GENERATOR))


def trained_weights(run: RunFolder, network: str) -> dict[str, torch.Tensor]:
    """Of an engine, with the masters."""
    last = run.latest()
    assert last is not None
    with open_state(Path(run.url, last.folder, network)) as state:
        names = [name for name in state.names if name.startswith(("weight/", "buffer/"))]
        return {name.partition("/")[2]: state.tensor(name) for name in names}


def record_of(run: RunFolder) -> Initial:
    found = read_initial(run.store)
    assert found is not None
    return found


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


STILL = ("generator_optimizer.learning_rate=1e-60", "critic_optimizer.learning_rate=1e-60", "training.num_steps=1")
"""One step that moves nothing, so that what a checkpoint holds is what the training started from."""

WAYS = [
    (),
    ("training.dtype=bfloat16",),
    *(deepspeed(stage) for stage in range(4)),
    *((*deepspeed(stage), "training.dtype=bfloat16") for stage in range(4)),
]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_it_starts_from_exactly_the_weights_of_a_run(
    fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path, way: tuple[str, ...]
) -> None:
    run = started(fine(*STILL, *way, "init_from.critics=true", f"critic.clip={CLIP}"), run_in(tmp_path))
    assert_equal(weights_of(run), weights_of(source))
    assert_equal(trained_weights(run, "critic"), trained_weights(source, "critic"))
    record = record_of(run)
    assert record.networks.keys() == {"generator", "critic"}
    assert all(taken.tensors == taken.of_tensors and taken.parameters == 1 for taken in record.networks.values())


@pytest.mark.parametrize("system", ["drgan", "idpcnn", "deepcomplexmri"])
def test_networks_of_other_systems_too(kspace_url: str, tmp_path: Path, system: str) -> None:  # noqa: F811
    """Two critics, a part of a generator that alone is trained, kernels of several parameters."""
    more = (f"system={system}", "training.ema_decay=0.5", "training.num_steps=1")
    first = tiny(kspace_url, *more)
    source = started(first, run_in(tmp_path))
    critics = f"init_from.critics={bool(first.loss.critics)}"
    experiment = tiny(kspace_url, *more, *STILL, f"init_from={source.url}", "init_from.averages=true", critics)
    run = started(experiment, run_in(tmp_path))
    assert set(record_of(run).networks) == {"generator", "average", *(role.engine for role in first.loss.critics)}
    for network in ("generator", *(role.engine for role in first.loss.critics)):
        assert_equal(trained_weights(run, network), trained_weights(source, network))


def one_of_two(rank: int, rendezvous: str, content: dict[str, Any], url: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    trained(build(content, Experiment, "experiment"), RunFolder(url))
    torch.distributed.destroy_process_group()


def test_two_ranks_start_from_them_with_everything_divided(
    fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path
) -> None:
    experiment = fine(*STILL, *deepspeed(3), "training.dtype=bfloat16", "init_from.critics=true", f"critic.clip={CLIP}")
    run = run_with(experiment, tmp_path)
    arguments = (str(tmp_path / "rendezvous"), dump_for_workers(experiment), run.url)
    torch.multiprocessing.spawn(one_of_two, arguments, nprocs=2)
    assert_equal(weights_of(run), weights_of(source))
    assert_equal(trained_weights(run, "critic"), trained_weights(source, "critic"))


def test_a_critic_starts_inside_a_narrower_clip(fine: Callable[..., Experiment], tmp_path: Path) -> None:
    run = started(fine(*STILL, "init_from.critics=true", "critic.clip=0.001"), run_in(tmp_path))
    narrow = {name: weight for name, weight in trained_weights(run, "critic").items() if weight.ndim == 4}
    assert narrow
    assert max(float(weight.abs().max()) for weight in narrow.values()) == pytest.approx(0.001)


def test_averages_continue_beside_the_weights_that_were_trained(
    fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path
) -> None:
    averaging = ("training.ema_decay=0.9", "init_from.averages=true")
    run = started(fine(*STILL, *averaging), run_in(tmp_path))
    theirs, average = trained_weights(source, "generator"), weights_of(source)
    assert_equal(trained_weights(run, "generator"), theirs)
    for name, found in weights_of(run).items():  # the decay itself, without the smaller ones of a new average
        torch.testing.assert_close(found, 0.9 * average[name] + 0.1 * theirs[name], rtol=0, atol=1e-6)
    without = started(fine(*STILL, "training.ema_decay=0.9"), run_in(tmp_path))
    assert_equal(trained_weights(without, "generator"), average)


def test_a_pulled_model_is_a_source_too(
    fine: Callable[..., Experiment], source: RunFolder, model: Path, tmp_path: Path
) -> None:
    run = started(fine(*STILL, f"init_from={model}"), run_in(tmp_path))
    assert_equal(weights_of(run), weights_of(source))
    assert record_of(run).sha256 == json.loads((model / "metrics.json").read_text())["sha256"][GENERATOR]


def test_the_size_may_differ(fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path) -> None:
    run = started(fine(*STILL, "data.crop=[16,24]"), run_in(tmp_path))
    assert_equal(weights_of(run), weights_of(source))


@pytest.mark.parametrize("averages", [False, True], ids=["", "averages"])
def test_a_resumed_run_needs_no_source(
    kspace_url: str,  # noqa: F811
    source: RunFolder,
    tmp_path: Path,
    averages: bool,
) -> None:
    place = tmp_path / "place"
    shutil.copytree(source.url, place)
    more = (f"init_from={place}", "init_from.critics=true", "training.ema_decay=0.5", f"init_from.averages={averages}")
    experiment = tiny(kspace_url, *more)
    whole, broken, early = (run_in(tmp_path) for _ in range(3))
    started(experiment, whole)
    with pytest.raises(Interrupted):
        started(experiment, broken, worker=interrupted_after(2))
    claim(experiment, early)  # the workers are lost before their first checkpoint
    shutil.rmtree(place)
    for run in (broken, early):
        assert check(experiment, run, overwrite=False) is None
        assert claim(experiment, run) is None
        trained(experiment, run)
        assert run.history() == whole.history()
        assert_equal(weights_of(run), weights_of(whole))


def test_without_it_a_run_records_nothing(kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
    run = run_in(tmp_path)
    assert claim(tiny(kspace_url), run) is None
    assert not [path for path in run.store.list() if path.startswith("initial")]


def test_damaged_initial_weights_are_noticed(fine: Callable[..., Experiment], tmp_path: Path) -> None:
    run = run_in(tmp_path)
    claim(fine(), run)
    flip_byte(run.store, f"initial/{GENERATOR}", -1)
    with pytest.raises(InputError, match=r"initial/generator.safetensors: checksum .* pass --overwrite to start again"):
        trained(fine(), run)


def test_by_name_takes_what_fits_and_says_what_not(
    fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path
) -> None:
    """The first and the last layer of a generator of complex images have twice the channels."""
    run = run_in(tmp_path)
    experiment = fine(*STILL, "signal.mode=complex", "init_from.matching=by_name")
    initial = claim(experiment, run)
    assert initial is not None
    taken = initial.networks["generator"]
    assert 0 < len(taken.left_out) == taken.of_tensors - taken.tensors
    lines = initial.describe()
    assert (
        f"{taken.tensors} of {taken.of_tensors} tensors, {100 * taken.parameters:.4g} % of the parameters" in lines[1]
    )
    trained(experiment, run)
    theirs, ours = weights_of(source), weights_of(run)
    equal = {name for name in ours if name in theirs and torch.equal(ours[name], theirs[name])}
    assert len(equal) >= taken.tensors
    assert {text.split(" ")[0] for text in taken.left_out}.isdisjoint(
        {name for name in ours if name in theirs and ours[name].shape == theirs[name].shape}
    )


def test_the_model_and_its_card_name_the_origin(
    fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path
) -> None:
    run = started(fine(*STILL), run_in(tmp_path))
    pull_run(run, "psnr", tmp_path / "fine")
    record = json.loads((tmp_path / "fine" / "metrics.json").read_text())["origin"]["initial"]
    digest = record_of(run).sha256
    assert (record["sha256"], record["source"]) == (digest, record_of(run).source)
    assert record["source"].startswith(source.url)
    card = (tmp_path / "fine" / "model-card.md").read_text()
    assert f"started from the weights of `{record['source']}` (step 4), matched strictly" in card
    assert digest in card


def test_it_is_said_once_and_not_to_a_run_that_is_resumed(fine: Callable[..., Experiment], tmp_path: Path) -> None:
    run, said = run_in(tmp_path), list[str]()
    for _ in range(2):
        with claimed(fine(), run, overwrite=False, say=said.append):
            pass
    assert [line for line in said if "initial weights" in line] == [said[0]]
    assert len(said) == 2


def test_a_sweep_pins_what_its_trials_take(fine: Callable[..., Experiment], source: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(source.url, place)
    folder, experiment = SweepFolder(str(tmp_path / "sweep")), fine(f"init_from={place}")
    base = pin_initial(experiment, folder)
    assert base.init_from is not None
    assert base.init_from.sha256 == record_of(run_with(base, tmp_path)).sha256
    shutil.rmtree(place)
    assert pin_initial(experiment, folder) == base, "the sweep is resumed without the source"


def run_with(experiment: Experiment, tmp_path: Path) -> RunFolder:
    run = run_in(tmp_path)
    claim(experiment, run)
    return run


def test_local_folders_are_absolute_for_workers(
    fine: Callable[..., Experiment], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    assert dump_for_workers(fine("init_from=model"))["init_from"]["url"] == str(model)


class TestRefused:
    """Before anything is written."""

    @pytest.fixture
    def refused(self, fine: Callable[..., Experiment], tmp_path: Path) -> Callable[..., str]:
        def message(*overrides: str) -> str:
            run = run_in(tmp_path)
            with pytest.raises(InputError) as caught:
                check(fine(*overrides), run, overwrite=False)
            assert run.store.list() == {}
            return str(caught.value)

        return message

    def test_another_architecture_under_strict(self, refused: Callable[..., str]) -> None:
        message = refused("generator.width=8")
        assert "is another network than this one (generator.width=4 there, 8 here)" in message
        assert "of another shape, first " in message
        assert message.endswith("or set init_from.matching=by_name to take what fits")
        message = refused("system=unet")
        assert "generator.name=gan_resnet50 there, unet here" in message
        assert "missing there, first " in message
        assert "unknown here, first " in message

    def test_nothing_that_fits_by_name(self, refused: Callable[..., str]) -> None:
        message = refused("system=unet", "init_from.matching=by_name")
        assert "no tensor of its generator has the name and shape of one here" in message

    def test_a_place_with_nothing(self, refused: Callable[..., str], tmp_path: Path) -> None:
        assert "there is neither a run nor a pulled model" in refused(f"init_from={tmp_path / 'nothing'}")
        assert "is not supported; use a local path, or s3://" in refused("init_from=ftp://host/model")

    def test_a_run_without_a_checkpoint(
        self,
        refused: Callable[..., str],
        kspace_url: str,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        run = run_with(tiny(kspace_url), tmp_path)
        assert "it has no whole checkpoint yet" in refused(f"init_from={run.url}")
        assert "has no whole checkpoint yet" in refused(f"init_from={run.url}", "init_from.checkpoint=latest")

    def test_a_sweep_a_data_set_and_a_decoding(
        self,
        refused: Callable[..., str],
        kspace_url: str,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        (tmp_path / "sweep").mkdir()
        SweepFolder(str(tmp_path / "sweep")).create("name: a")
        assert f"is a sweep; name one of its trials, {tmp_path}/sweep/trials/ID" in refused(
            f"init_from={tmp_path / 'sweep'}"
        )
        assert "is a data set; name a run, or a model that was pulled" in refused(f"init_from={kspace_url}")
        (tmp_path / "decoder").mkdir()
        (tmp_path / "decoder" / "config.yaml").write_text("decoding: {width: 4}")
        assert "decodes fMRI" in refused(f"init_from={tmp_path / 'decoder'}")

    def test_critics_and_averages_of_what_has_none(
        self,
        refused: Callable[..., str],
        model: Path,
        kspace_url: str,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        message = refused(f"init_from={model}", "init_from.critics=true")
        assert "is a pulled model, which has the generator alone; name the run" in message
        message = refused(f"init_from={model}", "init_from.averages=true", "training.ema_decay=0.9")
        assert message.startswith("init_from.averages=true: ")
        plain = started(tiny(kspace_url, *STILL, "loss.adversarial=none"), run_in(tmp_path))
        message = refused(f"init_from={plain.url}", "init_from.critics=true")
        assert "has no critic (its loss.adversarial is none)" in message
        message = refused(f"init_from={plain.url}", "init_from.averages=true", "training.ema_decay=0.9")
        assert "has no averaged weights" in message

    def test_settings_that_leave_no_place(self, fine: Callable[..., Experiment]) -> None:
        with pytest.raises(InputError, match=r"init_from.critics=true, but loss.adversarial=none has no critic"):
            fine("init_from.critics=true", "loss.adversarial=none")
        with pytest.raises(InputError, match=r"init_from.averages=true, but training.ema_decay=0 keeps no average"):
            fine("init_from.averages=true")
        with pytest.raises(InputError, match=r"unknown key 'init_from.critic'; did you mean 'critics'"):
            fine("init_from.critic=true")
        with pytest.raises(InputError, match="init_from does not work with system=tigan"):
            load_sweep_experiment("tigan", ["init_from=somewhere"])

    def test_other_weights_than_those_that_are_named(self, refused: Callable[..., str]) -> None:
        assert "is not what init_from.sha256 names" in refused(f"init_from.sha256={'0' * 64}")

    def test_weights_that_are_no_safetensors(self, refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
        bad = tmp_path / "bad"
        shutil.copytree(model, bad)
        (bad / GENERATOR).write_bytes(b"\x80\x04pickle" + bytes(200))
        assert f"{GENERATOR} is no safetensors file" in refused(f"init_from={bad}")

    def test_weights_that_changed_since_they_were_pulled(
        self, fine: Callable[..., Experiment], model: Path, tmp_path: Path
    ) -> None:
        bad = tmp_path / "bad"
        shutil.copytree(model, bad)
        flip_byte(ObjectStore(str(bad)), GENERATOR, -1)
        run = run_in(tmp_path)
        with pytest.raises(InputError, match=r"generator.safetensors was changed or damaged .* pull the model again"):
            claim(fine(f"init_from={bad}"), run)
        assert read_initial(run.store) is None

    def test_a_run_from_itself_is_not_deleted(self, fine: Callable[..., Experiment], source: RunFolder) -> None:
        before = os.listdir(source.url)
        with pytest.raises(InputError, match="is this run itself; choose another name"):
            check(fine(), source, overwrite=True)
        assert os.listdir(source.url) == before

    def test_a_sweep_before_it_begins(self, kspace_url: str, tmp_path: Path) -> None:  # noqa: F811
        settings = (f"data.url={kspace_url}", "data.crop=[32,40]", "init_from=nowhere", f"output_url={tmp_path}")
        with pytest.raises(InputError, match="there is neither a run nor a pulled model"):
            check_sweep(load_sweep_experiment("laptop", settings), SweepFolder(str(tmp_path / "new")), overwrite=False)


def test_a_network_of_ones_own_needs_the_code_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the source is imported: the code is what the experiment names, and strict wants that of the source."""
    from larmor.commands.training import use_own_code

    monkeypatch.chdir(tmp_path)
    write_dataset(ObjectStore("set"), {name: random_kspace(4, (1, 32, 40)) for name in ("train", "validation")})
    code = "from torch import nn\n\n\nclass Net(nn.Module):\n" + (
        "    def __init__(self, channels):\n        super().__init__()\n"
        "        self.net = nn.Conv2d(channels, channels, 3, padding=1)\n\n"
        "    def forward(self, image, *rest):\n        return image + self.net(image)\n"
    )
    (tmp_path / "onelayer.py").write_text(code)
    own = ("generator.name=onelayer:Net", "code=[onelayer.py]", "loss.adversarial=none", *STILL)
    source, run = run_in(tmp_path), run_in(tmp_path)
    first = tiny("set", *own)
    use_own_code(first)
    with claimed(first, source, overwrite=False, say=print) as pinned:
        trained(pinned, source)
    second = tiny("set", *own, f"init_from={source.url}")
    assert check(second, run, overwrite=False) is None
    (tmp_path / "onelayer.py").write_text(code + "\n# changed\n")
    with pytest.raises(InputError, match=r"was trained with other code .* or set init_from.matching=by_name"):
        check(second, run, overwrite=False)
    assert check(tiny("set", *own, f"init_from={source.url}", "init_from.matching=by_name"), run, False) is None

"""The pages of `larmor view` and of results: what they show, by keyboard, in a real browser, and to whom."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from larmor.commands.view import ViewOptions, view
from larmor.recon.inference.figures import Example
from larmor.recon.inference.metrics import slice_metrics
from larmor.recon.inference.slices_page import (
    RESIDUAL,
    RESIDUAL_KSPACE,
    example_stack,
    read_page,
    slice_content,
    write_page,
)
from larmor.recon.viewing.server import ViewServer
from larmor.storage.objects.errors import InputError
from tests.browser import CHROMIUM, Press, visit
from tests.helpers import small_recipe, write_heads, write_model

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install the Debian package chromium")
QUIET = """new Promise((done) => {
  const root = document.getElementById("view");
  const busy = () => root.hasAttribute("aria-busy") || !root.dataset.window;
  const look = () => busy() ? setTimeout(look, 20) : setTimeout(done, 100);
  setTimeout(look, 50);
})"""
STATE = 'Object.assign({}, document.getElementById("view").dataset)'
TEXT = 'document.getElementById("view").innerText'


def image_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, 1, (24, 32)).astype(np.float32)
    return target, (target + rng.normal(0, 0.05, target.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    """Two heads and a broken one, with a model."""
    folder = tmp_path_factory.mktemp("view")
    write_heads(folder / "heads", ["ann", "ben"])
    (folder / "heads" / "cid.nii.gz").write_text("hello")
    recipe = small_recipe(mask={"kind": "gaussian2d", "sampling_ratio": 0.4})
    model = write_model(folder / "model", recipe, trained=False)
    server = view(folder / "heads", ViewOptions(model=str(model), methods=["alternating"]))
    yield server
    server.close()


def get(server: ViewServer, path: str, host: str | None = None) -> tuple[int, Any]:
    """Status and content of an address below the server's root."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
    connection.request("GET", path, headers={"Host": host or place.netloc})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if answer.headers["Content-Type"] == "application/json" else content


class TestServer:
    def test_slices_of_a_scan_have_metrics_and_letters(self, served: ViewServer) -> None:
        root = f"/{served.token}"
        status, stack = get(served, f"{root}/stack/0")
        assert status == 200
        assert stack == {"count": 14, "letters": ["S", "I", "R", "L"], "volume": True}
        status, found = get(served, f"{root}/slice/0/7")
        names = ["target", "zero_filled", "alternating", "reconstruction", RESIDUAL, RESIDUAL_KSPACE]
        assert [pane["name"] for pane in found["panes"]] == names
        assert all((pane["height"], pane["width"]) == (30, 28) for pane in found["panes"][:-1])
        assert found["panes"][-1]["height"] == 32, "k-space is that of the padded image"
        assert "dB · SSIM" in found["panes"][3]["metrics"]
        assert found["note"] == "32×32, gaussian2d 40 %", "padded to the size of the training"

    def test_of_a_model_of_many_ratios_a_slice_names_its_own(self, tmp_path: Path) -> None:
        write_heads(tmp_path / "heads", ["ann"])
        mask = {"kind": "gaussian2d", "sampling_ratio": {"min": 0.2, "max": 0.6}}
        model = write_model(tmp_path / "model", small_recipe(mask=mask), trained=False)
        server = view(tmp_path / "heads", ViewOptions(model=str(model)))
        notes = [get(server, f"/{server.token}/slice/0/{index}")[1]["note"] for index in (7, 8, 7)]
        server.close()
        assert notes[0] == notes[2] != notes[1]
        ratios = [float(note.removeprefix("32×32, gaussian2d ").removesuffix(" %")) for note in notes]
        assert all(20 <= ratio <= 60 for ratio in ratios)

    def test_a_bad_scan_says_so_and_the_others_stay(self, served: ViewServer) -> None:
        root = f"/{served.token}"
        status, found = get(served, f"{root}/stack/2")
        assert status == 422
        assert "cid.nii.gz: does not match its suffix" in found["problem"]
        assert get(served, f"{root}/slice/1/3")[0] == 200

    @pytest.mark.parametrize("path", ["", "/", "/wrong/", "/wrong/slice/0/1", "/../etc/passwd", "/favicon.ico"])
    def test_without_the_token_there_is_nothing(self, served: ViewServer, path: str) -> None:
        status, found = get(served, path or "/")
        assert status == 403
        assert "the token" in found["problem"]

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:80"])
    def test_another_name_of_this_machine_is_refused(self, served: ViewServer, host: str) -> None:
        assert get(served, f"/{served.token}/stack/0", host)[0] == 403

    def test_another_address_below_the_token_is_not_found(self, served: ViewServer) -> None:
        assert get(served, f"/{served.token}/other")[0] == 404

    @pytest.mark.parametrize("path", ["slice/0/14", "slice/9/0", "stack/3", "volume/9.nii.gz"])
    def test_what_is_not_there_is_said(self, served: ViewServer, path: str) -> None:
        status, found = get(served, f"/{served.token}/{path}")
        assert status == 422
        assert found["problem"].startswith("there is no ")

    def test_it_listens_on_this_machine_alone(self, served: ViewServer) -> None:
        assert served.url.startswith("http://127.0.0.1:")
        port = urlsplit(served.url).port
        with pytest.raises(InputError, match=f"--port {port}: cannot be used"):
            ViewServer(served.gallery, int(port or 0))
        with pytest.raises(InputError, match="--port 80000: cannot be used"):
            ViewServer(served.gallery, 80000)


@needs_browser
class TestBrowser:
    def test_a_page_that_holds_its_slices_works_by_keyboard(self, tmp_path: Path) -> None:
        pairs = [image_pair(seed) for seed in range(12)]
        examples = [
            Example(f"slice {place}", target, {"zero_filled": target * 0, "reconstruction": found})
            for place, (target, found) in enumerate(pairs)
        ]
        write_page(tmp_path / "page.html", "<b>", [example_stack("head </script>", examples)])
        pixel = """(() => {
          const canvas = document.querySelector('canvas[aria-label="target"]');
          const at = [Math.floor(canvas.width * 10.5 / 32), Math.floor(canvas.height * 5.5 / 24)];
          return canvas.getContext("2d").getImageData(...at, 1, 1).data[0];
        })()"""
        steps: list[str | Press] = [
            QUIET,
            STATE,
            pixel,
            Press("ArrowRight"),
            QUIET,
            STATE,
            TEXT,
            Press("End"),
            QUIET,
            STATE,
            Press("PageUp"),
        ]
        steps += [QUIET, STATE, Press("w"), Press("+"), Press("e"), QUIET, STATE, pixel, Press("r"), QUIET, STATE]
        page = visit(tmp_path / "page.html", steps)
        answers = [answer for answer in page.answers if answer is not None]
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
        first, shade, second, text, last, back, changed, _, reset = answers
        assert abs(shade - 255 * pairs[0][0][5, 10]) < 3
        assert [item["index"] for item in (first, second, last, back)] == ["0", "1", "11", "1"]
        psnr = slice_metrics(*pairs[1])["psnr"]
        assert f"PSNR {psnr:.2f} dB" in text
        assert "slice 1 (2 of 12)" in text
        assert "head </script>" in text, "the one volume's name"
        assert (changed["window"], changed["zoom"]) == ("-0.05 1.05", "1.25")
        assert (reset["window"], reset["zoom"]) == ("0.00 1.00", "1.00")

    def test_every_control_is_reached_by_tab_and_shows_it(self, served: ViewServer) -> None:
        controls = """[...document.querySelectorAll("#view, #view input, #view select, #view button")]
          .filter((one) => one.offsetParent).map((one) => one.id || one.getAttribute("aria-label") || one.type + " "
          + (one.textContent || one.parentElement.textContent).trim())"""
        focused = """(() => {
          const one = document.activeElement, shown = getComputedStyle(one);
          const ring = one.matches(":focus-visible") && shown.outlineStyle === "solid" && shown.outlineWidth === "2px";
          return [ring, one.id || one.getAttribute("aria-label") || one.type + " "
            + (one.textContent || one.parentElement.textContent).trim()];
        })()"""
        letters = """[...document.querySelectorAll("figure")].map((one) =>
          [one.querySelector("b").textContent, one.querySelectorAll(".letter").length])"""
        steps: list[str | Press] = [QUIET, controls, letters, 'document.querySelector(".legend").innerText']
        steps += [item for _ in range(9) for item in (Press("Tab"), focused)]
        _, names, lettered, legend, *reached = visit(served.url, steps).answers
        assert len(names) == 9
        assert [tuple(item) for item in reached[:8]] == [(True, name) for name in names[1:]]
        assert dict(lettered)["reconstruction"] == 4
        assert dict(lettered)["change in k-space"] == 0
        assert legend.split() == ["0", "0.20"]

    def test_a_folder_of_heads_is_shown_slice_by_slice_and_as_a_volume(self, served: ViewServer) -> None:
        loaded = """new Promise((done) => {
          const look = () => document.querySelector(".volume").dataset.loaded
            || (/cannot/.test(document.querySelector(".message").textContent) ? "no WebGL" : null);
          const again = () => look() ? done(look()) : setTimeout(again, 50);
          again();
        })"""
        steps: list[str | Press] = [
            QUIET,
            STATE,
            TEXT,
            Press("ArrowDown"),
            QUIET,
            Press("n"),
            QUIET,
            STATE,
            Press("v"),
            loaded,
            Press("v"),
        ]
        page = visit(served.url, [*steps, QUIET, Press("n"), QUIET, 'document.querySelector(".message").textContent'])
        first, text, second, volume, problem = [answer for answer in page.answers if answer is not None]
        assert {urlsplit(url).netloc for url in page.requests if url.startswith("http")} == {
            urlsplit(served.url).netloc
        }
        assert first["index"] == "7"
        assert all(word in text for word in ("target", "zero filled", "alternating", "reconstruction", "dB", "S\n"))
        assert (second["stack"], second["index"]) == ("1", "7")
        assert volume in ("28×14×30", "no WebGL")
        assert "cid.nii.gz: does not match its suffix" in problem


class TestSources:
    def test_pages_of_a_folder_are_shown_with_their_volumes(self, tmp_path: Path) -> None:
        target, found = image_pair(0)
        examples = [Example("one", target, {"unet": found})]
        write_page(tmp_path / "a-reconstruction.html", "a", [example_stack("a", examples)])
        (tmp_path / "other.html").write_text("<p>nothing of ours</p>")
        (tmp_path / "a-reconstruction.nii.gz").write_bytes(b"volume")
        server = view(tmp_path)
        try:
            assert server.gallery.names == ["a"]
            assert server.gallery.content(0) == {"count": 1, "letters": None, "volume": True}
            assert server.gallery.slice(0, 0) == slice_content("one", {"target": target, "unet": found})
        finally:
            server.close()
        assert read_page(tmp_path / "other.html") == []

    def test_a_model_without_its_data_says_how_to_see_it_on_scans(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "model", small_recipe(), trained=False)
        with pytest.raises(InputError, match=f"data set of its training.*`larmor view SCANS --model {model}` shows it"):
            view(model)

    def test_what_is_nothing_of_the_kind_is_refused(self, tmp_path: Path) -> None:
        for source in (tmp_path, tmp_path / "nothing"):
            with pytest.raises(InputError, match=str(tmp_path)):
                view(source)
        for name in ("first", "second"):
            (tmp_path / "runs" / name).mkdir(parents=True)
            (tmp_path / "runs" / name / "config.yaml").write_text("system: unet\n")
        with pytest.raises(InputError, match="runs: is a folder of runs or sweeps; name one of them: first, second"):
            view(tmp_path / "runs")
        model = write_model(tmp_path / "model", small_recipe())
        with pytest.raises(InputError, match="is a model itself"):
            view(model, ViewOptions(model="other"))
        with pytest.raises(InputError, match="method 'tv': choose one of wavelet"):
            view(write_heads(tmp_path / "heads", ["ann"])[0], ViewOptions(methods=["tv"]))

"use strict";
/* Slices side by side: linked scrolling, window, zoom. `page` is what slices_page.py makes; a served page has no
   slices in it and asks for each one. One number rules the view of all panes, so they cannot drift apart. */
function larmorSlices(root, page) {
  const state = { stack: 0, index: 0, low: 0, high: 1, zoom: 1, x: 0.5, y: 0.5, gain: 5, errors: true, shown: null };
  const known = new Map();
  const make = (tag, attributes, parent, text) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const control = (label, attributes, parent) => {
    const holder = make("label", {}, parent, label + " ");
    return make("input", attributes, holder);
  };

  root.classList.add("slices");
  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Slices side by side. Press the question mark for the keys.");
  const bar = make("div", { class: "bar" }, root);
  const chosen = make("select", { "aria-label": "Volume" }, bar);
  page.stacks.forEach((stack, place) => make("option", { value: place }, chosen, stack.name));
  chosen.hidden = page.stacks.length < 2;
  if (page.stacks.length === 1) make("b", {}, bar, page.stacks[0].name);
  const slider = control("Slice", { type: "range", min: 0, step: 1 }, bar);
  const where = make("output", { class: "where" }, bar);
  const note = make("span", { class: "note" }, bar);
  const low = control("Window from", { type: "number", step: 0.05 }, bar);
  const high = control("to", { type: "number", step: 0.05 }, bar);
  const gain = control("Errors ×", { type: "number", min: 1, max: 100, step: 1 }, bar);
  low.title = high.title = "0 to 1 is the range of the slice's intensities";
  const legend = make("span", { class: "legend", title: "Colours of errors and maps, in the range of the slice" }, bar, "0 ");
  make("span", { class: "ramp" }, legend).style.background =
    `linear-gradient(to right, ${[...Array(11).keys()].map((place) => `rgb(${colour(place / 10)})`)})`;
  const most = make("span", {}, legend);
  const reset = make("button", { type: "button" }, bar, "Reset");
  const volume = make("button", { type: "button" }, bar, "Volume (v)");
  const help = make("button", { type: "button", "aria-expanded": "false" }, bar, "Keys (?)");
  const keys = make("p", { class: "keys" }, root,
    "← → or ↑ ↓ slice · Page Up, Page Down ten slices · Home, End first, last · n, p volume · w, s window wider, " +
    "narrower · d, a brighter, darker · + − zoom · Shift and arrows move · e errors · v volume · r reset. " +
    "Mouse: wheel scrolls, Ctrl and wheel zooms, dragging moves, Shift and dragging changes the window.");
  keys.hidden = true;
  const panes = make("div", { class: "panes" }, root);
  const message = make("p", { class: "message", role: "status" }, root);
  const volumePlace = make("div", { class: "volume" }, root);
  volumePlace.hidden = true;

  function colour(error) {  // black, violet, orange, yellow
    return [
      255 * Math.min(1, 1.6 * error), 255 * Math.max(0, Math.min(1, 1.9 * error - 0.7)),
      255 * Math.max(0, error < 0.4 ? 1.5 * error : 0.9 - 0.8 * error),
    ];
  }

  async function decode(pane) {
    const packed = Uint8Array.from(atob(pane.data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = await new Response(stream).arrayBuffer();
    const stored = pane.bits === 16 ? new Uint16Array(bytes) : new Uint8Array(bytes);
    const values = new Float32Array(stored.length), top = 2 ** pane.bits - 1;
    for (let place = 0; place < stored.length; place++) {
      values[place] = pane.low + (stored[place] / top) * (pane.high - pane.low);
    }
    return { ...pane, values };
  }

  async function ask(path) {
    const answer = await fetch(path);
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.problem || answer.statusText);
    return content;
  }

  async function stackOf(place) {
    const stack = page.stacks[place];
    if (stack.count === undefined) Object.assign(stack, await ask(`stack/${place}`));
    return stack;
  }

  async function sliceOf(place, index) {
    const key = `${place}/${index}`;
    if (!known.has(key)) {
      const stack = await stackOf(place);
      const content = stack.slices ? stack.slices[index] : await ask(`slice/${place}/${index}`);
      known.set(key, { ...content, panes: await Promise.all(content.panes.map(decode)) });
      if (known.size > 64) known.delete(known.keys().next().value);
    }
    return known.get(key);
  }

  let wanted = 0;
  async function show(first) {
    const number = ++wanted;
    message.textContent = page.served ? "Loading …" : "";
    root.setAttribute("aria-busy", "true");
    try {
      const stack = await stackOf(state.stack);
      if (first) state.index = stack.slices ? 0 : Math.floor(stack.count / 2);
      state.index = Math.max(0, Math.min(stack.count - 1, state.index));
      const shown = await sliceOf(state.stack, state.index);
      if (number !== wanted) return;
      state.shown = shown;
      state.letters = stack.letters;
      message.textContent = "";
      slider.max = stack.count - 1;
      slider.value = state.index;
      where.textContent = `${shown.title} (${state.index + 1} of ${stack.count})`;
      note.textContent = shown.note || stack.note || "";
      volume.hidden = !stack.volume;
      arrange();
      draw();
    } catch (problem) {
      if (number === wanted) message.textContent = String(problem.message || problem);
    } finally {
      if (number === wanted) root.removeAttribute("aria-busy");
    }
  }

  function arrange() {
    panes.replaceChildren();
    const target = state.shown.target ? state.shown.panes[0] : null;
    for (const pane of state.shown.panes) {
      const figure = make("figure", {}, panes);
      const caption = make("figcaption", {}, figure);
      make("b", {}, caption, pane.name.replaceAll("_", " "));
      if (pane.metrics) make("span", {}, caption, pane.metrics);
      if (pane.map) {
        frame(figure, pane, { values: new Float32Array(pane.values.length) });
        continue;
      }
      frame(figure, pane, null);
      if (target && pane !== target) frame(figure, pane, target);
    }
  }

  function frame(figure, pane, target) {
    const isError = target && !pane.map;
    const holder = make("div", { class: isError ? "frame error" : "frame" }, figure);
    const what = isError ? `error of ${pane.name}` : pane.name;
    const canvas = make("canvas", { width: pane.width, height: pane.height, role: "img", "aria-label": what }, holder);
    canvas.paint = () => paint(canvas, pane, target);
    if (target) canvas.classList.add("coloured");
    if (state.letters && !isError && !pane.fixed) {  // k-space has frequencies, and no side of a person
      ["top", "bottom", "left", "right"].forEach((side, place) =>
        make("span", { class: `letter ${side}` }, holder, state.letters[place]));
    }
  }

  function paint(canvas, pane, target) {
    const off = document.createElement("canvas");
    off.width = pane.width;
    off.height = pane.height;
    const context = off.getContext("2d"), image = context.createImageData(pane.width, pane.height);
    const span = Math.max(1e-6, state.high - state.low);
    for (let place = 0; place < pane.values.length; place++) {
      let red, green, blue;
      if (target) {
        const error = Math.min(1, Math.abs(pane.values[place] - target.values[place]) * (pane.fixed ? 1 : state.gain));
        [red, green, blue] = colour(error);
      } else {
        red = green = blue = 255 * Math.max(0, Math.min(1, (pane.values[place] - state.low) / span));
      }
      image.data.set([red, green, blue, 255], 4 * place);
    }
    context.putImageData(image, 0, 0);
    const ratio = window.devicePixelRatio || 1, box = canvas.parentElement.clientWidth || pane.width;
    canvas.width = Math.round(box * ratio);
    canvas.height = Math.round((canvas.width * pane.height) / pane.width);
    const width = pane.width / state.zoom, height = pane.height / state.zoom;
    const left = Math.max(0, Math.min(pane.width - width, state.x * pane.width - width / 2));
    const top = Math.max(0, Math.min(pane.height - height, state.y * pane.height - height / 2));
    const drawn = canvas.getContext("2d");
    drawn.imageSmoothingEnabled = false;  // pixels as they are, nothing between them
    drawn.drawImage(off, left, top, width, height, 0, 0, canvas.width, canvas.height);
  }

  let planned = false;
  function draw() {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      low.value = state.low.toFixed(2);
      high.value = state.high.toFixed(2);
      gain.value = state.gain;
      most.textContent = ` ${(1 / state.gain).toPrecision(2)}`;
      legend.hidden = !panes.querySelector(".coloured");
      root.classList.toggle("without-errors", !state.errors);
      panes.querySelectorAll("canvas").forEach((canvas) => canvas.paint());
      Object.assign(root.dataset, { stack: state.stack, index: state.index, zoom: state.zoom.toFixed(2),
        window: `${state.low.toFixed(2)} ${state.high.toFixed(2)}` });
    });
  }

  const scroll = (step) => { state.index += step; return show(); };
  const choose = (place) => {
    state.stack = Math.max(0, Math.min(page.stacks.length - 1, place));
    chosen.value = state.stack;
    return show(true);
  };
  const zoom = (factor) => { state.zoom = Math.max(1, Math.min(16, state.zoom * factor)); draw(); };
  const move = (x, y) => {
    state.x = Math.max(0, Math.min(1, state.x + x / state.zoom));
    state.y = Math.max(0, Math.min(1, state.y + y / state.zoom));
    draw();
  };
  const windowing = (shift, width) => {
    const centre = (state.low + state.high) / 2 + shift, span = Math.max(0.02, state.high - state.low + width);
    state.low = centre - span / 2;
    state.high = centre + span / 2;
    draw();
  };
  const clear = () => { Object.assign(state, { low: 0, high: 1, zoom: 1, x: 0.5, y: 0.5, gain: 5 }); draw(); };
  const explain = () => {
    keys.hidden = !keys.hidden;
    help.setAttribute("aria-expanded", String(!keys.hidden));
  };

  async function toggleVolume() {
    if (!page.stacks[state.stack].volume) return;
    volumePlace.hidden = !volumePlace.hidden;
    panes.hidden = !volumePlace.hidden;
    if (volumePlace.hidden) return draw();
    try {
      volumePlace.replaceChildren();
      message.textContent = "Loading the volume …";
      if (!window.niivue) {
        await new Promise((done, failed) => {
          const script = make("script", { src: "niivue.js" }, document.head);
          script.onload = done;
          script.onerror = () => failed(new Error("NiiVue could not be loaded"));
        });
      }
      const canvas = make("canvas", { "aria-label": "Volume in three planes" }, volumePlace);
      const viewer = new niivue.Niivue({ isRadiologicalConvention: true, show3Dcrosshair: true, loadingText: "" });
      await viewer.attachToCanvas(canvas);
      await viewer.loadVolumes([{ url: `volume/${state.stack}.nii.gz`, name: `${state.stack}.nii.gz` }]);
      viewer.setSliceType(viewer.sliceTypeMultiplanar);
      message.textContent = "";
      volumePlace.dataset.loaded = viewer.volumes[0].dims.slice(1, 4).join("×");
    } catch (problem) {
      message.textContent = `The volume cannot be shown: ${problem.message || problem}. It needs WebGL 2.`;
    }
  }

  const actions = {
    ArrowRight: () => scroll(1), ArrowDown: () => scroll(1), ArrowLeft: () => scroll(-1), ArrowUp: () => scroll(-1),
    PageDown: () => scroll(10), PageUp: () => scroll(-10), Home: () => scroll(-1e9), End: () => scroll(1e9),
    n: () => choose(state.stack + 1), p: () => choose(state.stack - 1),
    w: () => windowing(0, 0.1), s: () => windowing(0, -0.1), d: () => windowing(-0.05, 0), a: () => windowing(0.05, 0),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), e: () => { state.errors = !state.errors; draw(); },
    v: toggleVolume, r: clear, "?": explain,
  };
  const moves = { ArrowRight: [0.05, 0], ArrowLeft: [-0.05, 0], ArrowDown: [0, 0.05], ArrowUp: [0, -0.05] };
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "range") return;
    const action = event.shiftKey && moves[event.key] ? () => move(...moves[event.key]) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  panes.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.ctrlKey) zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
    else scroll(Math.sign(event.deltaY));
  }, { passive: false });
  panes.addEventListener("pointermove", (event) => {
    if (!event.buttons || event.target.tagName !== "CANVAS") return;
    const x = event.movementX / event.target.clientWidth, y = event.movementY / event.target.clientHeight;
    if (event.shiftKey) windowing(y, 2 * x);
    else move(-x, -y);
  });
  chosen.addEventListener("change", () => choose(Number(chosen.value)));
  slider.addEventListener("input", () => { state.index = Number(slider.value); show(); });
  low.addEventListener("change", () => { state.low = Number(low.value); draw(); });
  high.addEventListener("change", () => { state.high = Number(high.value); draw(); });
  gain.addEventListener("change", () => { state.gain = Math.max(1, Number(gain.value)); draw(); });
  reset.addEventListener("click", clear);
  help.addEventListener("click", explain);
  volume.addEventListener("click", toggleVolume);
  window.addEventListener("resize", draw);
  if (page.stacks.length) show(true);
  else message.textContent = "There is nothing to show.";
}

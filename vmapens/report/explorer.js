"use strict";
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  if (!data.stays.length) return;

  // Viridis (Smith and van der Walt 2015) at eleven places.
  const COLOURS = [[68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
    [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37]];
  const TITLES = { mean: "Mean attention of the variants", sd: "SD of attention over the variants" };
  const HIGHLIGHT = "#D55E00";
  const NAMED = 60; // more features than these have no room for their names
  const get = (id) => document.getElementById(id);
  const make = (tag, text, parent) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const steps = data.steps;
  let stay = null;      // the stay that is shown
  let maps = [];        // its maps: {plane, shares, at}
  let panels = [];      // what is drawn: {map, canvas, title}
  let cursor = null;    // {step, feature}
  let asked = 0;        // the latest request; an earlier one that ends later is dropped

  const colour = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (COLOURS.length - 1);
    const low = Math.min(Math.floor(place), COLOURS.length - 2);
    return COLOURS[low].map((from, i) => from + (place - low) * (COLOURS[low + 1][i] - from));
  };
  const number = (value, digits = 3) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "-";
    return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  };
  const time = (step) => {
    const minutes = Math.round(step * data.minutes);
    return data.minutes % 60 === 0 ? `${minutes / 60} h` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  };
  const feature = (index) => (stay.width === data.features.length ? data.features[index] : ["all features", "", ""]);

  async function unpack(plane) {
    const packed = Uint8Array.from(atob(plane.data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const size = raw.length / plane.bytes;
    const codes = new Float32Array(size);
    for (let i = 0; i < size; i++) codes[i] = plane.bytes === 2 ? raw[i] + 256 * raw[size + i] : raw[i];
    return { plane, shares: codes.map((code) => code / plane.most), at: (step, f) => read(plane, codes[f * steps + step], f) };
  }
  function read(plane, code, f) {
    if (plane.kind === "value") {
      return code === 0 ? null : plane.low[f] + (code - 1) / 65534 * (plane.high[f] - plane.low[f]);
    }
    return plane.kind === "held" || plane.kind === "measured" ? code / plane.most : plane.largest * (code / plane.most) ** 2;
  }

  function panel(map, title, into) {
    const box = make("div", undefined, into);
    box.className = "map";
    make("h4", title, box);
    const canvas = make("canvas", undefined, box);
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title}: features from top to bottom, time from left to right. Arrow keys move.`);
    const scale = make("div", undefined, box);
    scale.className = "scale";
    make("span", "0", scale);
    const bar = make("i", undefined, scale);
    bar.style.background = `linear-gradient(90deg, ${COLOURS.map((c) => `rgb(${c})`).join(",")})`;
    make("span", `${number(map.plane.largest)} (colours by the square root)`, scale);
    const shown = { map, canvas, image: picture(map) };
    canvas.addEventListener("pointermove", (event) => move(locate(shown, event)));
    canvas.addEventListener("pointerdown", (event) => move(locate(shown, event)));
    canvas.addEventListener("pointerleave", () => move(null));
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!by) return;
      event.preventDefault();
      const from = cursor || { step: 0, feature: 0 };
      move({ step: clamp(from.step + by[0], steps), feature: clamp(from.feature + by[1], stay.width) });
    });
    panels.push(shown);
  }
  const clamp = (value, size) => Math.min(Math.max(value, 0), size - 1);

  function picture(map) {
    const image = make("canvas");
    image.width = steps;
    image.height = stay.width;
    const context = image.getContext("2d");
    const pixels = context.createImageData(steps, stay.width);
    map.shares.forEach((share, i) => pixels.data.set([...colour(share), 255], 4 * i));
    context.putImageData(pixels, 0, 0);
    return image;
  }

  function layout(canvas) {
    const width = canvas.clientWidth || 600;
    const named = stay.width <= NAMED;
    const row = Math.max(named ? 11 : 2, Math.min(26, 300 / stay.width));
    const left = named ? Math.min(170, Math.max(90, width * 0.2)) : 34;
    return { width, left, named, row, height: Math.ceil(row * stay.width), right: 8, bottom: 24 };
  }

  function draw({ map, canvas, image }) {
    const at = layout(canvas);
    const dense = window.devicePixelRatio || 1;
    canvas.width = at.width * dense;
    canvas.height = (at.height + at.bottom) * dense;
    canvas.style.height = `${at.height + at.bottom}px`;
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    context.imageSmoothingEnabled = false;
    const across = at.width - at.left - at.right;
    context.drawImage(image, at.left, 0, across, at.height);
    const family = getComputedStyle(document.body).fontFamily;
    context.fillStyle = "#333";
    context.font = `${Math.min(12, at.row)}px ${family}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    if (at.named) {
      for (let f = 0; f < stay.width; f++) context.fillText(feature(f)[0], at.left - 6, (f + 0.5) * at.row, at.left - 8);
    }
    context.font = `12px ${family}`;
    context.textBaseline = "top";
    const hours = steps * data.minutes / 60;
    const every = [1, 2, 4, 6, 8, 12, 24, 48, 96, 168].find((gap) => hours / gap * 46 < across) || Math.ceil(hours / 4);
    for (let hour = 0; hour <= hours; hour += every) {
      context.textAlign = hour === 0 ? "left" : hour + every > hours && hour >= hours - 0.02 * hours ? "right" : "center";
      context.fillText(`${hour} h`, at.left + across * hour / hours, at.height + 5);
    }
    if (!at.named) {
      context.save();
      context.translate(10, at.height / 2);
      context.rotate(-Math.PI / 2);
      context.textAlign = "center";
      context.fillText(`${stay.width} features`, 0, 0);
      context.restore();
    }
    const cell = (step, f, colour, width) => {
      context.strokeStyle = colour;
      context.lineWidth = width;
      const wide = Math.max(across / steps, 4), high = Math.max(at.row, 4);
      context.strokeRect(at.left + across * (step + 0.5) / steps - wide / 2, (f + 0.5) * at.row - high / 2, wide, high);
    };
    if (get("outline").checked) stay.top.forEach(([step, f]) => cell(step, f, HIGHLIGHT, 1.5));
    if (cursor) {
      cell(cursor.step, cursor.feature, "#000", 3.5);
      cell(cursor.step, cursor.feature, "#fff", 1.5);
    }
  }

  function locate({ canvas }, event) {
    const at = layout(canvas);
    const step = Math.floor((event.offsetX - at.left) / (at.width - at.left - at.right) * steps);
    const f = Math.floor(event.offsetY / at.row);
    return step < 0 || step >= steps || f < 0 || f >= stay.width ? null : { step, feature: f };
  }

  function move(to) {
    if (to && cursor && to.step === cursor.step && to.feature === cursor.feature) return;
    if (!to && !cursor) return;
    cursor = to;
    panels.forEach(draw);
    [...get("top-cells").tBodies[0].rows].forEach((row, i) => {
      const [step, f] = stay.top[i];
      row.classList.toggle("here", Boolean(to) && to.step === step && to.feature === f);
    });
    get("readout").textContent = to ? describe(to) : "Point at a cell to read it.";
  }

  function describe({ step, feature: f }) {
    const at = (kind) => {
      const map = maps.find(({ plane }) => plane.kind === kind);
      return map ? map.at(step, f) : undefined;
    };
    const [name, unit] = feature(f);
    const parts = [`${name}, ${time(step)}`, `mean attention ${number(at("mean"))}, SD ${number(at("sd"))}`];
    if (at("held") !== undefined) parts.push(`in the top ${data.k} of ${Math.round(100 * at("held"))} % of the variants`);
    if (at("value") !== undefined) parts.push(valued(at("value"), unit));
    if (at("measured") !== undefined) parts.push(at("measured") ? "measured" : "imputed");
    return parts.join(" · ");
  }
  const valued = (value, unit) => (value === null ? "never measured so far" : `value ${number(value, 4)} ${unit}`.trim());

  function fill() {
    const table = get("top-cells");
    table.caption.textContent = `The ${stay.top.length} cells that most variants hold in their top ${data.k}`;
    table.tBodies[0].replaceChildren(...stay.top.map(([step, f, held, mean, value, measured]) => {
      const row = make("tr");
      const [name, unit] = feature(f);
      make("td", name, row);
      make("td", time(step), row);
      make("td", value === null ? "-" : `${number(value, 4)} ${unit}`.trim(), row);
      make("td", measured === null ? "-" : measured ? "measured" : "imputed", row);
      const share = make("td", undefined, row);
      if (held !== null) {
        make("span", "", share).className = "bar";
        share.firstChild.style.width = `${Math.round(70 * held)}px`;
        share.append(`${Math.round(100 * held)} %`);
      }
      make("td", number(mean), row);
      row.addEventListener("pointerenter", () => move({ step, feature: f }));
      row.addEventListener("pointerleave", () => move(null));
      return row;
    }));
  }

  async function show(index) {
    const turn = ++asked;
    const next = data.stays[index];
    const unpacked = await Promise.all(next.planes.map(unpack));
    if (turn !== asked) return;
    stay = next;
    maps = unpacked;
    panels = [];
    cursor = null;
    get("stay-maps").replaceChildren();
    get("stay-singles").replaceChildren();
    maps.forEach((map) => {
      if (map.plane.kind in TITLES) panel(map, TITLES[map.plane.kind], get("stay-maps"));
      if (map.plane.kind === "variant") panel(map, map.plane.title, get("stay-singles"));
    });
    get("singles-title").hidden = !get("stay-singles").children.length;
    get("readout").textContent = "Point at a cell to read it.";
    fill();
    panels.forEach(draw);
    get("stay-maps").dataset.stay = stay.name;
  }

  data.stays.forEach(({ label }, index) => {
    make("option", label, get("stay")).value = index;
  });
  if (typeof DecompressionStream === "undefined") {
    get("readout").textContent = "This browser is too old to show the maps: it has no DecompressionStream.";
    return;
  }
  const complain = (error) => { get("readout").textContent = `This stay cannot be shown: ${error.message}`; };
  get("stay").addEventListener("change", (event) => { show(Number(event.target.value)).catch(complain); });
  get("outline").addEventListener("change", () => panels.forEach(draw));
  const redraw = () => panels.forEach(draw);
  window.addEventListener("resize", redraw);
  window.matchMedia("print").addEventListener("change", redraw);
  show(0).catch(complain);
})();

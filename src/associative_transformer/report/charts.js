"use strict";

/** Draws charts as SVG from the data of the page, each in the width available to it. */
const charts = (() => {
  const VIRIDIS = [
    [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
    [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
  ];

  // --- elements; text never becomes markup ---

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const node = (tag, attributes = {}, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const shape = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const hint = (text) => shape("title", {}, text);

  function text(x, y, words, attributes = {}) {
    return shape("text", { x, y, ...attributes }, words);
  }

  function drawing(width, height, label, ...children) {
    const box = { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label };
    return shape("svg", box, ...children);
  }

  // --- numbers, colors, scales ---

  const isNumber = (value) => typeof value === "number";

  function write(value, digits = 3) {
    if (!isNumber(value)) return "-";
    if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) {
      return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
    }
    return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
  }

  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "11.5px system-ui, sans-serif"; // as in style.css

  const measure = (words) => pen.measureText(words).width;

  function truncate(words, size) {
    if (measure(words) <= size) return words;
    let length = words.length - 1; // the middle is left out: names often differ only at the end
    const shortened = () => `${words.slice(0, Math.ceil(length / 2))}…${words.slice(words.length - Math.floor(length / 2))}`;
    while (length > 2 && measure(shortened()) > size) length--;
    return shortened();
  }

  function viridis(share) {
    const position = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
    const low = VIRIDIS[Math.floor(position)], high = VIRIDIS[Math.ceil(position)];
    const mixed = low.map((value, i) => Math.round(value + (position % 1) * (high[i] - value)));
    return `rgb(${mixed.join(" ")})`;
  }

  function diverging(share) {
    const side = Math.round(100 * Math.min(Math.abs(2 * share - 1), 1));
    return `color-mix(in srgb, var(--${share < 0.5 ? "c0" : "c1"}) ${side}%, var(--paper))`;
  }

  const color = (index, count) =>
    count > 8 ? viridis(index / (count - 1)) : `var(--c${index % 8})`;

  function extent(values, start) {
    const numbers = values.filter(isNumber);
    let low = Math.min(...numbers), high = Math.max(...numbers);
    if (!numbers.length) [low, high] = [0, 1];
    if (isNumber(start)) low = Math.min(start, low);
    const space = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
    return [isNumber(start) ? low : low - space, high + space];
  }

  function scale([low, high], [from, to], isLog = false) {
    const transform = isLog ? Math.log : (x) => x;
    const size = transform(high) - transform(low) || 1;
    return (value) => from + ((transform(value) - transform(low)) / size) * (to - from);
  }

  function ticks([low, high], count) {
    const rough = (high - low) / Math.max(count, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const multiples = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      multiples.push(i * step);
    }
    return multiples;
  }

  // --- parts of charts ---

  function legend(entries) {
    const items = entries.map(({ name, stroke, isDashed, isBox, isDot }) => {
      const mark = isBox
        ? shape("rect", { x: 4, y: 1, width: 16, height: 9, fill: stroke })
        : isDot ? shape("circle", { cx: 13, cy: 6, r: 5, fill: stroke })
        : shape("path", { d: "M0 6H26", stroke, "stroke-width": 2.2, ...dash(isDashed) });
      return node("li", {}, shape("svg", { viewBox: "0 0 26 11", "aria-hidden": "true" }, mark), name);
    });
    return node("ul", { class: "legend" }, ...items);
  }

  const dash = (isDashed) => (isDashed ? { "stroke-dasharray": "5 3" } : {});

  /** Returns a function that formats ticks with enough digits to distinguish them. */
  function tickFormat(values) {
    const step = Math.abs(values[1] - values[0]) || 1, most = Math.max(...values.map(Math.abs));
    const digits = Math.ceil(Math.log10(most / step + 1e-9)) + 1;
    return (value) => write(value, Math.min(Math.max(3, digits || 3), 12));
  }

  /** Returns the axes of a plot whose edges are `left`, `right`, `top` and `bottom`. */
  function axes(area, x, y, xTicks, yTicks, spec) {
    const { left, right, top, bottom } = area;
    const parts = [], [xWords, yWords] = [xTicks, yTicks].map(tickFormat);
    for (const tick of yTicks) {
      parts.push(shape("path", { d: `M${left} ${y(tick)}H${right}`, stroke: "var(--line)" }));
      parts.push(text(left - 6, y(tick) + 4, yWords(tick), { "text-anchor": "end", class: "soft" }));
    }
    parts.push(shape("path", { d: `M${left} ${bottom}H${right}`, stroke: "var(--soft)" }));
    for (const tick of xTicks) {
      parts.push(shape("path", { d: `M${x(tick)} ${bottom}v4`, stroke: "var(--soft)" }));
      const style = { "text-anchor": "middle", class: "soft" };
      parts.push(text(x(tick), bottom + 17, xWords(tick), style));
    }
    parts.push(text(right, bottom + 33, spec.x_label, { "text-anchor": "end" }));
    if (spec.y_label) parts.push(text(0, top - 10, spec.y_label));
    return parts;
  }

  /** Returns the width of the labels of a y axis. */
  const labelWidth = (values) => 14 + Math.max(...values.map(tickFormat(values)).map(measure), 8);

  // --- charts ---

  function lines(spec, width) {
    const height = Math.round(Math.min(280, Math.max(200, width * 0.6)));
    const xs = spec.series.flatMap((line) => line.x).filter(isNumber);
    const ys = spec.series.flatMap((line) =>
      line.y.flatMap((y, i) => (isNumber(y) ? [y - (line.spread[i] || 0), y + (line.spread[i] || 0)] : [])));
    const range = xs.length ? [Math.min(...xs), Math.max(...xs)] : [0, 1];
    if (range[0] === range[1]) [range[0], range[1]] = [range[0] - 0.5, range[1] + 0.5];
    const yRange = extent(ys, spec.start), yTicks = ticks(yRange, 4);
    const area = { left: labelWidth(yTicks), right: width - 14, top: 32, bottom: height - 40 };
    const x = scale(range, [area.left, area.right], spec.is_log);
    const y = scale(yRange, [area.bottom, area.top]);
    const whole = spec.x_label === "epoch" || spec.x_label.endsWith("steps");
    let xTicks = spec.is_log ? [...new Set(xs)] : ticks(range, width / 80);
    if (whole) xTicks = xTicks.filter(Number.isInteger);
    const parts = axes(area, x, y, xTicks, yTicks, spec);
    const count = spec.series.length, hue = (line, i) => color(line.hue ?? i, count);
    spec.series.forEach((line, index) => {
      const stroke = hue(line, index);
      const known = line.x.map((_, i) => i).filter((i) => isNumber(line.y[i]));
      const at = (i, shift = 0) => `${x(line.x[i]).toFixed(1)} ${y(line.y[i] + shift).toFixed(1)}`;
      if (line.spread.length) {
        const upper = known.map((i) => at(i, line.spread[i]));
        const lower = known.map((i) => at(i, -line.spread[i])).reverse();
        const d = `M${[...upper, ...lower].join("L")}Z`;
        parts.push(shape("path", { d, fill: stroke, opacity: 0.18 }));
      }
      const d = known.length ? `M${known.map((i) => at(i)).join("L")}` : "";
      const style = { d, fill: "none", stroke, "stroke-width": spec.is_thin ? 1 : 2.2 };
      parts.push(shape("path", { ...style, ...dash(line.is_dashed) }));
      if (known.length > 24 || spec.is_thin) return;
      for (const i of known) {
        const words = `${line.name}: ${write(line.y[i], 4)} at ${write(line.x[i])}`;
        const dot = { cx: x(line.x[i]), cy: y(line.y[i]), r: known.length === 1 ? 5 : 2.8, fill: stroke };
        parts.push(shape("circle", dot, hint(words)));
      }
    });
    const entries = spec.series.map((line, i) =>
      ({ name: line.name, stroke: hue(line, i), isDashed: line.is_dashed, isDot: line.x.length === 1 }));
    const plot = drawing(width, height, spec.title, ...parts);
    return count > 1 && !spec.is_thin ? [legend(entries), plot] : [plot];
  }

  /** Returns the width for labels on the left, and a function that shortens a label to fit. */
  function labels(names, width, least = 0) {
    const left = Math.max(Math.min(Math.max(...names.map(measure), 6) + 12, width * 0.4), least);
    return { left, fit: (name) => truncate(name, left - 10) };
  }

  function bars(spec, width) {
    const row = 24, { left, fit } = labels(spec.labels, width);
    const parts = [], names = Object.keys(spec.parts), marks = Object.entries(spec.marks);
    const totals = spec.labels.map((_, i) => names.reduce((sum, name) => sum + (spec.parts[name][i] || 0), 0));
    const most = isNumber(spec.end) ? spec.end : Math.max(...totals, 1e-9);
    const area = { left, right: width - 50, top: 4, bottom: 8 + row * spec.labels.length };
    const x = scale([0, most], [area.left, area.right]);
    const hue = (part, i) => (spec.hues.length ? color(spec.hues[i], 8) : color(part, names.length));
    parts.push(...axes(area, x, null, ticks([0, most], (area.right - left) / 70), [], spec));
    spec.labels.forEach((label, i) => {
      const top = 8 + row * i, middle = top + row / 2 - 3;
      parts.push(text(left - 8, middle + 4, fit(label), { "text-anchor": "end" }));
      parts.at(-1).append(hint(label));
      let from = 0;
      names.forEach((name, part) => {
        const value = spec.parts[name][i] || 0;
        const box = { x: x(from), y: top, width: Math.max(0, x(from + value) - x(from)), height: row - 7 };
        parts.push(shape("rect", { ...box, fill: hue(part, i) }, hint(`${label}, ${name}: ${write(value, 4)}`)));
        from += value;
      });
      let end = x(from);
      if (spec.low.length) {
        const d = `M${x(spec.low[i])} ${middle}H${x(spec.high[i])}`;
        parts.push(shape("path", { d, stroke: "var(--ink)", "stroke-width": 1.6 }));
        end = Math.max(end, x(spec.high[i]));
      }
      for (const [name, values] of marks) {
        const d = `M${x(values[i])} ${top - 2}v${row - 3}`;
        parts.push(shape("path", { d, stroke: "var(--c1)", "stroke-width": 3 }, hint(`${label}, ${name}: ${write(values[i], 4)}`)));
        end = Math.max(end, x(values[i]));
      }
      if (names.length === 1) parts.push(text(end + 6, middle + 4, write(totals[i])));
    });
    const entries = [
      ...names.map((name, i) => ({ name, stroke: color(i, names.length), isBox: true })),
      ...marks.map(([name]) => ({ name, stroke: "var(--c1)" })),
    ];
    const plot = drawing(width, area.bottom + 40, spec.title, ...parts);
    return entries.length > 1 ? [legend(entries), plot] : [plot];
  }

  function boxes(spec, width) {
    const row = 28, { left, fit } = labels(spec.labels, width);
    const bounds = Object.entries(spec.bounds), all = [...spec.quantiles.flat(), ...bounds.map((b) => b[1])];
    const area = { left, right: width - 16, top: 4, bottom: 8 + row * spec.labels.length };
    const range = [0, Math.max(...all) * 1.04];
    const x = scale(range, [left, area.right]);
    const parts = axes(area, x, null, ticks(range, (area.right - left) / 60), [], spec);
    bounds.forEach(([name, value], i) => {
      const line = { d: `M${x(value)} 2V${area.bottom}`, stroke: color(i + 1, 8), "stroke-width": 2 };
      parts.push(shape("path", { ...line, "stroke-dasharray": "5 3" }, hint(`${name}: ${write(value)}`)));
    });
    spec.labels.forEach((label, i) => {
      const middle = 8 + row * i + row / 2 - 3, [least, low, median, high, most] = spec.quantiles[i];
      const words = hint(`${label}: median ${write(median)}, quartiles ${write(low)} and ${write(high)}`);
      parts.push(
        text(left - 8, middle + 4, fit(label), { "text-anchor": "end" }),
        shape("path", { d: `M${x(least)} ${middle}H${x(most)}`, stroke: "var(--c0)", "stroke-width": 1.6 }),
        shape("rect", { x: x(low), y: middle - 8, width: Math.max(2, x(high) - x(low)), height: 16, fill: "var(--c0)", opacity: 0.55 }, words),
        shape("path", { d: `M${x(median)} ${middle - 9}v18`, stroke: "var(--ink)", "stroke-width": 2.5 }),
      );
    });
    const entries = bounds.map(([name], i) => ({ name, stroke: color(i + 1, 8), isDashed: true }));
    return [legend(entries), drawing(width, area.bottom + 40, spec.title, ...parts)];
  }

  function heat(spec, width) {
    const count = spec.columns.length, isLong = spec.columns.some((name) => name.length > 3);
    const { left, fit } = labels(spec.rows, width * 0.8, isLong ? 58 : 0); // room for slanted names
    const cell = Math.min((width - left - 6) / count, count > 10 ? 22 : 46), bottom = cell * spec.rows.length;
    const paint = spec.colors === "diverging" ? diverging : viridis;
    const share = (value) => (value - spec.low) / (spec.high - spec.low);
    const every = Math.ceil((isLong ? 13 : 17) / cell), parts = [];
    spec.values.forEach((row, i) => {
      if (i % every === 0) parts.push(text(left - 6, cell * (i + 0.5) + 4, fit(spec.rows[i]), { "text-anchor": "end" }));
      row.forEach((value, j) => {
        const box = { x: left + cell * j, y: cell * i, width: cell + 0.3, height: cell + 0.3, fill: paint(share(value)) };
        const words = `${spec.y_label} ${spec.rows[i]}, ${spec.x_label} ${spec.columns[j]}: ${write(value)} ${spec.unit}`;
        parts.push(shape("rect", box, hint(words)));
        if (cell < 34) return;
        const ink = spec.colors === "viridis" ? (share(value) > 0.6 ? "#000" : "#fff") : "var(--ink)";
        const style = `fill: ${ink}; pointer-events: none`;
        parts.push(text(box.x + cell / 2, box.y + cell / 2 + 4, write(value, 2), { "text-anchor": "middle", style }));
      });
    });
    spec.columns.forEach((name, j) => {
      if (j % every) return;
      const x = left + cell * (j + 0.5);
      parts.push(isLong
        ? text(x + 3, bottom + 12, truncate(name, 86), { "text-anchor": "end", transform: `rotate(-50 ${x + 3} ${bottom + 12})` })
        : text(x, bottom + 15, name, { "text-anchor": "middle" }));
    });
    const foot = bottom + (isLong ? 86 : 38);
    const stops = Array.from({ length: 40 }, (_, i) =>
      shape("rect", { x: left + 3 * i, y: foot - 10, width: 3.3, height: 10, fill: paint(i / 39) }));
    const ends = `${write(spec.low)} to ${write(spec.high)} ${spec.unit}`;
    parts.push(...stops, text(left + 128, foot - 1, ends, { class: "soft" }));
    const size = Math.max(left + cell * count + 6, left + 136 + measure(ends));
    const plot = drawing(size, foot + 4, spec.title, ...parts);
    plot.setAttribute("shape-rendering", "crispEdges");
    plot.style.maxWidth = `${size}px`;
    return [node("p", { class: "note" }, `Rows: ${spec.y_label}. Columns: ${spec.x_label}.`), plot];
  }

  /** Writes a label at each group of points, on the first side where it covers nothing. */
  function placeLabels(groups, spots, names, right, bottom) {
    const covered = spots.map(([x, y]) => [x - 3, y - 3, x + 3, y + 3]), written = [];
    let omitted = 0;
    const overlaps = ([a, b, c, d]) => a < 0 || b < 0 || c > right || d > bottom + 4
      || covered.some(([e, f, g, h]) => a < g && e < c && b < h && f < d);
    for (const near of groups) { // points at the same spot share a label
      const more = near.length > 3 ? ` and ${near.length - 3} more` : "";
      const words = near.slice(0, 3).map((i) => names[i]).join(", ") + more;
      const [x, y] = spots[near[0]], size = measure(words);
      const found = [[6, -5], [6, 12], [-6 - size, -5], [-6 - size, 12], [-size / 2, -8], [-size / 2, 16]]
        .map(([dx, dy]) => [x + dx, y + dy])
        .find(([left, base]) => !overlaps([left, base - 9, left + size, base + 2]));
      if (!found) omitted += near.length;
      else {
        written.push(text(found[0], found[1], words));
        covered.push([found[0], found[1] - 9, found[0] + size, found[1] + 2]);
      }
    }
    return { written, omitted };
  }

  function points(spec, width) {
    const side = Math.min(width, 430), bottom = side - 60, top = 28;
    const center = (values) => (Math.min(...values) + Math.max(...values)) / 2;
    const reach = (values) => (Math.max(...values) - Math.min(...values)) * 0.56;
    const aspect = (side - 76) / (bottom - top); // both axes have the same scale
    const xReach = Math.max(reach(spec.x), reach(spec.y) * aspect) || 1, yReach = xReach / aspect;
    const xRange = [center(spec.x) - xReach, center(spec.x) + xReach];
    const yRange = [center(spec.y) - yReach, center(spec.y) + yReach];
    const yTicks = ticks(yRange, 5), area = { left: labelWidth(yTicks), right: side - 16, top, bottom };
    const x = scale(xRange, [area.left, area.right]), y = scale(yRange, [area.bottom, area.top]);
    const parts = axes(area, x, y, ticks(xRange, side / 90), yTicks, spec), bySpot = new Map();
    const spots = spec.x.map((value, i) => [x(value), y(spec.y[i])]);
    spots.forEach(([cx, cy], i) => {
      const base = spec.groups.length ? `var(--c${spec.groups[i] % 8})` : "var(--c0)";
      const fill = spec.shades.length
        ? `color-mix(in oklab, ${base} ${Math.round(35 + 65 * spec.shades[i])}%, var(--paper))` : base;
      const words = spec.labels.length ? [hint(`${spec.x_label}: ${write(spec.x[i])}, ${spec.y_label}: ${write(spec.y[i])}, ${spec.labels[i]}`)] : [];
      parts.push(shape("circle", { cx, cy, r: 3.6, fill, stroke: base, "stroke-width": 0.7 }, ...words));
      if (!spec.labels.length) return;
      const spot = `${Math.round(cx / 12)} ${Math.round(cy / 12)}`;
      bySpot.set(spot, [...(bySpot.get(spot) || []), i]);
    });
    const { written, omitted } = placeLabels([...bySpot.values()], spots, spec.labels, side, bottom);
    parts.push(...written);
    const note = omitted ? [node("p", { class: "note" }, `${omitted} of ${spec.labels.length} labels would overlap and are left out; point at a dot, or see the table.`)] : [];
    const plot = drawing(side, side - 20, `${spec.title}. ${spec.note}`, ...parts);
    plot.style.maxWidth = `${side}px`;
    return [plot, ...note];
  }

  // --- numbers for other programs ---

  /** Returns the header and the rows of a chart, with all its numbers. */
  function cells(spec) {
    if (spec.kind === "lines") {
      const spread = spec.series.some((line) => line.spread.length);
      const rows = spec.series.flatMap((line) => line.x.map((x, i) =>
        [line.name, x, line.y[i], ...(spread ? [line.spread[i]] : [])]));
      return [["line", spec.x_label, spec.y_label, ...(spread ? ["spread"] : [])], ...rows];
    }
    if (spec.kind === "bars") {
      const columns = { ...spec.parts, ...(spec.low.length ? { from: spec.low, to: spec.high } : {}), ...spec.marks };
      const rows = spec.labels.map((label, i) => [label, ...Object.values(columns).map((values) => values[i])]);
      return [["", ...Object.keys(columns)], ...rows];
    }
    if (spec.kind === "boxes") {
      const rows = spec.labels.map((label, i) => [label, ...spec.quantiles[i]]);
      const bounds = Object.entries(spec.bounds).map(([name, value]) => [name, "", "", value, "", ""]);
      return [["", "5 %", "25 %", "median", "75 %", "95 %"], ...rows, ...bounds];
    }
    if (spec.kind === "heat") {
      return [[`${spec.y_label} \\ ${spec.x_label}`, ...spec.columns], ...spec.values.map((row, i) => [spec.rows[i], ...row])];
    }
    const names = spec.labels.length ? ["label"] : spec.groups.length ? ["group"] : [];
    const rows = spec.x.map((x, i) => [...(names.length ? [(spec.labels.length ? spec.labels : spec.groups)[i]] : []), x, spec.y[i]]);
    return [[...names, spec.x_label, spec.y_label], ...rows];
  }

  /** Returns a cell of CSV that no spreadsheet takes for a formula. */
  function quote(value) {
    if (isNumber(value)) return `${value}`;
    const words = `${value ?? ""}`, isFormula = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(words) && Number.isNaN(Number(words));
    const safe = isFormula ? `'${words}` : words;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  const csv = (spec) => cells(spec).map((row) => `${row.map(quote).join(",")}\n`).join("");

  const KINDS = { lines, bars, boxes, heat, points };

  function draw(plot, spec, about) {
    const width = Math.min(Math.floor(plot.clientWidth), 720);
    if (!width || plot.dataset.width === `${width}`) return;
    plot.dataset.width = width;
    plot.replaceChildren(...KINDS[spec.kind](spec, width));
    if (about) plot.querySelector("svg[role=img]").setAttribute("aria-describedby", about);
  }

  return { csv, draw, drawing, fill, hint, node, shape, text, viridis, write };
})();

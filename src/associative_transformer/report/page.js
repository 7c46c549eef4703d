/** Draws the cards and the image view, and updates the page when a control changes. */
(() => {
  const { csv, draw, drawing, fill, hint, node, shape, text, viridis, write } = charts;
  const data = JSON.parse(document.getElementById("data").textContent);

  // --- test images ---

  const patchName = (patch) => patch < 0 ? (patch === -1 && data.noun === "question" ? "the question" : "the class token")
    : `patch in row ${Math.floor(patch / data.side) + 1}, column ${(patch % data.side) + 1}`;

  function cell(patch, { around = 0, ...attributes }, ...children) {
    const size = 100 / data.side, width = size + 2 * around;
    const x = size * (patch % data.side) - around, y = size * Math.floor(patch / data.side) - around;
    return shape("rect", { x, y, width, height: width, fill: "none", ...attributes }, ...children);
  }

  function picture(item, label, ...marks) {
    const source = data.sources[data.items[item].row];
    const image = shape("image", { href: source, width: 100, height: 100, preserveAspectRatio: "none" });
    const plot = drawing(100, 100, `Test ${data.noun} ${Number(item) + 1}: ${data.items[item].text}${label}`, image, ...marks);
    plot.classList.add("picture");
    return plot;
  }

  function winner([item, patch, score]) {
    const marks = patch < 0 ? [] : [
      cell(patch, { around: 2, stroke: "#fff", "stroke-width": 5 }),
      cell(patch, { around: 1.6, stroke: "#d55e00", "stroke-width": 3.2 }),
    ];
    const words = `score ${write(score)}: ${patchName(patch)} of ${data.items[item].text}`;
    const plot = picture(item, `; ${patchName(patch)}`, ...marks, hint(words));
    plot.setAttribute("viewBox", "-4 -4 108 108"); // room for the frame
    return plot;
  }

  // --- cards of the priors ---

  function position(shares) {
    const most = Math.max(...shares) || 1;
    const cells = shares.map((share, patch) => cell(patch, { fill: viridis(share / most) }, hint(`${patchName(patch)}: ${write(100 * share)} %`)));
    const plot = drawing(100, 100, "Positions of the patches that this prior takes", ...cells);
    fill(plot, { width: 56, height: 56 }, []);
    return plot;
  }

  const row = (tag, words) => node("tr", {}, ...words.map((word) => node(tag, {}, word)));

  function table(head, rows) {
    const body = node("tbody", {}, ...rows.map((words) => row("td", words)));
    return node("table", {}, node("thead", {}, row("th", head)), body);
  }

  function card(layer, head, prior) {
    const badges = [...["dead", "duplicate"].filter((name) => layer[name][prior]), ...(head.loser[prior] ? ["never wins"] : [])];
    const shown = head.winners[prior].filter(([winner]) => winner in data.items);
    const element = node("li", { class: "card", "data-prior": prior },
      node("h3", {}, `Prior ${prior + 1}`, ...badges.map((name) => node("span", { class: "badge" }, name))),
      node("p", {}, `usage ${write(100 * layer.usage[prior])} %, entropy ${write(head.entropy[prior])} bits`),
      node("div", { class: "thumbs" }, ...shown.map(winner)));
    const special = head.special;
    if (!special) return element;
    const rows = ["class", "position", "content"].map((name, i) =>
      [name, ...["information", "baseline", "p"].map((key) => write(special[key][i][prior], 2))]);
    const facts = node("div", { class: "facts" }, table(["variable", "bits", "chance", "p"], rows));
    if (special.position[prior].length === data.side ** 2) facts.append(position(special.position[prior]));
    element.append(facts, node("p", {}, `most frequent class: ${special.class[prior]}, ${write(100 * special.share[prior])} % of its patches`));
    return element;
  }

  function priors(widget, choice) {
    const layer = data.priors[choice.layer], head = layer.heads[choice.head];
    const order = { number: (i) => i, usage: (i) => -layer.usage[i], entropy: (i) => head.entropy[i] }[choice.order];
    const kept = layer.usage.map((_, i) => i).filter((i) => ({
      all: true, dead: layer.dead[i], duplicate: layer.duplicate[i], plain: !layer.dead[i] && !layer.duplicate[i] && !head.loser[i], loser: head.loser[i],
    })[choice.show] && 100 * layer.usage[i] >= Number(choice.usage)
      && (choice.entropy === "" || head.entropy[i] <= Number(choice.entropy)));
    kept.sort((i, j) => order(i) - order(j) || i - j);
    if (!widget.children.length) widget.append(node("p", { role: "status" }), node("ul", { class: "cards" }));
    widget.children[0].textContent = `${kept.length} of ${layer.usage.length} priors`;
    widget.children[1].replaceChildren(...kept.map((i) => card(layer, head, i)));
  }

  // --- image view ---

  function picker() {
    const buttons = data.images.map((_, item) => {
      const input = node("input", { type: "radio", name: "image", value: item, "data-choice": "image", "aria-label": `Test ${data.noun} ${item + 1}: ${data.items[item].text}` });
      input.checked = item === 0;
      const label = node("label", {}, input, picture(item, ""));
      label.lastChild.setAttribute("aria-hidden", "true");
      return label;
    });
    return node("fieldset", { class: "picker" }, node("legend", {}, `Test ${data.noun}`), ...buttons);
  }

  const takes = (digits, patch) => (parseInt(digits.at(-1 - Math.floor(patch / 4)) || "0", 16) >> (patch % 4)) & 1;

  function atlas(item, heads, prior) {
    let number = 0;
    const marks = Array.from({ length: data.side ** 2 }, (_, patch) => {
      const count = heads.filter((head) => takes(head[prior], patch)).length;
      number += count > 0;
      return cell(patch, { fill: "#777", "fill-opacity": 0.88 * (1 - count / heads.length) });
    });
    const words = `prior ${prior + 1} takes ${number} ${number === 1 ? "patch" : "patches"}`;
    return node("li", {}, picture(item, `; ${words}`, ...marks, hint(words)), node("span", {}, `prior ${prior + 1}`));
  }

  function images(widget, choice) {
    if (!widget.children.length) widget.append(picker(), node("div", { class: "view" }), node("ul", { class: "atlas" }));
    const item = Number(widget.querySelector("input:checked").value);
    const image = data.images[item], taken = image.taken[choice.layer][choice.head];
    const marks = taken.flatMap(([patch, count, first]) => {
      const box = cell(patch, { stroke: "#fff", "stroke-width": 0.8, fill: "#d55e00", "fill-opacity": 0.22 });
      const size = 100 / data.side, x = size * (patch % data.side + 0.5), y = size * (Math.floor(patch / data.side) + 0.5);
      const font = Math.min(size * 0.36, 9);
      const style = `font: 600 ${font}px system-ui, sans-serif; fill: #fff; stroke: #000; stroke-width: ${font / 5}; paint-order: stroke`;
      return [box, text(x, y + font / 3, `${first + 1}${count > 1 ? "+" : ""}`, { "text-anchor": "middle", style })];
    });
    const whole = picture(item, `; ${taken.length} patches are taken`, ...marks);
    whole.classList.add("whole");
    const none = taken.length ? "" : " No prior takes any of its patches.";
    const answer = `Predicted: ${image.predicted} (confidence ${write(100 * image.confidence)} %).${none}`;
    const left = node("div", {}, whole, node("p", {}, `Test ${data.noun} ${item + 1}: ${data.items[item].text}. ${answer}`));
    const right = node("div"), heads = image.patches[choice.layer];
    widget.children[1].replaceChildren(left, right);
    const shown = choice.head < heads.length ? [heads[choice.head]] : heads;
    widget.children[2].replaceChildren(...heads[0].map((_, prior) => atlas(item, shown, prior)));
    const energy = image.energy && image.energy[choice.layer], count = energy ? energy.length : data.side ** 2;
    const before = count - data.side ** 2, by = new Map(taken.map(([patch, ...rest]) => [patch, rest]));
    if (energy) {
      const series = energy.map((y, i) => ({ name: `token ${i + 1}`, x: y.map((_, step) => step), y, spread: [] }));
      const plot = node("div", { class: "plot" });
      right.append(node("figure", {}, node("figcaption", {}, "Energy of the tokens during retrieval"), plot));
      draw(plot, { kind: "lines", title: "Energy of the tokens during retrieval; see the table for the numbers", x_label: "retrieval steps", y_label: "energy", series, is_thin: true });
    }
    const rows = Array.from({ length: count }, (_, token) => {
      const patch = token - before, [number, ...best] = by.get(patch) || [0];
      const who = best.map((prior) => prior + 1).join(", ") + (number > best.length ? ` and ${number - best.length} more` : "");
      const words = [patchName(patch), who || "none"];
      if (energy) words.push(`${image.nearest[choice.layer][token] + 1}`, write(energy[token][0], 4), write(energy[token].at(-1), 4));
      return words;
    });
    const head = ["token", "taken by priors", ...(energy ? ["reads most from prior", "energy before", "energy after"] : [])];
    right.append(node("details", {}, node("summary", { "aria-label": "Table: tokens" }, "Table"), node("div", { class: "wide", role: "group", "aria-label": "tokens" }, table(head, rows))));
  }

  const WIDGETS = { priors, images };

  // --- controls ---

  function show(side) {
    const controls = [...side.querySelectorAll(".controls [data-choice]")];
    const choice = Object.fromEntries(controls.map((control) => [control.dataset.choice, control.value]));
    for (const slider of controls.filter((control) => control.type === "range")) {
      const word = JSON.parse(slider.dataset.options)[slider.value];
      slider.setAttribute("aria-valuetext", word);
      slider.nextElementSibling.textContent = word;
    }
    for (const figure of side.querySelectorAll("[data-chart]")) {
      const needed = Object.entries(JSON.parse(figure.dataset.shownIf));
      figure.hidden = needed.some(([name, option]) => choice[name] !== `${option}`);
      if (!figure.hidden) draw(figure.querySelector(".plot"), data.charts[figure.dataset.chart], `about-${figure.dataset.chart}`);
    }
    const widget = side.querySelector("[data-widget]");
    if (widget && data[widget.dataset.widget]) WIDGETS[widget.dataset.widget](widget, choice);
  }

  /** Lets the keyboard scroll what is wider or higher than its frame. */
  function reachScrolled() {
    for (const frame of document.querySelectorAll(".wide")) {
      const scrolls = frame.scrollWidth > frame.clientWidth || frame.scrollHeight > frame.clientHeight;
      if (scrolls) frame.tabIndex = 0;
      else frame.removeAttribute("tabindex");
    }
  }

  function save(chart) {
    const link = node("a", { href: URL.createObjectURL(new Blob([csv(chart)], { type: "text/csv" })) });
    link.download = `${chart.title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.documentElement.classList.add("js");
  for (const button of document.querySelectorAll("[data-csv]")) {
    button.addEventListener("click", () => save(data.charts[button.dataset.csv]));
  }
  document.addEventListener("toggle", reachScrolled, true);
  const sides = [...document.querySelectorAll(".side")];
  for (const side of sides) side.addEventListener("input", () => show(side));
  const showAll = () => { sides.forEach(show); reachScrolled(); };
  for (const side of sides) side.addEventListener("change", reachScrolled);
  showAll();

  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(showAll, 150);
  });
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
})();

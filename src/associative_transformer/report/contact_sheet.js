"use strict";

/** Filters and sorts the pictures of a contact sheet. */
(() => {
  const sheet = document.querySelector(".sheet"), items = [...sheet.children];
  const value = (id) => document.getElementById(id)?.value ?? "";
  const confidence = (item) => Number(item.dataset.confidence);

  function show() {
    const verdict = value("verdict"), answer = value("answer"), order = value("order");
    const most = value("most") === "" ? 100 : Number(value("most"));
    let count = 0;
    for (const item of items) {
      item.hidden = (verdict && item.dataset.verdict !== verdict)
        || (answer && item.dataset.answer !== answer) || 100 * confidence(item) > most + 1e-9;
      count += !item.hidden;
    }
    const sign = { file: 0, low: 1, high: -1 }[order];
    sheet.replaceChildren(...[...items].sort((a, b) => sign * (confidence(a) - confidence(b))));
    document.getElementById("count").textContent = `${count} of ${items.length} pictures`;
  }

  document.documentElement.classList.add("js");
  document.querySelector(".controls").addEventListener("input", show);
  show();
})();

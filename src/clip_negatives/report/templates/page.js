"use strict";
(() => {
  const root = document.documentElement;
  const remembered = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a page from disk may have no storage */ } };
  const THEME = "clip-negatives-theme";
  const FIRST = 12;

  const chosen = remembered(THEME);
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  function startTheme() {
    const button = document.getElementById("theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(THEME, root.dataset.theme);
      label();
    });
    system.addEventListener("change", label);
    label();
    button.hidden = false;
  }

  function startFilter() {
    const form = document.getElementById("filter");
    if (!form) return;
    const kinds = [...document.querySelectorAll(".kind")].map((section) => ({
      section,
      more: section.querySelector(".more"),
      all: false,
      pairs: [...section.querySelectorAll(".pair")].map((item) => ({
        item,
        kind: item.dataset.kind,
        same: "same" in item.dataset,
        text: [...item.querySelectorAll(".text")].map((part) => part.textContent).join("\n").toLowerCase(),
      })),
    }));
    const total = kinds.reduce((sum, { pairs }) => sum + pairs.length, 0);
    const search = document.getElementById("search");
    const count = document.getElementById("count");

    function update() {
      const kind = form.elements.kind.value;
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let matching = 0;
      let shown = 0;
      for (const group of kinds) {
        const matches = group.pairs.filter((pair) =>
          (kind === "all" || (kind === "same" ? pair.same : pair.kind === kind)) && words.every((word) => pair.text.includes(word)));
        const first = new Set(group.all ? matches : matches.slice(0, FIRST));
        for (const { item } of group.pairs) item.hidden = true;
        for (const { item } of first) item.hidden = false;
        group.section.hidden = matches.length === 0;
        group.more.hidden = first.size === matches.length;
        group.more.textContent = `Show ${matches.length - first.size} more`;
        matching += matches.length;
        shown += first.size;
      }
      const rest = shown < matching ? `, ${shown} shown` : "";
      count.textContent = matching ? `${matching} of ${total} pairs match${rest}.` : "No pair matches.";
    }

    for (const group of kinds) {
      group.more.addEventListener("click", () => {
        const next = group.pairs.find(({ item }) => item.hidden)?.item;
        group.all = true;
        update();
        const target = next && !next.hidden ? next : group.section;
        target.tabIndex = -1; // the focused button is hidden now
        target.focus({ preventScroll: true });
      });
    }
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    addEventListener("beforeprint", () => {
      for (const group of kinds) group.all = true;
      update();
    });
    form.hidden = false;
    update();
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
  addEventListener("DOMContentLoaded", () => {
    startTheme();
    startFilter();
  });
})();

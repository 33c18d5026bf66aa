"use strict";
(() => {
  function startSuspects() {
    const element = document.getElementById("suspects-table");
    if (!element) return;
    new DataTable(element, {
      order: [],
      autoWidth: false,
      pageLength: 25,
      lengthMenu: [10, 25, 50, { label: "all", value: -1 }],
      columnDefs: [{ targets: 0, orderable: false }, { targets: [1, 2, 3, 4], orderSequence: ["desc", "asc"] }],
      language: {
        search: "Search texts and paths",
        lengthMenu: "_MENU_ pairs a page",
        info: "Pairs _START_ to _END_ of _TOTAL_",
        infoEmpty: "No pair",
        infoFiltered: "(of _MAX_)",
        zeroRecords: "No pair matches the search. Clear it to see all pairs.",
      },
    });
  }

  function startZoom() {
    const dialog = document.getElementById("enlarged");
    const content = dialog.querySelector(".content");
    document.addEventListener("click", (event) => {
      const button = event.target.closest(".zoom");
      if (!button) return;
      const sample = button.closest(".sample");
      content.replaceChildren(
        button.querySelector("svg").cloneNode(true),
        sample.querySelector(".text").cloneNode(true),
        sample.querySelector(".path").cloneNode(true),
      );
      dialog.showModal();
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  function startMap() {
    const data = document.getElementById("map-data");
    if (!data) return;
    const { rows, texts, sides } = JSON.parse(data.textContent);
    const form = document.getElementById("map-filter");
    const select = document.getElementById("cluster");
    const count = document.getElementById("map-count");
    document.getElementById("map-message").hidden = true;
    document.querySelector(".map").hidden = false;
    const style = (name) => getComputedStyle(document.body).getPropertyValue(name);
    const probe = document.createElement("span"); // resolves light-dark() to a colour
    probe.hidden = true;
    document.body.append(probe);
    const colour = (name) => {
      probe.style.color = style(name);
      return getComputedStyle(probe).color;
    };
    const chart = new Chart(document.getElementById("map-canvas"), {
      type: "scatter",
      data: { datasets: [] },
      options: {
        animation: false,
        maintainAspectRatio: false,
        elements: { point: { radius: 3, hoverRadius: 6, borderWidth: 0 } },
        scales: { x: { display: false }, y: { display: false } },
        plugins: {
          legend: { display: false },
          tooltip: {
            displayColors: false,
            callbacks: { label: ({ raw }) => [texts[raw.sample], `row ${rows[raw.sample]}, cluster ${raw.cluster}`] },
          },
        },
      },
    });

    function fillClusters() {
      const sizes = new Map();
      for (const cluster of sides[form.elements.side.value].clusters) sizes.set(cluster, (sizes.get(cluster) ?? 0) + 1);
      const largest = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
      select.replaceChildren(new Option("all", ""), ...largest.map(([name, size]) => new Option(`${name} (${size})`, name)));
    }

    function draw() {
      const { points, clusters } = sides[form.elements.side.value];
      const colours = [...Array(8).keys()].map((number) => colour(`--series-${number}`));
      const chosen = select.value;
      const all = points.map(([x, y], sample) => ({ x, y, sample, cluster: clusters[sample] }));
      const shown = chosen === "" ? all : all.filter(({ cluster }) => String(cluster) === chosen);
      const paint = ({ cluster }) => colours[cluster % colours.length];
      const datasets = [{ data: shown, pointBackgroundColor: shown.map(paint) }];
      if (chosen !== "") datasets.push({ data: all, pointBackgroundColor: colour("--line"), pointRadius: 2, pointHitRadius: 0, pointHoverRadius: 2 });
      chart.data.datasets = datasets;
      chart.update();
      count.textContent = `${shown.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} samples.`;
    }

    form.addEventListener("input", (event) => {
      if (event.target.name === "side") fillClusters();
      draw();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    form.hidden = false;
    fillClusters();
    draw();
  }

  addEventListener("DOMContentLoaded", () => {
    startSuspects();
    startZoom();
    startMap();
  });
})();

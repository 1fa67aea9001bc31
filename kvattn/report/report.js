"use strict";
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { displaylogo: false, responsive: true, showTips: false, displayModeBar: "hover" };
  const plots = [];

  const theme = () => (dark.matches ? themes.dark : themes.light);

  for (const script of document.querySelectorAll("script[data-for]")) {
    const plot = document.getElementById(script.dataset.for);
    const spec = JSON.parse(script.textContent);
    const layout = Object.assign(spec.layout, { template: theme(), autosize: true });
    Plotly.newPlot(plot, spec.data, layout, config);
    plots.push(plot);
  }

  const restyle = (change) => plots.forEach((plot) => Plotly.relayout(plot, change));
  dark.addEventListener("change", () => restyle({ template: theme() }));

  // Paper is light, and narrower than the window: figures are drawn anew for it, and back again.
  window.addEventListener("beforeprint", () => {
    for (const plot of plots) {
      // A Sankey diagram would be caught in the middle of its transition; its text is recoloured by the style sheet.
      if (plot.data[0].type === "sankey") plot.classList.add("still");
      else Plotly.relayout(plot, { template: themes.light, width: plot.closest(".pair") ? 345 : 710 });
    }
  });
  window.addEventListener("afterprint", () => restyle({ template: theme(), width: null, autosize: true }));

  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      for (const plot of details.querySelectorAll(".plot")) Plotly.Plots.resize(plot);
    });
  }

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const link = links.get(entry.target.id);
        if (link) link.classList.toggle("here", entry.isIntersecting);
      }
    },
    { rootMargin: "-20% 0px -60% 0px" },
  );
  document.querySelectorAll("section").forEach((section) => seen.observe(section));

  document.body.dataset.drawn = String(plots.length);
})();

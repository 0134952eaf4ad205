/* Starts a deck when its formulas are drawn. The theme is the one that the reader chose in the book. */
(function () {
  "use strict";

  const page = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // a browser may forbid storage to a file from disk
    }
  }

  function preferred() {
    const chosen = stored();
    if (chosen === "light" || chosen === "dark") return chosen;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  page.dataset.theme = preferred();

  function toggle() {
    page.dataset.theme = page.dataset.theme === "dark" ? "light" : "dark";
  }

  /* Code and tables are as large as the room allows. */
  function fit() {
    for (const slide of document.querySelectorAll(".slides > section")) {
      const blocks = [...slide.querySelectorAll(".shows pre")];
      if (blocks.length) {
        const size = parseFloat(getComputedStyle(blocks[0]).fontSize);
        const edges = 40; // padding and border, which do not shrink
        const room = Math.min(...blocks.map((b) => (b.clientWidth - edges) / (b.scrollWidth - edges)));
        if (room < 1) slide.style.setProperty("--fitted", `${Math.floor(2 * size * room) / 2}px`);
      }
      for (const table of slide.querySelectorAll(".shows table.dataframe")) {
        const size = parseFloat(getComputedStyle(table).fontSize);
        const room = table.closest(".shows").clientWidth / table.offsetWidth;
        if (room < 1) table.style.fontSize = `${Math.floor(2 * size * room) / 2}px`;
      }
    }
  }

  async function start() {
    if (typeof Reveal === "undefined") return; // the hand-out
    await MathJax.startup.promise;
    document.querySelector(".slides").style.width = "1280px";
    fit();
    await Reveal.initialize({
      width: 1280,
      height: 720,
      margin: 0.02,
      center: false,
      hash: true,
      slideNumber: "c/t",
      transition: "none",
      backgroundTransition: "none",
      plugins: [RevealNotes],
    });
    Reveal.addKeyBinding({ keyCode: 84, key: "T", description: "Light or dark" }, toggle);
    page.dataset.ready = "true";
  }

  window.addEventListener("DOMContentLoaded", start);
})();

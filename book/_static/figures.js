/* A figure keeps its type readable on a phone: where it would shrink too far, it scrolls sideways and says so. */
(function () {
  const LEAST = 0.7; // of its own width: type of 11 points is still 10 pixels high

  function framed(image) {
    const frame = document.createElement("div");
    frame.className = "figure-frame";
    image.replaceWith(frame);
    frame.append(image);
    return frame;
  }

  function fit(frame) {
    const image = frame.firstChild;
    const least = Math.floor(LEAST * image.naturalWidth);
    const scrolls = least > frame.clientWidth;
    image.style.width = scrolls ? `${least}px` : "";
    frame.classList.toggle("scrolls", scrolls);
    if (scrolls) {
      // What scrolls must be reached by keyboard, and what is reached must have a name.
      frame.tabIndex = 0;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", "Figure, scrolls sideways");
    } else ["tabindex", "role", "aria-label"].forEach((name) => frame.removeAttribute(name));
  }

  window.addEventListener("load", () => {
    const sizes = new ResizeObserver((entries) => entries.forEach((entry) => fit(entry.target)));
    document.querySelectorAll("article div.cell_output img").forEach((image) => sizes.observe(framed(image)));
  });
})();

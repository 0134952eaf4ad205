/* On paper nothing can be clicked: hints are opened for printing and closed again. Solutions open by themselves. */
(function () {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("article details.sd-dropdown:not([open])")];
    opened.forEach((details) => details.setAttribute("open", ""));
  });
  window.addEventListener("afterprint", () => {
    opened.splice(0).forEach((details) => details.removeAttribute("open"));
  });
})();

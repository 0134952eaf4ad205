/* What the widgets of the book share. Each of them is a script of its own, loaded after this one. */
(function () {
  "use strict";

  /* Change from one cost to another in words. */
  function changeOf(cost, reference) {
    var percent = 100 * (cost / reference - 1);
    if (cost === reference) return "the same";
    return Math.abs(percent).toFixed(1) + " % " + (percent > 0 ? "more" : "less");
  }

  function millions(cost) { return (cost / 1e6).toFixed(2) + " M"; }

  if (typeof module !== "undefined" && module.exports) {
    module.exports = { changeOf: changeOf, millions: millions };
    return;
  }

  function element(tag, attributes, children) {
    var node = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    (children || []).forEach(function (child) {
      node.appendChild(typeof child === "string" ? document.createTextNode(child) : child);
    });
    return node;
  }

  /* Calls mount(root, number) for every element of a selector, emptied, once the page is there. */
  function everywhere(selector, style, mount) {
    function start() {
      document.head.appendChild(element("style", {}, [style]));
      Array.prototype.forEach.call(document.querySelectorAll(selector), function (root, number) {
        root.textContent = "";
        mount(root, number);
      });
    }
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  }

  window.dqtWidget = { element: element, everywhere: everywhere, changeOf: changeOf, millions: millions };
})();

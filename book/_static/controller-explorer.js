/* What the shipped controller says of pictures made by rule. No dependency. The runs were recorded by
   dqt_book/widgets/controller_explorer.py; pixels and cost are computed here, and a test compares them with the package. */
(function () {
  "use strict";

  var MASTER = 8;

  /* 64 bytes of a picture at a brightness in percent, with noise of a given strength. */
  function pixelsOf(picture, noiseField, brightness, noise) {
    return picture.map(function (byte, i) {
      var value = Math.floor((byte * brightness + 50) / 100) + ((noiseField[i] * noise) >> 7);
      return Math.max(0, Math.min(255, value));
    });
  }

  /* Where the run of a setting is recorded. */
  function entryOf(data, picture, brightness, noise) {
    return (picture * data.brightness.length + brightness) * data.noise.length + noise;
  }

  /* BitOPs of one image: MACs * width * width, with the fixed layers and the controller at 8 bits. */
  function bitopsOf(data, widths) {
    return data.layers.reduce(function (sum, layer, i) {
      return sum + layer.macs * widths[i] * widths[i];
    }, (data.fixedMacs + data.controllerMacs) * MASTER * MASTER);
  }

  function widthsOf(data, entry) { return data.widths[entry].split("").map(Number); }

  if (typeof module !== "undefined" && module.exports) {
    module.exports = { pixelsOf: pixelsOf, entryOf: entryOf, bitopsOf: bitopsOf, widthsOf: widthsOf };
    return;
  }

  var shared = window.dqtWidget;
  var element = shared.element, millions = shared.millions, changeOf = shared.changeOf;
  var ROOT = ".controller-explorer";
  var STYLE = [
    "{border:1px solid var(--pst-color-border,#888);border-radius:.4rem;padding:1rem;margin:1.5rem 0;" +
    "background:var(--pst-color-surface,transparent);color:var(--pst-color-text-base,inherit)}",
    " .pictures{display:flex;flex-wrap:wrap;gap:.3rem;margin:.3rem 0 .8rem}",
    " .pictures button{padding:.2rem;line-height:0;cursor:pointer;border-radius:.3rem;background:transparent;" +
    "border:3px solid transparent}",
    " .pictures button[aria-pressed=true]{border-color:var(--pst-color-text-base,#333)}",
    " canvas{image-rendering:pixelated;border:1px solid var(--pst-color-text-muted,#777)}",
    " .pictures canvas{width:2rem;height:2rem}",
    " .stage{display:flex;flex-wrap:wrap;gap:1.2rem;align-items:flex-start;margin:.6rem 0}",
    " .stage canvas{width:9rem;height:9rem}",
    " .sliders{flex:1;min-width:12rem}",
    " label{display:block;font-weight:600}",
    " input[type=range]{width:100%;accent-color:var(--pst-color-primary,#2e86c1)}",
    " dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem 1rem;margin:.6rem 0;font-variant-numeric:tabular-nums}",
    " dt{font-weight:400;color:var(--pst-color-text-muted,#666)}", " dd{margin:0;font-weight:700}",
    " :focus-visible{outline:3px solid var(--pst-color-primary,#2e86c1);outline-offset:2px}",
    " .scroll{overflow-x:auto}",
    " table{display:table;width:100%;margin:0;border-collapse:collapse;font-size:.85rem;" +
    "font-variant-numeric:tabular-nums}",
    " :is(th,td){padding:.1rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid " +
    "var(--pst-color-border,#888)}",
    " tbody th{font-weight:400}", " tr>th:first-child{text-align:left}", " td.bar{width:45%;min-width:4rem;text-align:left}",
    " td.bar span{display:block;height:.7rem;background:var(--pst-color-primary,#2e86c1);border-radius:.15rem}",
    " tr.changed :is(th,td){font-weight:700}",
    " tr.changed td.bar span{background:repeating-linear-gradient(45deg,var(--pst-color-primary,#2e86c1) 0 .3rem," +
    "var(--pst-color-text-base,#333) .3rem .5rem)}",
    " .note{font-size:.9rem;margin:.6rem 0 0;color:var(--pst-color-text-muted,#666)}",
    " .unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}"
  ].map(function (rule) { return ROOT + rule; }).join("") +
    "@media(max-width:600px){" + ROOT + "{padding:.7rem .5rem}" + ROOT + " table{font-size:.72rem}" +
    ROOT + " :is(th,td){padding:.1rem .2rem}}";

  function paint(canvas, pixels) {
    canvas.width = canvas.height = 8;
    var context = canvas.getContext("2d"), image = context.createImageData(8, 8);
    pixels.forEach(function (byte, i) { image.data.set([byte, byte, byte, 255], 4 * i); });
    context.putImageData(image, 0, 0);
  }

  function mount(root, data) {
    var plain = data.brightness.indexOf(100);
    var state = { picture: 0, brightness: plain, noise: 0 };
    var large = element("canvas", { role: "img", "data-role": "picture" });
    var live = element("p", { "class": "unseen", role: "status", "aria-live": "polite" });
    var facts = element("dl"), body = element("tbody");

    var buttons = data.pictures.map(function (picture, i) {
      var canvas = element("canvas", { "aria-hidden": "true" });
      var button = element("button", { type: "button", "aria-label": picture.name, title: picture.name }, [canvas]);
      paint(canvas, picture.pixels);
      button.addEventListener("click", function () { state.picture = i; draw(); });
      return button;
    });

    function slider(name, text, stops, unit) {
      var shown = element("span");
      var input = element("input", { type: "range", min: 0, max: stops.length - 1, step: 1, "data-role": name });
      input.addEventListener("input", function () { state[name] = Number(input.value); draw(); });
      return {
        node: element("label", {}, [text + ": ", shown, input]),
        draw: function () {
          input.value = state[name];
          shown.textContent = stops[state[name]] + unit;
          input.setAttribute("aria-valuetext", stops[state[name]] + unit);
        }
      };
    }
    var sliders = [
      slider("brightness", "Brightness", data.brightness, " %"),
      slider("noise", "Noise, largest change of a pixel", data.noise, "")
    ];

    function fact(role, name, value) {
      facts.appendChild(element("dt", {}, [name]));
      facts.appendChild(element("dd", { "data-role": role }, [value]));
    }

    function row(layer, i, widths, before, cost) {
      var changed = widths[i] !== before[i];
      var bar = element("span", { style: "width:" + 100 * widths[i] / MASTER + "%" });
      return element("tr", { "class": changed ? "changed" : "", "data-layer": layer.name }, [
        element("th", { scope: "row" }, [layer.name]),
        element("td", { "data-role": "width" }, [widths[i] + (changed ? " (was " + before[i] + ")" : "")]),
        element("td", { "class": "bar" }, [bar]),
        element("td", {}, [(100 * layer.macs * widths[i] * widths[i] / cost).toFixed(1) + " %"])
      ]);
    }

    function draw() {
      var picture = data.pictures[state.picture];
      var entry = entryOf(data, state.picture, state.brightness, state.noise);
      var reference = entryOf(data, state.picture, plain, 0);
      var widths = widthsOf(data, entry), before = widthsOf(data, reference), cost = bitopsOf(data, widths);
      var setting = picture.name + ", brightness " + data.brightness[state.brightness] + " percent, noise " +
        data.noise[state.noise];
      paint(large, pixelsOf(picture.pixels, data.noiseField, data.brightness[state.brightness], data.noise[state.noise]));
      large.setAttribute("aria-label", setting);
      buttons.forEach(function (button, i) {
        button.setAttribute("aria-pressed", i === state.picture ? "true" : "false");
      });
      sliders.forEach(function (s) { s.draw(); });
      facts.textContent = "";
      fact("class", "Class at the chosen widths", String(data.classes[entry]));
      fact("class8", "Class at 8 bits", String(data.classesAt8[entry]));
      fact("cost", "BitOPs", millions(cost));
      fact("change", "Against the plain picture", changeOf(cost, bitopsOf(data, before)));
      fact("static", "Against 3 bits everywhere", changeOf(cost, data["static"]["3"]));
      body.textContent = "";
      data.layers.forEach(function (layer, i) { body.appendChild(row(layer, i, widths, before, cost)); });
      var differing = widths.filter(function (width, i) { return width !== before[i]; }).length;
      live.textContent = setting + ": class " + data.classes[entry] + ", " + millions(cost) + " BitOPs, " +
        differing + " layers differ from the plain picture";
    }

    var titles = ["layer", "width", "", "share of the cost"];
    var head = element("tr", {}, titles.map(function (title) {
      return title ? element("th", { scope: "col" }, [title]) : element("td");
    }));
    [
      element("div", { "class": "pictures", role: "group", "aria-label": "pictures" }, buttons),
      element("div", { "class": "stage" }, [
        large, element("div", { "class": "sliders" }, [sliders[0].node, sliders[1].node, facts])
      ]),
      element("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": "width of every layer" }, [
        element("table", {}, [
          element("caption", { "class": "unseen" }, ["The width that the controller gives each layer"]),
          element("thead", {}, [head]), body
        ])
      ]),
      element("p", { "class": "note" }, ["Striped bars, and the words in brackets, mark layers whose width differs " +
        "from that of the plain picture. Fixed layers and the controller are in the cost."]),
      live
    ].forEach(function (node) { root.appendChild(node); });
    draw();
  }

  window.dqtWidget.everywhere(ROOT, STYLE, function (root) { mount(root, window.controllerExplorerData); });
})();

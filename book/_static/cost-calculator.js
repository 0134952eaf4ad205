/* What a layer costs at any widths, and what a switch costs it. No dependency; counts as dqt_core.cost does. */
(function () {
  "use strict";

  var SIZES = {
    height: ["image height", 1, 4096], width: ["image width", 1, 4096],
    inputs: ["input channels", 1, 65536], outputs: ["output channels", 1, 65536],
    kernel: ["kernel", 1, 31], stride: ["stride", 1, 31], groups: ["groups", 1, 65536]
  };

  /* The first reason why a layer cannot be counted, or "". */
  function problemOf(layer) {
    var names = Object.keys(SIZES);
    for (var i = 0; i < names.length; i++) {
      var size = SIZES[names[i]], value = layer[names[i]];
      if (!Number.isInteger(value) || value < size[1] || value > size[2]) {
        return size[0] + " must be a whole number from " + size[1] + " to " + size[2];
      }
    }
    if (layer.inputs % layer.groups || layer.outputs % layer.groups) return "groups must divide both channel numbers";
    var reach = 2 * padding(layer) + Math.min(layer.height, layer.width);
    return reach < layer.kernel ? "the kernel is larger than the padded input" : "";
  }

  function padding(layer) { return Math.floor((layer.kernel - 1) / 2); }

  function outputSize(layer, side) {
    return Math.floor((side + 2 * padding(layer) - layer.kernel) / layer.stride) + 1;
  }

  /* Planes that a view of `width` bits reads: half_up needs the top dropped bit as well. */
  function planesOf(width, rounding) { return Math.min(width + (rounding === "half_up" ? 1 : 0), 8); }

  function layerCost(layer) {
    var weights = layer.outputs * (layer.inputs / layer.groups) * layer.kernel * layer.kernel;
    var outHeight = outputSize(layer, layer.height), outWidth = outputSize(layer, layer.width);
    var inputElements = layer.height * layer.width * layer.inputs, macs = weights * outHeight * outWidth;
    var elements = (layer.weightBits < 8 ? weights : 0) + (layer.inputBits < 8 ? inputElements : 0);
    return {
      outHeight: outHeight, outWidth: outWidth, weights: weights, inputElements: inputElements, macs: macs,
      bitops: macs * layer.weightBits * layer.inputBits, bitopsAt8: macs * 64,
      elements: elements, shifts: elements, floatMacs: 2 * elements,
      masterBytes: weights, planeBytes: weights * planesOf(layer.weightBits, layer.rounding) / 8
    };
  }

  if (typeof module !== "undefined" && module.exports) {
    module.exports = { layerCost: layerCost, problemOf: problemOf, planesOf: planesOf };
    return;
  }

  var element = window.dqtWidget.element;
  var PRESETS = [
    ["ResNet-50, 3x3 of stage 1", 56, 64, 64, 3, 1, 1],
    ["ResNet-50, 1x1 of stage 4", 7, 512, 2048, 1, 1, 1],
    ["ResNet-18 for 32x32 images, 3x3 of stage 1", 32, 64, 64, 3, 1, 1],
    ["MobileNetV2, depthwise 3x3", 56, 144, 144, 3, 1, 144],
    ["a linear layer, 512 to 10", 1, 512, 10, 1, 1, 1]
  ];

  var STYLE =
    ".cost-calculator{border:1px solid var(--pst-color-border,#888);border-radius:.4rem;padding:1rem;" +
    "margin:1.5rem 0;background:var(--pst-color-surface,transparent);color:var(--pst-color-text-base,inherit)}" +
    ".cost-calculator .fields{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));" +
    "gap:.6rem 1rem;margin:.8rem 0}" +
    ".cost-calculator label{display:block;font-size:.9rem;margin:0}" +
    ".cost-calculator input[type=number],.cost-calculator select{display:block;width:100%;box-sizing:border-box;" +
    "padding:.25rem .4rem;font:inherit;border:1px solid var(--pst-color-text-muted,#777);border-radius:.3rem;" +
    "background:var(--pst-color-background,#fff);color:var(--pst-color-text-base,inherit)}" +
    ".cost-calculator input[type=range]{display:block;width:100%;accent-color:var(--pst-color-primary,#2e86c1)}" +
    ".cost-calculator fieldset{border:0;margin:0;padding:0}" +
    ".cost-calculator legend{font-size:.9rem;margin:0;padding:0}" +
    ".cost-calculator fieldset label{display:inline-block;margin-right:.8rem}" +
    ".cost-calculator :focus-visible{outline:3px solid var(--pst-color-primary,#2e86c1);outline-offset:2px}" +
    ".cost-calculator .scroll{overflow-x:auto}" +
    ".cost-calculator table{display:table;width:100%;margin:0;border-collapse:collapse;" +
    "font-variant-numeric:tabular-nums}" +
    ".cost-calculator th,.cost-calculator td{padding:.25rem .6rem;text-align:right;" +
    "border-bottom:1px solid var(--pst-color-border,#888)}" +
    ".cost-calculator th[scope=row]{text-align:left;font-weight:400}" +
    ".cost-calculator tr.strong>*{font-weight:700}" +
    ".cost-calculator .bar{display:block;height:.5rem;border-radius:.25rem;" +
    "background:var(--pst-color-primary,#2e86c1);min-width:1px}" +
    ".cost-calculator td.share{width:26%}" +
    ".cost-calculator .problem{font-weight:700;margin:.4rem 0 0}" +
    ".cost-calculator .note{font-size:.9rem;margin:.6rem 0 0;color:var(--pst-color-text-muted,#777)}" +
    ".cost-calculator .unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}" +
    "@media(max-width:600px){.cost-calculator{padding:.7rem .5rem}.cost-calculator table{font-size:.8rem}" +
    ".cost-calculator th,.cost-calculator td{padding:.2rem}.cost-calculator td.share{display:none}" +
    ".cost-calculator th.share{display:none}}";

  function grouped(value) {
    return Number.isInteger(value) ? value.toLocaleString("en-US") :
      value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  }

  function row(name, title, value, share, strong) {
    var cells = [element("th", { scope: "row" }, [title]), element("td", { "data-role": name }, [value])];
    var last = element("td", { "class": "share" });
    if (share !== null) {
      last.appendChild(element("span", { "class": "bar", "aria-hidden": "true", style: "width:" + 100 * share + "%" }));
    }
    return element("tr", strong ? { "class": "strong" } : {}, cells.concat([last]));
  }

  function rows(cost) {
    var most = cost.masterBytes * 4;
    return [
      row("output", "output, height x width", cost.outHeight + " x " + cost.outWidth, null),
      row("macs", "MACs", grouped(cost.macs), null),
      row("bitops", "BitOPs, of those at 8 x 8 bits", grouped(cost.bitops), cost.bitops / cost.bitopsAt8),
      row("elements", "elements to switch: weights and inputs below 8 bits", grouped(cost.elements), null),
      row("shifts", "with nested codes: shifts", grouped(cost.shifts), cost.elements ? 0.5 : 0, true),
      row("float-macs", "without: float MACs, dequantize and requantize", grouped(cost.floatMacs),
        cost.elements ? 1 : 0, true),
      row("share", "elements to switch per 1,000 MACs", grouped(1000 * cost.elements / cost.macs), null),
      row("float-bytes", "weight bytes as float32", grouped(most), 1),
      row("master-bytes", "weight bytes from the master", grouped(cost.masterBytes), cost.masterBytes / most),
      row("plane-bytes", "weight bytes from bit planes", grouped(cost.planeBytes), cost.planeBytes / most)
    ];
  }

  function mount(root, id) {
    var layer = { weightBits: 4, inputBits: 4, rounding: "half_up" }, fields = {};
    var body = element("tbody"), problem = element("p", { "class": "problem", role: "alert" });
    var live = element("p", { "class": "unseen", role: "status", "aria-live": "polite" });

    function numberField(name) {
      var size = SIZES[name], input = element("input", { type: "number", min: size[1], max: size[2], step: 1, name: name });
      input.addEventListener("input", function () { layer[name] = Number(input.value || NaN); draw(); });
      fields[name] = input;
      return element("label", {}, [size[0], input]);
    }

    function bitsField(name, title) {
      var input = element("input", { type: "range", min: 1, max: 8, step: 1, name: name }), shown = element("b");
      input.value = layer[name];
      function show() {
        layer[name] = Number(input.value);
        shown.textContent = layer[name];
        input.setAttribute("aria-valuetext", layer[name] + (layer[name] > 1 ? " bits" : " bit"));
      }
      input.addEventListener("input", function () { show(); draw(); });
      show();
      return element("label", {}, [title + " ", shown, input]);
    }

    function roundingField() {
      var labels = ["half_up", "floor"].map(function (rounding) {
        var input = element("input", { type: "radio", name: "cost-rounding-" + id, value: rounding });
        input.checked = rounding === layer.rounding;
        input.addEventListener("change", function () { layer.rounding = rounding; draw(); });
        return element("label", {}, [input, " " + rounding]);
      });
      return element("fieldset", {}, [element("legend", {}, ["rounding (planes read)"])].concat(labels));
    }

    function presetField() {
      var options = PRESETS.map(function (preset, i) { return element("option", { value: i }, [preset[0]]); });
      var select = element("select", { name: "preset" }, options);
      function use() {
        var preset = PRESETS[Number(select.value)];
        var values = { height: preset[1], width: preset[1], inputs: preset[2], outputs: preset[3],
          kernel: preset[4], stride: preset[5], groups: preset[6] };
        Object.keys(values).forEach(function (name) { fields[name].value = layer[name] = values[name]; });
      }
      select.addEventListener("change", function () { use(); draw(); });
      return { label: element("label", {}, ["start from", select]), use: use };
    }

    function draw() {
      problem.textContent = problemOf(layer);
      body.textContent = "";
      if (problem.textContent) { live.textContent = ""; return; }
      var cost = layerCost(layer);
      rows(cost).forEach(function (node) { body.appendChild(node); });
      live.textContent = grouped(cost.shifts) + " shifts against " + grouped(cost.floatMacs) + " float MACs; " +
        grouped(cost.bitops) + " BitOPs";
    }

    var numbers = Object.keys(SIZES).map(numberField), preset = presetField();
    var head = element("tr", {}, [element("th", { scope: "col" }, ["count"]), element("th", { scope: "col" }, ["value"]),
      element("th", { scope: "col", "class": "share" }, ["in proportion"])]);
    head.firstChild.style.textAlign = "left";
    var table = element("table", {}, [
      element("caption", { "class": "unseen" }, ["Costs of the layer"]), element("thead", {}, [head]), body
    ]);
    [
      preset.label,
      element("div", { "class": "fields" }, numbers.concat([
        bitsField("weightBits", "bits of the weights"), bitsField("inputBits", "bits of the input"), roundingField()])),
      problem,
      element("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": "costs of the layer" }, [table]),
      element("p", { "class": "note" }, ["One image. The padding keeps the size at stride 1. Bars compare within a " +
        "group of rows: BitOPs with those at 8 bits, shifts with float MACs, bytes with float32."]),
      live
    ].forEach(function (node) { root.appendChild(node); });
    preset.use();
    draw();
  }

  window.dqtWidget.everywhere(".cost-calculator", STYLE, mount);
})();

/* One requantize, step by step. No dependency; the rule is dqt_core.integer.requantize's, and a test compares the two. */
(function () {
  "use strict";

  var INT32 = 1n << 31n, SUM_LIMIT = 1n << 62n;

  function absolute(n) { return n < 0n ? -n : n; }

  function clamp(n, lo, hi) { return n < lo ? lo : n > hi ? hi : n; }

  /* Nearest integer to total / 2**r, ties up; BigInt's >> is arithmetic. */
  function roundShift(total, r) { return (total + (1n << (r - 1n))) >> r; }

  /* What requantize refuses, as a sentence; "" if nothing. `v` holds BigInts a, d, M, B, r, lo, hi. */
  function refusal(v) {
    if (v.a < -INT32 || v.a >= INT32) return "a leaves int32";
    if (v.r < 1n || v.r > 61n) return "r is outside 1 to 61";
    if (v.d < 0n || v.d > 61n) return "d is outside 0 to 61";
    if (absolute(v.M) >= INT32) return "M reaches 2^31 in magnitude";
    var unsigned = 0n <= v.lo && v.hi <= 255n, signed = -128n <= v.lo && v.hi <= 127n;
    if (v.lo > v.hi || !(unsigned || signed)) return "lo to hi fits neither int8 (-128 to 127) nor uint8 (0 to 255)";
    var bound = (absolute(v.a) << v.d) * absolute(v.M) + absolute(v.B) + (1n << (v.r - 1n));
    return bound >= SUM_LIMIT ? "the sum can reach 2^62" : "";
  }

  /* Every intermediate of clamp(((a << d) * M + B + 2**(r-1)) >> r, lo, hi). */
  function requantize(v) {
    var shifted = v.a << v.d, product = shifted * v.M, sum = product + v.B, half = sum + (1n << (v.r - 1n));
    var rounded = half >> v.r;
    return { shifted: shifted, product: product, sum: sum, half: half, rounded: rounded, y: clamp(rounded, v.lo, v.hi) };
  }

  /* Rounded twice: first by s bits, then by the other r - s. */
  function twice(v, s) {
    var sum = (v.a << v.d) * v.M + v.B;
    return clamp(s < v.r ? roundShift(roundShift(sum, s), v.r - s) : roundShift(sum, v.r), v.lo, v.hi);
  }

  /* The dropped bits put back after the rounding instead of before it. */
  function late(v) {
    return clamp(roundShift(v.a * v.M + v.B, v.r) << v.d, v.lo, v.hi);
  }

  /* float32(a) * float32(M * 2**(d - r)) + float32(B / 2**r), to the nearest integer, ties to even. */
  function float32(v) {
    var scale = Math.fround(Number(v.M) * Math.pow(2, Number(v.d - v.r)));
    var offset = Math.fround(Number(v.B) / Math.pow(2, Number(v.r)));
    var value = Math.fround(Math.fround(Math.fround(Number(v.a)) * scale) + offset);
    var down = Math.floor(value), rest = value - down;
    var nearest = rest > 0.5 || (rest === 0.5 && down % 2 !== 0) ? down + 1 : down;
    return clamp(BigInt(nearest), v.lo, v.hi);
  }

  /* sum / 2**r, exactly, with six decimals cut off towards minus infinity. */
  function decimal(sum, r) {
    var millionths = (sum * 1000000n) >> r, whole = absolute(millionths).toString().padStart(7, "0");
    return (millionths < 0n ? "\u2212" : "") + whole.slice(0, -6) + "." + whole.slice(-6);
  }

  /* Two's complement in `width` bits. */
  function bitString(n, width) { return BigInt.asUintN(width, n).toString(2).padStart(width, "0"); }

  /* Bits that two's complement needs. */
  function bitLength(n) { return (n < 0n ? -n - 1n : n).toString(2).length + 1; }

  var REPORTED = { a: 7984n, d: 0n, M: 1583594044n, B: 0n, r: 40n, s: 31n, lo: 0n, hi: 255n };
  function like(base, changes) { return Object.assign({}, base, changes); }
  var PRESETS = [
    ["reported in 2019", REPORTED],
    ["first rounded twice", like(REPORTED, { a: 347n })],
    ["first in float32", like(REPORTED, { a: 150319n })],
    ["negative tie", { a: -5n, d: 0n, M: 1n, B: 0n, r: 1n, s: 1n, lo: -128n, hi: 127n }],
    ["views of 4 bits", like(REPORTED, { a: 297n, d: 8n })]
  ];

  if (typeof module !== "undefined" && module.exports) {
    module.exports = {
      requantize: requantize, refusal: refusal, twice: twice, late: late, float32: float32, decimal: decimal,
      bitString: bitString, bitLength: bitLength, PRESETS: PRESETS
    };
    return;
  }

  var element = window.dqtWidget.element;
  var STYLE =
    ".requantize-stepper{border:1px solid var(--pst-color-border,#888);border-radius:.4rem;padding:1rem;" +
    "margin:1.5rem 0;background:var(--pst-color-surface,transparent);color:var(--pst-color-text-base,inherit)}" +
    ".requantize-stepper .fields{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem 1rem}" +
    ".requantize-stepper .wide{grid-column:1/-1}" +
    ".requantize-stepper label{display:block;margin:0;font-size:.9rem}" +
    ".requantize-stepper label b{font-family:monospace;font-size:1rem}" +
    ".requantize-stepper input{width:100%;box-sizing:border-box;accent-color:var(--pst-color-primary,#2e86c1)}" +
    ".requantize-stepper input[type=number]{padding:.2rem .4rem;font-family:monospace;" +
    "border:1px solid var(--pst-color-text-muted,#777);border-radius:.3rem;" +
    "background:var(--pst-color-background,#fff);color:var(--pst-color-text-base,#222)}" +
    ".requantize-stepper .presets{display:flex;flex-wrap:wrap;gap:.4rem;margin:0 0 .9rem}" +
    ".requantize-stepper button{padding:.2rem .6rem;font-size:.85rem;cursor:pointer;border-radius:.3rem;" +
    "border:1px solid var(--pst-color-text-muted,#777);background:transparent;color:var(--pst-color-text-base,inherit)}" +
    ".requantize-stepper :focus-visible{outline:3px solid var(--pst-color-primary,#2e86c1);outline-offset:2px}" +
    ".requantize-stepper .scroll{overflow-x:auto;margin-top:.9rem}" +
    ".requantize-stepper table{display:table;width:100%;margin:0;border-collapse:collapse;font-size:.85rem;" +
    "font-variant-numeric:tabular-nums}" +
    ".requantize-stepper th,.requantize-stepper td{padding:.2rem .3rem;text-align:right;white-space:nowrap;" +
    "border-bottom:1px solid var(--pst-color-border,#888)}" +
    ".requantize-stepper tr>:first-child{text-align:left}" +
    ".requantize-stepper [data-way] th{white-space:normal}" +
    ".requantize-stepper .code{font-family:monospace;font-size:.7rem}" +
    ".requantize-stepper .kept{font-weight:700}" +
    ".requantize-stepper .cut{border-left:2px solid var(--pst-color-text-muted,#777);padding-left:1px;" +
    "color:var(--pst-color-text-muted,#777)}" +
    ".requantize-stepper .differs{font-weight:700;text-decoration:underline wavy}" +
    ".requantize-stepper .note{font-size:.9rem;margin:.6rem 0 0;color:var(--pst-color-text-muted,#777)}" +
    ".requantize-stepper .unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}";

  function signed(n) { return n.toString().replace("-", "\u2212"); }

  /* The bits of n; those right of the cut, the fraction, stand apart. A whole number keeps `room` bits free there. */
  function bitsCell(n, width, cut, room) {
    var all = bitString(n, width), parts = [element("span", { "class": "kept" }, [all.slice(0, width - cut)])];
    if (cut) parts.push(element("span", { "class": "cut" }, [all.slice(width - cut)]));
    return element("td", { "class": "code" }, [element("span", { style: "margin-right:calc(" + room + "ch + " +
      (room ? "3px" : "0px") + ")" }, parts)]);
  }

  function mount(root) {
    var state = like(REPORTED, {}), inputs = {};
    var steps = element("tbody"), ways = element("tbody");
    var message = element("p", { "class": "note", role: "alert" });
    var live = element("p", { "class": "unseen", role: "status", "aria-live": "polite" });
    var results = element("div");

    function field(name, meaning, type, lo, hi) {
      var shown = element("b", {}, [name]), text = " " + meaning;
      var bounds = lo === undefined ? {} : { min: lo, max: hi };
      var input = element("input", like({ type: type, step: "1", "data-field": name }, bounds));
      input.addEventListener("input", function () {
        if (/^-?\d+$/.test(input.value)) state[name] = BigInt(input.value);
        draw(input);
      });
      inputs[name] = (inputs[name] || []).concat(input);
      if (type === "range") input.setAttribute("aria-label", name + ", " + meaning);
      return element("label", {}, [shown, text, input]);
    }

    function stepRow(role, title, n, width, cut, room) {
      return element("tr", { "data-step": role }, [
        element("th", { scope: "row" }, [title]), element("td", { "data-role": "value" }, [signed(n)]),
        bitsCell(n, width, cut, room)
      ]);
    }

    function wayRow(role, title, code, y) {
      var same = code === y, gap = code - y;
      return element("tr", { "data-way": role }, [
        element("th", { scope: "row" }, [title]), element("td", { "data-role": "code" }, [signed(code)]),
        element("td", { "data-role": "verdict", "class": same ? "" : "differs" },
          [same ? "same" : "differs by " + (gap > 0n ? "+" : "") + signed(gap)])
      ]);
    }

    function drawSteps(got, r) {
      var width = [got.shifted, got.product, got.sum, got.half].map(bitLength).reduce(function (x, y) {
        return Math.max(x, y);
      }, r + 9);
      [
        ["a", "a", state.a, 0], ["shifted", "a \u226a d", got.shifted, 0], ["product", "\u00d7 M", got.product, r],
        ["sum", "+ B", got.sum, r], ["half", "+ half, 2^(r\u22121)", got.half, r],
        ["rounded", "\u226b r", got.rounded, 0], ["y", "clamp: y", got.y, 0]
      ].forEach(function (row) {
        var own = row[0] === "y" ? 8 : row[3] ? width : Math.max(bitLength(row[2]), 9);
        steps.appendChild(stepRow(row[0], row[1], row[2], own, row[3], /^(rounded|y)$/.test(row[0]) ? r : 0));
      });
    }

    function draw(source) {
      Object.keys(inputs).forEach(function (name) {
        inputs[name].forEach(function (input) {
          if (input !== source || input.type === "range") input.value = state[name].toString();
          if (input.type === "range") input.setAttribute("aria-valuetext", name + " = " + state[name]);
        });
      });
      var reason = refusal(state) || (state.s < 1n ? "s is below 1" : "");
      message.textContent = reason ? "Refused: " + reason + "." : "";
      results.hidden = Boolean(reason);
      steps.textContent = ways.textContent = "";
      if (reason) return;
      var got = requantize(state), others = [
        ["float32", "float32, ties to even", float32(state)],
        ["twice", "rounded twice: first s bits, then the rest", twice(state, state.s)],
        ["late", "dropped bits put back after rounding", late(state)]
      ];
      drawSteps(got, Number(state.r));
      ways.appendChild(element("tr", { "data-way": "exact" }, [
        element("th", { scope: "row" }, ["before rounding"]),
        element("td", { "data-role": "code" }, [decimal(got.sum, state.r)]), element("td", {}, [""])
      ]));
      others.forEach(function (way) { ways.appendChild(wayRow(way[0], way[1], way[2], got.y)); });
      live.textContent = "Code " + got.y + others.map(function (way) {
        return way[2] === got.y ? "" : "; " + way[1] + ": " + way[2];
      }).join("");
    }

    function table(caption, titles, body, label) {
      var head = element("tr", {}, titles.map(function (t) { return element("th", { scope: "col" }, [t]); }));
      return element("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": label }, [
        element("table", {}, [element("caption", { "class": "unseen" }, [caption]), element("thead", {}, [head]), body])
      ]);
    }

    var presets = element("div", { "class": "presets", role: "group", "aria-label": "examples" });
    PRESETS.forEach(function (preset) {
      var button = element("button", { type: "button" }, [preset[0]]);
      button.addEventListener("click", function () { state = like(preset[1], {}); draw(); });
      presets.appendChild(button);
    });
    var slider = field("a", "accumulator, by slider", "range", "-200000", "200000");
    slider.className = "wide";
    var fields = element("div", { "class": "fields" }, [
      slider, field("a", "accumulator", "number", "-2147483648", "2147483647"),
      field("d", "dropped bits", "number", "0", "61"), field("M", "multiplier", "number", "-2147483647", "2147483647"),
      field("B", "offset, times 2^r", "number"), field("r", "right shift", "number", "1", "61"),
      field("s", "first of two shifts", "number", "1", "61"),
      field("lo", "lowest code", "number", "-128", "255"), field("hi", "highest code", "number", "-128", "255")
    ]);
    results.appendChild(table("Every step of the requantize", ["step", "number", "bits: whole | fraction"],
      steps, "steps, as numbers and in bits"));
    results.appendChild(table("Other ways to round", ["other ways", "code", "against y"], ways, "other ways to round"));
    [presets, fields, message, results, live].forEach(function (node) { root.appendChild(node); });
    draw();
  }

  window.dqtWidget.everywhere(".requantize-stepper", STYLE, mount);
})();

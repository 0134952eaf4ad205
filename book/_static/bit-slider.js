/* One byte and its nested views. No dependency; the rule is dqt_core.nested's, and a test compares the two. */
(function () {
  "use strict";

  /* The code of `width` bits of a master code (-128..127 if signed, else 0..255). */
  function switchCode(code, width, signed, rounding) {
    var drop = 8 - width;
    if (drop === 0 || rounding === "floor") return code >> drop;
    var highest = signed ? (1 << (width - 1)) - 1 : (1 << width) - 1;
    return Math.min((code + (1 << (drop - 1))) >> drop, highest);
  }

  /* The value of a view, in master steps; signed floor codes stand for the middle of their bin. */
  function viewValue(view, width, signed, rounding) {
    var scale = 1 << (8 - width);
    return view * scale + (signed && rounding === "floor" ? (scale - 1) / 2 : 0);
  }

  /* What was added after the shift: 1, 0, or "full" where the top dropped bit is 1 and 1 would overflow. */
  function epsilonOf(code, width, signed, rounding) {
    if (rounding === "floor" || width === 8) return "";
    var top = (code >> (7 - width)) & 1;
    var added = switchCode(code, width, signed, rounding) - (code >> (8 - width));
    return top && !added ? "full" : String(added);
  }

  function bitString(code, width) {
    return (code & ((1 << width) - 1)).toString(2).padStart(width, "0");
  }

  if (typeof module !== "undefined" && module.exports) {
    module.exports = { switchCode: switchCode, viewValue: viewValue, epsilonOf: epsilonOf, bitString: bitString };
    return;
  }

  var element = window.dqtWidget.element;
  var STYLE =
    ".bit-slider{border:1px solid var(--pst-color-border,#888);border-radius:.4rem;padding:1rem;margin:1.5rem 0;" +
    "background:var(--pst-color-surface,transparent);color:var(--pst-color-text-base,inherit)}" +
    ".bit-slider fieldset{border:0;margin:0 1.5rem .6rem 0;padding:0;display:inline-block}" +
    ".bit-slider legend{font-size:.9rem;font-weight:600;margin:0;padding:0}" +
    ".bit-slider label{margin:0 .8rem 0 0;white-space:nowrap}" +
    ".bit-slider input[type=range]{width:100%;margin:.2rem 0 .6rem;accent-color:var(--pst-color-primary,#2e86c1)}" +
    ".bit-slider .bits{display:flex;gap:.25rem;margin:.4rem 0 .8rem}" +
    ".bit-slider button{flex:1;max-width:3rem;min-width:0;padding:.3rem 0;font:700 1.1rem monospace;cursor:pointer;" +
    "border:2px solid var(--pst-color-text-muted,#777);border-radius:.3rem;" +
    "background:transparent;color:var(--pst-color-text-base,inherit)}" +
    ".bit-slider button[aria-pressed=true]{background:var(--pst-color-text-base,#333);" +
    "color:var(--pst-color-background,#fff)}" +
    ".bit-slider :focus-visible{outline:3px solid var(--pst-color-primary,#2e86c1);outline-offset:2px}" +
    ".bit-slider .scroll{overflow-x:auto}" +
    ".bit-slider table{display:table;width:100%;margin:0;border-collapse:collapse;font-variant-numeric:tabular-nums}" +
    ".bit-slider th,.bit-slider td{padding:.2rem .6rem;text-align:right;white-space:nowrap;" +
    "border-bottom:1px solid var(--pst-color-border,#888)}" +
    ".bit-slider td.code{font-family:monospace}" +
    ".bit-slider tr>:nth-child(2),.bit-slider tr>:nth-child(4){text-align:left}" +
    "@media(max-width:600px){.bit-slider{padding:.7rem .5rem}.bit-slider table{font-size:.72rem}" +
    ".bit-slider th,.bit-slider td{padding:.2rem .15rem}}" +
    ".bit-slider .dropped{color:var(--pst-color-text-muted,#777);text-decoration:line-through}" +
    ".bit-slider .kept{font-weight:700}" +
    ".bit-slider .note{font-size:.9rem;margin:.6rem 0 0;color:var(--pst-color-text-muted,#777)}" +
    ".bit-slider .unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}";

  function choices(name, legend, options, onChange) {
    var inputs = options.map(function (option, i) {
      var input = element("input", { type: "radio", name: name, value: option[0] });
      input.checked = i === 0;
      input.addEventListener("change", function () { onChange(option[0]); });
      return element("label", {}, [input, " " + option[1]]);
    });
    return element("fieldset", {}, [element("legend", {}, [legend])].concat(inputs));
  }

  function mount(root) {
    var state = { pattern: 88, signed: false, rounding: "half_up" };
    var master = function () { return state.signed && state.pattern > 127 ? state.pattern - 256 : state.pattern; };
    var slider = element("input", { type: "range", step: "1", "aria-label": "master code" });
    var buttons = [7, 6, 5, 4, 3, 2, 1, 0].map(function (position) {
      var button = element("button", { type: "button" });
      button.addEventListener("click", function () { state.pattern ^= 1 << position; draw(); });
      return button;
    });
    var body = element("tbody");
    var live = element("p", { "class": "unseen", role: "status", "aria-live": "polite" });
    var heading = element("p", { "class": "kept", "data-role": "master" });

    slider.addEventListener("input", function () { state.pattern = Number(slider.value) & 255; draw(); });

    function row(width) {
      var code = master(), view = switchCode(code, width, state.signed, state.rounding);
      var value = viewValue(view, width, state.signed, state.rounding), all = bitString(code, 8);
      var epsilon = epsilonOf(code, width, state.signed, state.rounding);
      var source = element("td", { "class": "code" }, [element("span", { "class": "kept" }, [all.slice(0, width)])]);
      if (width < 8) {
        var gone = element("span", { "class": "dropped" }, [all.slice(width)]);
        source.appendChild(gone);
      }
      return element("tr", { "data-width": width }, [
        element("th", { scope: "row" }, [String(width)]), source,
        element("td", {}, [epsilon === "full" ? "0 (full)" : epsilon || "\u2013"]),
        element("td", { "class": "code", "data-role": "bits" }, [bitString(view, width)]),
        element("td", { "data-role": "code" }, [String(view)]),
        element("td", {}, [String(1 << (8 - width))]),
        element("td", { "data-role": "value" }, [String(value)]),
        element("td", { "data-role": "error" }, [(value > code ? "+" : "") + String(value - code)])
      ]);
    }

    function draw() {
      var code = master();
      slider.min = state.signed ? -128 : 0;
      slider.max = state.signed ? 127 : 255;
      slider.value = code;
      slider.setAttribute("aria-valuetext", code + ", bits " + bitString(code, 8));
      buttons.forEach(function (button, i) {
        var on = (state.pattern >> (7 - i)) & 1;
        button.textContent = String(on);
        button.setAttribute("aria-pressed", on ? "true" : "false");
        button.setAttribute("aria-label", "bit " + (7 - i) + ", worth " +
          (state.signed && i === 0 ? "minus 128" : 1 << (7 - i)));
      });
      heading.textContent = "Master code q = " + code;
      body.textContent = "";
      for (var width = 8; width >= 1; width--) body.appendChild(row(width));
      live.textContent = "Master code " + code + "; at 4 bits the code is " +
        switchCode(code, 4, state.signed, state.rounding);
    }

    var titles = ["b", "kept, dropped", "\u03b5", "view", "code", "step", "value", "error"];
    var head = element("tr", {}, titles.map(function (t) { return element("th", { scope: "col" }, [t]); }));
    var table = element("table", {}, [
      element("caption", { "class": "unseen" }, ["The views of the master code at every width"]),
      element("thead", {}, [head]), body
    ]);
    [
      choices("bit-slider-sign", "Codes", [["unsigned", "unsigned"], ["signed", "signed"]], function (value) {
        state.signed = value === "signed"; draw();
      }),
      choices("bit-slider-rounding", "Rounding", [["half_up", "half_up"], ["floor", "floor"]], function (value) {
        state.rounding = value; draw();
      }),
      heading, slider,
      element("div", { "class": "bits", role: "group", "aria-label": "bits of the master, most significant first" },
        buttons),
      element("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": "views at every width" },
        [table]),
      element("p", { "class": "note" }, ["Step, value and error are in master steps. Signed floor views are " +
        "read at the middle of their bin. Arrow keys move the slider; pressing a bit flips it."]),
      live
    ].forEach(function (node) { root.appendChild(node); });
    draw();
  }

  window.dqtWidget.everywhere(".bit-slider", STYLE, mount);
})();

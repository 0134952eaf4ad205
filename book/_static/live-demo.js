/* The live demo: a picture is drawn, loaded or taken from the test set, and the network runs on it here, in
   integers (program-runner.js). No dependency, no network; the data is written when the book is built. */
(function () {
  "use strict";

  var SIZE = 32, CELL = 4, RADIUS = 2.4, DETAIL = 128;

  /* Strokes are lists of [x, y] in 0..32. The training digits fill their square: so does a fitted drawing. */
  function fitted(strokes) {
    var points = [].concat.apply([], strokes);
    if (!points.length) return strokes;
    function extent(axis) {
      var values = points.map(function (point) { return point[axis]; });
      return [Math.min.apply(null, values), Math.max.apply(null, values)];
    }
    var x = extent(0), y = extent(1), room = SIZE - 2 * RADIUS;
    var scale = Math.min(room / Math.max(x[1] - x[0], y[1] - y[0], 1), 4);
    return strokes.map(function (stroke) {
      return stroke.map(function (point) {
        return [
          SIZE / 2 + (point[0] - (x[0] + x[1]) / 2) * scale,
          SIZE / 2 + (point[1] - (y[0] + y[1]) / 2) * scale
        ];
      });
    });
  }

  function distanceToSegment(px, py, a, b) {
    var dx = b[0] - a[0], dy = b[1] - a[1], length = dx * dx + dy * dy;
    var along = length ? Math.max(0, Math.min(1, ((px - a[0]) * dx + (py - a[1]) * dy) / length)) : 0;
    return Math.hypot(px - a[0] - along * dx, py - a[1] - along * dy);
  }

  /* 32x32 zeros and ones: a pixel is on where its centre is within the pen's radius. */
  function bitmapOf(strokes) {
    var on = new Uint8Array(SIZE * SIZE);
    strokes.forEach(function (stroke) {
      stroke.forEach(function (point, i) {
        var before = stroke[Math.max(i - 1, 0)];
        for (var at = 0; at < on.length; at++) {
          var px = (at % SIZE) + 0.5, py = Math.floor(at / SIZE) + 0.5;
          if (!on[at] && distanceToSegment(px, py, before, point) <= RADIUS) on[at] = 1;
        }
      });
    });
    return on;
  }

  /* 8x8 bytes of grey as the set was made: pixels that are on in each block of 4x4, 0..16 as 0..255. */
  function greyOfBitmap(on) {
    return blocks(on).map(function (count) { return Math.floor((count * 255 + 8) / 16); });
  }

  function blocks(values) {
    var sums = new Array(64).fill(0);
    values.forEach(function (value, at) {
      sums[8 * Math.floor(at / SIZE / CELL) + Math.floor((at % SIZE) / CELL)] += value;
    });
    return sums;
  }

  /* Bytes of grey of a square picture in RGBA, over white paper. */
  function lightOf(rgba) {
    var grey = [];
    for (var i = 0; i < rgba.length; i += 4) {
      var light = (rgba[i] * 77 + rgba[i + 1] * 151 + rgba[i + 2] * 28) >> 8;
      grey.push(255 - (((255 - light) * rgba[i + 3]) >> 8));
    }
    return grey;
  }

  /* Mean of a square picture's border. */
  function groundOf(grey, side) {
    var border = grey.filter(function (_, at) {
      return at < side || at >= side * (side - 1) || at % side === 0 || at % side === side - 1;
    });
    return border.reduce(function (sum, value) { return sum + value; }, 0) / border.length;
  }

  /* [left, top, side] of the square around what stands out from the ground, in parts of the picture; null where
     nothing does, or where it fills the picture as it is. */
  function inkOf(rgba, side) {
    var grey = lightOf(rgba), ground = groundOf(grey, side);
    var apart = grey.map(function (value) { return Math.abs(value - ground); });
    var most = apart.reduce(function (top, value) { return Math.max(top, value); }, 0);
    if (most < 32) return null;
    var low = [side, side], high = [-1, -1];
    apart.forEach(function (value, at) {
      if (2 * value < most) return;
      [at % side, Math.floor(at / side)].forEach(function (place, axis) {
        low[axis] = Math.min(low[axis], place);
        high[axis] = Math.max(high[axis], place);
      });
    });
    var size = Math.max(high[0] - low[0], high[1] - low[1]) + 1;
    if (8 * size > 7 * side) return null;
    return [(low[0] + high[0] + 1 - size) / 2 / side, (low[1] + high[1] + 1 - size) / 2 / side, size / side];
  }

  /* 8x8 bytes of a picture of 32x32 RGBA: light ink on a dark ground, from black to white. */
  function greyOfPixels(rgba) {
    var grey = lightOf(rgba), ground = groundOf(grey, SIZE);
    var means = blocks(ground > 127 ? grey.map(function (value) { return 255 - value; }) : grey)
      .map(function (sum) { return (sum + 8) >> 4; });
    var low = Math.min.apply(null, means), high = Math.max.apply(null, means);
    return means.map(function (value) { return high > low ? Math.floor(((value - low) * 255) / (high - low)) : 0; });
  }

  if (typeof module !== "undefined" && module.exports) {
    module.exports = { fitted: fitted, bitmapOf: bitmapOf, greyOfBitmap: greyOfBitmap, greyOfPixels: greyOfPixels, inkOf: inkOf };
    return;
  }

  var shared = window.dqtWidget;
  var element = shared.element, millions = shared.millions, changeOf = shared.changeOf;
  var ROOT = ".live-demo";
  var STYLE = [
    "{border:1px solid var(--pst-color-border,#888);border-radius:.4rem;padding:1rem;margin:1.5rem 0;" +
    "background:var(--pst-color-surface,transparent);color:var(--pst-color-text-base,inherit)}",
    " .stage{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1.2rem}",
    " h3{font-size:1rem;margin:1rem 0 .4rem}",
    " canvas{image-rendering:pixelated;border:1px solid var(--pst-color-text-muted,#777);display:block}",
    " canvas.draw{width:min(16rem,100%);aspect-ratio:1;touch-action:none;cursor:crosshair;background:#000}",
    " canvas.seen{width:6rem;height:6rem}",
    " .row{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.5rem 0}",
    " button{width:auto;flex:none;padding:.25rem .7rem;border:1px solid var(--pst-color-text-muted,#777);border-radius:.3rem;" +
    "background:transparent;color:inherit;cursor:pointer}",
    " label{display:block;margin:.4rem 0}", " input[type=range]{width:100%;accent-color:var(--pst-color-primary,#2e86c1)}",
    " input[type=file]{max-width:100%;color:inherit}",
    " .answer{display:flex;gap:1rem;align-items:center}", " .answer strong{font-size:3.2rem;line-height:1}",
    " dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem 1rem;margin:.6rem 0;font-variant-numeric:tabular-nums}",
    " dt{font-weight:400;color:var(--pst-color-text-muted,#666)}", " dd{margin:0;font-weight:700}",
    " :focus-visible{outline:3px solid var(--pst-color-primary,#2e86c1);outline-offset:2px}",
    " .scroll{overflow-x:auto}",
    " table{display:table;width:100%;margin:0;border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}",
    " :is(th,td){padding:.1rem .4rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--pst-color-border,#888)}",
    " tbody th{font-weight:400}", " tr>th:first-child{text-align:left}",
    " td.bar{width:35%;min-width:3rem;text-align:left}", " td.slide{width:8rem;min-width:6rem}",
    " td.slide input{display:block;min-height:1.5rem}",
    " td.bar span{display:block;height:.7rem;background:var(--pst-color-primary,#2e86c1);border-radius:.15rem}",
    " tr.best :is(th,td){font-weight:700}", " tr.forced :is(th,td){font-weight:700}",
    " tr.forced td.bar span{background:repeating-linear-gradient(45deg,var(--pst-color-primary,#2e86c1) 0 .3rem," +
    "var(--pst-color-text-base,#333) .3rem .5rem)}",
    " .cost{height:1rem;border:1px solid var(--pst-color-text-muted,#777);border-radius:.2rem;overflow:hidden}",
    " .cost span{display:block;height:100%;background:var(--pst-color-primary,#2e86c1)}",
    " .note{font-size:.9rem;margin:.6rem 0 0;color:var(--pst-color-text-muted,#666);overflow-wrap:anywhere}",
    " .unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}"
  ].map(function (rule) { return ROOT + rule; }).join("") +
    "@media(max-width:600px){" + ROOT + "{padding:.7rem .5rem}" + ROOT + " table{font-size:.75rem}" +
    ROOT + " :is(th,td){padding:.1rem .2rem}}";

  function button(text, action) {
    var node = element("button", { type: "button" }, [text]);
    node.addEventListener("click", action);
    return node;
  }

  function paintGrey(canvas, grey, side) {
    canvas.width = canvas.height = side;
    var context = canvas.getContext("2d"), image = context.createImageData(side, side);
    grey.forEach(function (byte, i) { image.data.set([byte, byte, byte, 255], 4 * i); });
    context.putImageData(image, 0, 0);
  }

  function mount(root, data) {
    var library = window.programRunner, program = data.program, runner = new library.Runner(program);
    var images = library.decode({ dtype: "uint8", shape: [data.labels.length, 8, 8], base64: data.images }).values;
    var widths = program.choices.map(function (pair) { return pair[0]; });
    var scale = Math.pow(2, program.ops[program.ops.length - 1].r);
    var full = library.bitops(program, program.layers.map(function () { return [8, 8]; }), false);
    /* 0 is the controller's choice, k the k-th width. */
    var forced = program.layers.map(function () { return 0; });
    var state = { source: "", grey: null, label: null };

    // Drawing

    var strokes = [], pen = { x: 16, y: 16, down: false }, drawing = false, waiting = false, focused = false;
    var pad = element("canvas", {
      "class": "draw", role: "application", tabindex: "0", "data-role": "pad",
      "aria-label": "drawing pad: draw a digit with the mouse or a finger, or move with the arrow keys and press " +
        "space to put the pen down or lift it"
    });
    var fit = element("input", { type: "checkbox", checked: "" });

    /* What is drawn, or else what is judged. */
    function paintPad() {
      var bitmap = bitmapOf(strokes), isDrawn = state.source === "drawing";
      paintGrey(pad, Array.prototype.map.call(bitmap, function (on, at) {
        if (isDrawn) return on ? 255 : 0;
        return state.grey[8 * Math.floor(at / SIZE / CELL) + Math.floor((at % SIZE) / CELL)];
      }), SIZE);
      if (!focused) return;
      var context = pad.getContext("2d");
      context.fillStyle = pen.down ? "#d0661f" : "#2e86c1";
      context.fillRect(pen.x - 1, pen.y - 1, 3, 3);
    }

    function useDrawing() {
      state.source = "drawing";
      state.label = null;
      state.grey = greyOfBitmap(bitmapOf(fit.checked ? fitted(strokes) : strokes));
      paintPad();
      draw();
    }

    function placeOf(event) {
      var box = pad.getBoundingClientRect();
      return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
    }
    pad.addEventListener("pointerdown", function (event) {
      drawing = true;
      pad.setPointerCapture(event.pointerId);
      strokes.push([placeOf(event)]);
      useDrawing();
      event.preventDefault();
    });
    pad.addEventListener("pointermove", function (event) {
      if (!drawing) return;
      strokes[strokes.length - 1].push(placeOf(event));
      /* One run for each frame: a pen is faster than a network. */
      if (!waiting) requestAnimationFrame(function () { waiting = false; useDrawing(); });
      waiting = true;
    });
    ["pointerup", "pointercancel"].forEach(function (name) {
      pad.addEventListener(name, function () { drawing = false; });
    });
    var MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    pad.addEventListener("keydown", function (event) {
      var move = MOVES[event.key];
      if (event.key === " ") {
        pen.down = !pen.down;
        if (pen.down) strokes.push([[pen.x + 0.5, pen.y + 0.5]]);
      } else if (move) {
        pen.x = Math.max(0, Math.min(SIZE - 1, pen.x + move[0]));
        pen.y = Math.max(0, Math.min(SIZE - 1, pen.y + move[1]));
        if (pen.down) strokes[strokes.length - 1].push([pen.x + 0.5, pen.y + 0.5]);
      } else return;
      event.preventDefault();
      if (pen.down) useDrawing();
      else paintPad();
    });
    pad.addEventListener("focus", function () { focused = true; paintPad(); });
    pad.addEventListener("blur", function () { focused = false; pen.down = false; paintPad(); });
    fit.addEventListener("change", function () { if (state.source === "drawing") useDrawing(); });

    function clear() {
      strokes = [];
      pen.down = false;
      useDrawing();
    }

    /* A picture that was not drawn takes the drawing's place. */
    function usePicture(source, label, grey) {
      strokes = [];
      state.source = source;
      state.label = label;
      state.grey = grey;
      paintPad();
      draw();
    }

    // Test images

    var picked = element("input", { type: "range", min: 0, max: data.labels.length - 1, step: 1, value: 0, "data-role": "test-image" });
    var pickedName = element("span");
    function greyOfTest(i) { return Array.from(images.subarray(64 * i, 64 * i + 64)); }
    function useTest() {
      var i = Number(picked.value);
      usePicture("test image " + i, data.labels[i], greyOfTest(i));
    }
    picked.addEventListener("input", useTest);

    // Own pictures

    var file = element("input", { type: "file", accept: "image/*" });
    var trouble = element("p", { role: "alert", "data-role": "trouble" });
    file.addEventListener("change", function () {
      var chosen = file.files[0], picture = new Image();
      if (!chosen) return;
      trouble.textContent = "";
      picture.onload = function () {
        var side = Math.min(picture.naturalWidth, picture.naturalHeight);
        var left = (picture.naturalWidth - side) / 2, top = (picture.naturalHeight - side) / 2;
        /* The part of the square from (x, y), `part` of its side wide, as pixels; beyond it lies its ground. */
        function pixels(count, x, y, part, ground) {
          var canvas = element("canvas", { width: count, height: count }), context = canvas.getContext("2d");
          var scale = count / (part * side);
          context.fillStyle = "rgb(" + [ground, ground, ground].join(",") + ")";
          context.fillRect(0, 0, count, count);
          context.imageSmoothingQuality = "high";
          context.drawImage(picture, left, top, side, side, -x * side * scale, -y * side * scale, side * scale, side * scale);
          return context.getImageData(0, 0, count, count).data;
        }
        var whole = pixels(DETAIL, 0, 0, 1, 255), ink = fit.checked ? inkOf(whole, DETAIL) : null;
        var ground = Math.round(groundOf(lightOf(whole), DETAIL));
        usePicture(chosen.name, null, greyOfPixels(pixels(SIZE, ink ? ink[0] : 0, ink ? ink[1] : 0, ink ? ink[2] : 1, ground)));
        URL.revokeObjectURL(picture.src);
      };
      picture.onerror = function () {
        trouble.textContent = chosen.name + " is not a picture that this browser can read; choose a PNG or a JPEG.";
      };
      picture.src = URL.createObjectURL(chosen);
    });

    // Widths

    function slider(label, attributes, input) {
      var node = element("input", Object.assign({ type: "range", min: 0, max: widths.length, step: 1, value: 0 }, attributes));
      if (label) node.setAttribute("aria-label", label);
      node.addEventListener("input", function () { input(Number(node.value)); });
      return node;
    }
    var all = slider("", { "data-role": "all" }, function (value) {
      forced = forced.map(function () { return value; });
      draw();
    });
    var allName = element("span");
    var sliders = program.layers.map(function (name, i) {
      return slider("width of " + name, { "data-layer": name }, function (value) { forced[i] = value; draw(); });
    });

    // What is shown

    var seen = element("canvas", { "class": "seen", role: "img", "data-role": "seen" });
    var answer = element("strong", { "data-role": "class" }), source = element("span");
    var facts = element("dl"), scores = element("tbody"), body = element("tbody");
    var cost = element("span"), live = element("p", { "class": "unseen", role: "status", "aria-live": "polite" });
    var checked = element("p", { "class": "note", role: "status", "data-role": "checked" });

    function fact(role, name, value) {
      facts.appendChild(element("dt", {}, [name]));
      facts.appendChild(element("dd", { "data-role": role }, [value]));
    }

    function bar(share) { return element("td", { "class": "bar" }, [element("span", { style: "width:" + share + "%" })]); }

    var rows = program.layers.map(function (name, i) {
      var width = element("td", { "data-role": "width" }), part = element("td"), filled = bar(0);
      var row = element("tr", {}, [
        element("th", { scope: "row" }, [name]), element("td", { "class": "slide" }, [sliders[i]]), width, filled, part
      ]);
      body.appendChild(row);
      return { row: row, width: width, bar: filled.firstChild, part: part };
    });

    function draw() {
      var asked = forced.map(function (k) { return k ? widths[k - 1] : 0; });
      var start = performance.now();
      var result = runner.run(library.asImage(state.grey), asked);
      var milliseconds = performance.now() - start;
      var best = library.classOf(result.logits), bits = library.bitops(program, result.widths, forced.indexOf(0) >= 0);
      show(result, best, bits, milliseconds);
      window.liveDemoState = { grey: state.grey, logits: result.logits.map(String), widths: result.widths, bitops: bits };
    }

    function show(result, best, bits, milliseconds) {
      paintGrey(seen, state.grey, 8);
      seen.setAttribute("aria-label", "what the network sees: " + state.source);
      answer.textContent = String(best);
      source.textContent = state.source;
      pickedName.textContent = picked.value + ", a " + data.labels[Number(picked.value)];
      picked.setAttribute("aria-valuetext", pickedName.textContent);
      var values = result.logits.map(function (logit) { return Number(logit) / scale; });
      var low = Math.min.apply(null, values), high = Math.max.apply(null, values);
      scores.textContent = "";
      values.forEach(function (value, k) {
        scores.appendChild(element("tr", { "class": k === best ? "best" : "" }, [
          element("th", { scope: "row" }, [k + (k === best ? " (answer)" : "")]),
          bar(high > low ? (100 * (value - low)) / (high - low) : 100), element("td", {}, [value.toFixed(2)])
        ]));
      });
      facts.textContent = "";
      if (state.label !== null) fact("label", "Its label", String(state.label));
      fact("cost", "BitOPs", millions(bits));
      fact("change", "Against 8 bits everywhere", changeOf(bits, full));
      fact("time", "Computed here in", milliseconds.toFixed(0) + " ms");
      cost.style.width = Math.min(100, (100 * bits) / full) + "%";
      var same = forced.every(function (k) { return k === forced[0]; });
      var name = !same ? "set one by one" : forced[0] ? widths[forced[0] - 1] + " bits" : "the controller chooses";
      allName.textContent = name;
      if (same) all.value = forced[0];
      all.setAttribute("aria-valuetext", name);
      rows.forEach(function (r, i) {
        var width = result.widths[i][0], part = program.macs[i] * width * width;
        r.row.className = forced[i] ? "forced" : "";
        r.width.textContent = width + (forced[i] ? " (set)" : "");
        r.bar.style.width = (100 * width) / 8 + "%";
        r.part.textContent = ((100 * part) / bits).toFixed(1) + " %";
        sliders[i].value = forced[i];
        sliders[i].setAttribute("aria-valuetext", (forced[i] ? "set, " : "the controller's choice, ") + width + " bits");
      });
      live.textContent = state.source + ": class " + best + ", " + millions(bits) + " BitOPs";
    }

    // All test images, and the digest that Python recorded

    function checkAll() {
      var logits = [], correct = 0, i = 0, count = data.labels.length;
      check.disabled = true;
      (function some() {
        for (var end = Math.min(i + 8, count); i < end; i++) {
          var result = runner.run(library.asImage(greyOfTest(i)), null);
          correct += library.classOf(result.logits) === data.labels[i];
          logits = logits.concat(result.logits);
        }
        checked.textContent = i + " of " + count + " images";
        if (i < count) {
          setTimeout(some, 0);
          return;
        }
        var found = library.digest(logits), right = data.digests.controller;
        checked.textContent = count + " images, " + correct + " correct. sha256 of their logits here: " + found + ". " +
          (found === right ? "Python recorded the same." : "Python recorded another: " + right + ".");
        check.disabled = false;
      })();
    }
    var check = button("Check all " + data.labels.length + " test images", checkAll);

    function head(titles) {
      return element("thead", {}, [element("tr", {}, titles.map(function (title) {
        return title ? element("th", { scope: "col" }, [title]) : element("td");
      }))]);
    }
    function table(caption, titles, content) {
      return element("table", {}, [element("caption", { "class": "unseen" }, [caption]), head(titles), content]);
    }

    [
      element("div", { "class": "stage" }, [
        element("section", {}, [
          element("h3", {}, ["Draw a digit"]), pad,
          element("div", { "class": "row" }, [button("Clear", clear)]),
          element("label", {}, [fit, " centre it and fill the square, as the training digits do"]),
          element("label", {}, ["or a test image: ", pickedName, picked]),
          element("div", { "class": "row" }, [button("Another", function () {
            picked.value = Math.floor(Math.random() * data.labels.length);
            useTest();
          })]),
          element("label", {}, ["or a picture of your own: ", file]), trouble
        ]),
        element("section", {}, [
          element("h3", {}, ["The answer"]),
          element("div", { "class": "answer" }, [answer, seen, source]),
          table("The score of every class", ["class", "", "score"], scores), facts,
          element("div", { "class": "cost", "aria-hidden": "true" }, [cost])
        ])
      ]),
      element("h3", {}, ["Widths"]),
      element("label", {}, ["All layers: ", allName, all]),
      element("div", { "class": "scroll", tabindex: "0", role: "region", "aria-label": "width of every layer" }, [
        table("The width of every layer", ["layer", "set it", "width", "", "share of the cost"], body)
      ]),
      element("p", { "class": "note" }, ["A slider at its left end leaves the width to the controller. Striped bars, " +
        "and the word in brackets, mark widths that are set. Fixed layers, and the controller where it runs, are in the cost."]),
      element("div", { "class": "row" }, [check]), checked, live
    ].forEach(function (node) { root.appendChild(node); });
    useTest();
  }

  window.dqtWidget.everywhere(ROOT, STYLE, function (root) { mount(root, window.liveDemoData); });
})();

/* The live demo: a digit is drawn, loaded or taken from the test set, and a network runs on it here, in integers
   (program-runner.js). No dependency, nothing is sent; the data is written when the book is built. */
(() => {
  "use strict";

  const { element, millions, changeOf } = window.dqtWidget;
  const { Runner, asImage, bitops, classOf, decode, digest, margin } = window.programRunner;
  const digits = window.digitPicture;
  const DETAIL = 128; // pixels of the side in which a picture's ink is looked for

  // Networks

  /* A network of the data, with what is worked out once. `forced` holds for each layer the k-th width, or 0, which
     leaves it to the controller. */
  function prepared(given) {
    const { program } = given, widths = program.choices.map(([bits]) => bits);
    const hasController = program.ops.some((op) => op.kind === "Choose");
    return {
      ...given, widths, hasController,
      runner: new Runner(program),
      scale: 2 ** program.ops.at(-1).r,
      full: bitops(program, program.layers.map(() => [8, 8]), false),
      forced: program.layers.map(() => (hasController ? 0 : widths.length)),
      looksTwice: false
    };
  }

  /* What a network says of 8x8 bytes of grey: the last of its passes, all of them, and the BitOPs of all. */
  function judged(network, grey) {
    const { program, runner, cascade, forced } = network, image = asImage(grey, program.imageShape[2]);
    const passes = network.looksTwice
      ? runner.cascade(image, cascade.steps, cascade.thresholds.map(BigInt))
      : [runner.run(image, forced.map((k) => (k ? network.widths[k - 1] : 0)))];
    const withController = !network.looksTwice && forced.includes(0);
    const cost = passes.reduce((sum, pass) => sum + bitops(program, pass.widths, withController), 0);
    return { ...passes.at(-1), passes, cost, best: classOf(passes.at(-1).logits) };
  }

  /* What the widths are called, here and where Python wrote its digests down. */
  function settingOf({ looksTwice, forced, widths, cascade }) {
    if (looksTwice) return { key: "cascade", name: `${cascade.steps[0]} bits, then ${cascade.steps[1]} where unsure` };
    if (forced.some((k) => k !== forced[0])) return { key: null, name: "set one by one" };
    if (!forced[0]) return { key: "controller", name: "the controller chooses" };
    return { key: String(widths[forced[0] - 1]), name: `${widths[forced[0] - 1]} bits` };
  }

  // Parts of the page

  function button(text, action) {
    const node = element("button", { type: "button" }, [text]);
    node.addEventListener("click", action);
    return node;
  }

  function range(attributes, input) {
    const node = element("input", { type: "range", step: 1, ...attributes });
    node.addEventListener("input", () => input(Number(node.value)));
    return node;
  }

  function bar(share) { return element("td", { class: "bar" }, [element("span", { style: `width:${share}%` })]); }

  function table(caption, titles, content) {
    const cells = titles.map((title) => (title ? element("th", { scope: "col" }, [title]) : element("td")));
    return element("table", {}, [
      element("caption", { class: "unseen" }, [caption]), element("thead", {}, [element("tr", {}, cells)]), content
    ]);
  }

  /* The score of every class. */
  function scoreTable() {
    const body = element("tbody");
    function show(values, best) {
      const low = Math.min(...values), high = Math.max(...values);
      body.replaceChildren(...values.map((value, k) => element("tr", { class: k === best ? "best" : "" }, [
        element("th", { scope: "row" }, [k + (k === best ? " (answer)" : "")]),
        bar(high > low ? (100 * (value - low)) / (high - low) : 100), element("td", {}, [value.toFixed(2)])
      ])));
    }
    return { node: table("The score of every class", ["class", "", "score"], body), show };
  }

  /* The width of every layer, with a slider for all and one for each. */
  function widthTable(network, changed) {
    const { program, widths, hasController, forced } = network, body = element("tbody");
    const limits = { min: hasController ? 0 : 1, max: widths.length };
    function force(value, i) {
      forced.fill(value, i, i === undefined ? undefined : i + 1);
      changed();
    }
    const all = range({ ...limits, "data-role": "all" }, (value) => force(value)), allName = element("span");
    const rows = program.layers.map((name, i) => {
      const slider = range({ ...limits, "aria-label": "width of " + name, "data-layer": name }, (value) => force(value, i));
      const width = element("td", { "data-role": "width" }), part = element("td"), filled = bar(0);
      const row = element("tr", {}, [
        element("th", { scope: "row" }, [name]), element("td", { class: "slide" }, [slider]), width, filled, part
      ]);
      body.append(row);
      return { row, slider, width, bar: filled.firstChild, part };
    });

    function show(answer) {
      const { key, name } = settingOf(network), once = !network.looksTwice;
      const lastCost = bitops(program, answer.widths, once && forced.includes(0));
      allName.textContent = name;
      all.disabled = !once;
      if (key) all.value = forced[0];
      all.setAttribute("aria-valuetext", name);
      rows.forEach(({ row, slider, width, bar, part }, i) => {
        const bits = answer.widths[i][0], isSet = once && forced[i] > 0;
        row.className = isSet ? "forced" : "";
        width.textContent = bits + (isSet ? " (set)" : "");
        bar.style.width = `${(100 * bits) / 8}%`;
        part.textContent = `${((100 * program.macs[i] * bits * bits) / lastCost).toFixed(1)} %`;
        slider.disabled = !once;
        slider.value = forced[i];
        slider.setAttribute("aria-valuetext", `${isSet ? "set, " : ""}${bits} bits`);
      });
    }
    const hint = hasController ? "A slider at its left end leaves the width to the controller. " : "";
    const node = element("div", {}, [
      element("label", {}, ["All layers: ", allName, all]),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "width of every layer" }, [
        table("The width of every layer", ["layer", "set it", "width", "", "of the cost"], body)
      ]),
      element("p", { class: "note" }, [hint + "Striped bars, and the word in brackets, mark widths that are set. After a " +
        "second look its widths are shown. Fixed layers, and the controller where it runs, are in the cost."])
    ]);
    return { node, show };
  }

  /* Bytes of grey of a picture: of the square in its middle, or of the square around its ink. */
  function greyOfPicture(picture, isFitted) {
    const side = Math.min(picture.naturalWidth, picture.naturalHeight);
    const left = (picture.naturalWidth - side) / 2, top = (picture.naturalHeight - side) / 2;
    /* The part of the square from (x, y), `part` of its side wide, as pixels; beyond it lies its ground. */
    function pixels(count, [x, y, part], ground) {
      const canvas = element("canvas", { width: count, height: count }), context = canvas.getContext("2d");
      const size = count / part;
      context.fillStyle = `rgb(${ground},${ground},${ground})`;
      context.fillRect(0, 0, count, count);
      context.imageSmoothingQuality = "high";
      context.drawImage(picture, left, top, side, side, -x * size, -y * size, size, size);
      return context.getImageData(0, 0, count, count).data;
    }
    const whole = pixels(DETAIL, [0, 0, 1], 255);
    const ground = Math.round(digits.groundOf(digits.lightOf(whole), DETAIL));
    return digits.greyOfPixels(pixels(digits.SIZE, digits.partOf(whole, DETAIL, isFitted), ground));
  }

  // The page

  function mount(root, data) {
    const networks = data.networks.map(prepared), images = decode(data.images).values, { labels } = data;
    let network = networks[0], widthsShown;
    let shown = { source: "", grey: null, label: null, file: null };

    function judge(next) {
      shown = { label: null, file: null, ...next };
      const start = performance.now(), answer = judged(network, shown.grey);
      show(answer, performance.now() - start);
      window.liveDemoState = {
        network: network.program.name, grey: shown.grey, logits: answer.logits.map(String), widths: answer.widths,
        bitops: answer.cost, passes: answer.passes.length
      };
    }
    function judgeAgain() { judge(shown); }

    // Pictures

    const fit = element("input", { type: "checkbox", checked: "" });
    function useDrawing(strokes) {
      judge({ source: "drawing", grey: digits.greyOfBitmap(digits.bitmapOf(fit.checked ? digits.fitted(strokes) : strokes)) });
    }
    const pad = window.drawingPad(useDrawing);
    /* A picture that was not drawn takes the drawing's place. */
    function usePicture(next) {
      pad.show(next.grey);
      judge(next);
    }

    const picked = range({ min: 0, max: labels.length - 1, value: 0, "data-role": "test-image" }, useTest);
    const pickedName = element("span");
    function greyOfTest(i) { return Array.from(images.subarray(64 * i, 64 * i + 64)); }
    function useTest(i) { usePicture({ source: "test image " + i, label: labels[i], grey: greyOfTest(i) }); }

    const chooser = element("input", { type: "file", accept: "image/*" });
    const trouble = element("p", { role: "alert", "data-role": "trouble" });
    function useFile(file, picture) { usePicture({ source: file, file: picture, grey: greyOfPicture(picture, fit.checked) }); }
    chooser.addEventListener("change", () => {
      const chosen = chooser.files[0], picture = new Image();
      if (!chosen) return;
      trouble.textContent = "";
      picture.onload = () => {
        useFile(chosen.name, picture);
        URL.revokeObjectURL(picture.src);
      };
      picture.onerror = () => {
        trouble.textContent = chosen.name + " is not a picture that this browser can read; choose a PNG or a JPEG.";
      };
      picture.src = URL.createObjectURL(chosen);
    });
    fit.addEventListener("change", () => {
      if (shown.source === "drawing") useDrawing(pad.strokes());
      if (shown.file) useFile(shown.source, shown.file);
    });

    // The network, and how it looks

    const names = networks.map(({ title }, i) => element("option", { value: i }, [title]));
    const chosen = element("select", { "data-role": "network" }, names), widthsPlace = element("div");
    function useNetwork() {
      network = networks[chosen.value];
      network.looksTwice = twice.checked;
      twiceText.textContent = `look at ${network.cascade.steps[0]} bits, and again at ${network.cascade.steps[1]} where unsure`;
      widthsShown = widthTable(network, judgeAgain);
      widthsPlace.replaceChildren(widthsShown.node);
      checked.textContent = "";
    }
    chosen.addEventListener("change", () => { useNetwork(); judgeAgain(); });
    const once = element("input", { type: "radio", name: "look", checked: "", "data-role": "once" });
    const twice = element("input", { type: "radio", name: "look", "data-role": "twice" }), twiceText = element("span");
    for (const radio of [once, twice]) {
      radio.addEventListener("change", () => { network.looksTwice = twice.checked; judgeAgain(); });
    }

    // The answer

    const seen = element("canvas", { class: "seen", role: "img", "data-role": "seen" });
    const best = element("strong", { "data-role": "class" }), source = element("span");
    const scores = scoreTable(), facts = element("dl"), cost = element("span");
    const live = element("p", { class: "unseen", role: "status", "aria-live": "polite" });

    /* What each look said, and how far ahead its answer had to be. */
    function looksOf({ passes }) {
      const value = (logit) => (Number(logit) / network.scale).toFixed(2), { steps, thresholds } = network.cascade;
      return passes.flatMap(({ logits }, i) => [
        [`look-${i + 1}`, `Look at ${steps[i]} bits`, `${classOf(logits)}, ahead by ${value(margin(logits))}`],
        ...(i < thresholds.length ? [["enough", "Enough would be", value(thresholds[i])]] : [])
      ]);
    }

    function show(answer, milliseconds) {
      window.paintGrey(seen, shown.grey, 8);
      seen.setAttribute("aria-label", "what the network sees: " + shown.source);
      best.textContent = answer.best;
      source.textContent = shown.source;
      pickedName.textContent = `${picked.value}, a ${labels[Number(picked.value)]}`;
      picked.setAttribute("aria-valuetext", pickedName.textContent);
      scores.show(answer.logits.map((logit) => Number(logit) / network.scale), answer.best);
      const rows = [
        ...(shown.label === null ? [] : [["label", "Its label", shown.label]]),
        ...(network.looksTwice ? looksOf(answer) : []),
        ["cost", answer.passes.length > 1 ? "BitOPs of both" : "BitOPs", millions(answer.cost)],
        ["change", "Against 8 bits everywhere", changeOf(answer.cost, network.full)],
        ["time", "Computed here in", milliseconds.toFixed(0) + " ms"]
      ];
      facts.replaceChildren(...rows.flatMap(([role, name, value]) => [
        element("dt", {}, [name]), element("dd", { "data-role": role }, [String(value)])
      ]));
      cost.style.width = `${Math.min(100, (100 * answer.cost) / network.full)}%`;
      widthsShown.show(answer);
      live.textContent = `${shown.source}: class ${answer.best}, ${millions(answer.cost)} BitOPs`;
    }

    // All test images, and the digest that Python has of them

    const checked = element("p", { class: "note", role: "status", "data-role": "checked" });
    const check = button(`Check all ${labels.length} test images`, async () => {
      const { key, name } = settingOf(network), own = { ...network, forced: [...network.forced] };
      const answers = [];
      check.disabled = true;
      for (const i of labels.keys()) {
        answers.push(judged(own, greyOfTest(i)));
        if (i % 8 === 7) {
          checked.textContent = `${i + 1} of ${labels.length} images`;
          await new Promise((done) => setTimeout(done, 0));
        }
      }
      const found = digest(answers.flatMap((answer) => answer.logits)), right = own.digests[key];
      const correct = answers.filter((answer, i) => answer.best === labels[i]).length;
      const again = answers.filter((answer) => answer.passes.length > 1).length;
      const mean = answers.reduce((sum, answer) => sum + answer.cost, 0) / answers.length;
      checked.textContent = `${own.program.name}, ${name}: ${labels.length} images, ${correct} correct, ` +
        (own.looksTwice ? `${again} looked at twice, ` : "") + `${millions(mean)} BitOPs an image. sha256 of their logits ` +
        `here: ${found}. ` + (!key ? "Python has none for widths that are set one by one."
          : found === right ? "Python's is the same." : `Python's is another: ${right}.`);
      check.disabled = false;
    });

    useNetwork();
    root.append(
      element("label", {}, ["Network: ", chosen]),
      element("div", { class: "stage" }, [
        element("div", {}, [
          element("h3", {}, ["Draw a digit"]), pad.node,
          element("div", { class: "row" }, [button("Clear", pad.clear)]),
          element("label", {}, [fit, " centre it and fill the square, as the training digits do"]),
          element("label", {}, ["or a test image: ", pickedName, picked]),
          element("div", { class: "row" }, [button("Another", () => {
            picked.value = Math.floor(Math.random() * labels.length);
            useTest(Number(picked.value));
          })]),
          element("label", {}, ["or a picture of your own: ", chooser]), trouble
        ]),
        element("div", {}, [
          element("h3", {}, ["The answer"]),
          element("div", { class: "answer" }, [best, seen, source]),
          scores.node, facts, element("div", { class: "cost", "aria-hidden": "true" }, [cost])
        ])
      ]),
      element("fieldset", {}, [
        element("legend", {}, ["Widths"]),
        element("label", {}, [once, " look once, at the widths below"]), element("label", {}, [twice, " ", twiceText])
      ]),
      widthsPlace, element("div", { class: "row" }, [check]), checked, live
    );
    useTest(0);
  }

  window.dqtWidget.everywhere(".live-demo", "", (root) => mount(root, window.liveDemoData));
})();

/* A square to draw a digit in, by mouse, finger or keys; it also shows a picture that comes from elsewhere.
   window.drawingPad(drawn) calls drawn(strokes) after every change. */
(() => {
  "use strict";

  const { SIZE, bitmapOf } = window.digitPicture;
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const LABEL = "drawing pad: draw a digit with the mouse or a finger, or move with the arrow keys and press space to " +
    "put the pen down or lift it";

  /* Bytes of grey of a square picture, one canvas pixel each. */
  function paintGrey(canvas, grey, side) {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    grey.forEach((byte, i) => image.data.set([byte, byte, byte, 255], 4 * i));
    context.putImageData(image, 0, 0);
  }

  window.paintGrey = paintGrey;
  window.drawingPad = (drawn) => {
    const node = window.dqtWidget.element("canvas", {
      class: "draw", role: "application", tabindex: "0", "data-role": "pad", "data-prevent-swipe": "", "aria-label": LABEL
    });
    const pen = { x: SIZE / 2, y: SIZE / 2, isDown: false };
    let strokes = [], given = null, isDragged = false, isWaiting = false, isFocused = false;

    /* The drawing, or the 8x8 bytes that took its place. */
    function paint() {
      const cells = Array.from({ length: SIZE * SIZE }, (_, at) => 8 * Math.floor(at / SIZE / 4) + ((at % SIZE) >> 2));
      paintGrey(node, given ? cells.map((cell) => given[cell]) : Array.from(bitmapOf(strokes), (on) => 255 * on), SIZE);
      if (!isFocused) return;
      const context = node.getContext("2d");
      context.fillStyle = pen.isDown ? "#d0661f" : "#2e86c1";
      context.fillRect(pen.x - 1, pen.y - 1, 3, 3);
    }

    function changed() {
      isWaiting = false;
      given = null;
      paint();
      drawn(strokes);
    }

    function placeOf(event) {
      const box = node.getBoundingClientRect();
      return [((event.clientX - box.left) * SIZE) / box.width, ((event.clientY - box.top) * SIZE) / box.height];
    }

    node.addEventListener("pointerdown", (event) => {
      isDragged = true;
      node.setPointerCapture(event.pointerId);
      strokes.push([placeOf(event)]);
      changed();
      event.preventDefault();
    });
    node.addEventListener("pointermove", (event) => {
      if (!isDragged) return;
      strokes.at(-1).push(placeOf(event));
      if (!isWaiting) requestAnimationFrame(changed); // a pen is faster than a network
      isWaiting = true;
    });
    for (const name of ["pointerup", "pointercancel"]) node.addEventListener(name, () => { isDragged = false; });

    function movePen([x, y]) {
      pen.x = Math.max(0, Math.min(SIZE - 1, pen.x + x));
      pen.y = Math.max(0, Math.min(SIZE - 1, pen.y + y));
    }
    node.addEventListener("keydown", (event) => {
      if (event.key === " ") pen.isDown = !pen.isDown;
      else if (event.key in MOVES) movePen(MOVES[event.key]);
      else return;
      event.preventDefault();
      event.stopPropagation(); // or a deck of slides would move on
      if (!pen.isDown) return paint();
      if (event.key === " ") strokes.push([]);
      strokes.at(-1).push([pen.x + 0.5, pen.y + 0.5]);
      changed();
    });
    node.addEventListener("focus", () => { isFocused = true; paint(); });
    node.addEventListener("blur", () => { isFocused = pen.isDown = false; paint(); });

    function empty(grey) {
      strokes = [];
      pen.isDown = false;
      given = grey;
    }
    return {
      node,
      strokes: () => strokes,
      clear() { empty(null); changed(); },
      show(grey) { empty(grey); paint(); }
    };
  };
})();

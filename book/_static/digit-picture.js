/* A picture of a digit as the network's training digits are: 8x8 bytes of grey, light ink on a dark ground. In a page
   (window.digitPicture) and in node. */
(function () {
  "use strict";

  var SIZE = 32, CELL = 4, RADIUS = 2.4;

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

  /* [left, top, side] that is read of a square picture in RGBA, in parts of it: around its ink, or all. */
  function partOf(rgba, side, isFitted) { return (isFitted && inkOf(rgba, side)) || [0, 0, 1]; }

  var all = {
    SIZE: SIZE, bitmapOf: bitmapOf, fitted: fitted, greyOfBitmap: greyOfBitmap, greyOfPixels: greyOfPixels, groundOf: groundOf,
    inkOf: inkOf, lightOf: lightOf, partOf: partOf
  };
  if (typeof module !== "undefined" && module.exports) module.exports = all;
  else window.digitPicture = all;
})();

/* A program of dqt_core in integers, without dependencies: in a page (window.programRunner) and in node.
   Doubles hold every integer below 2**53, so sums of codes are exact; sums of 62 bits are kept as two numbers,
   hi * 2**16 + lo. A test compares with the package, logit by logit. */
(function () {
  "use strict";

  var MASTER = 8, SPLIT = 65536, BLOCK = 4;
  var TYPES = { int8: Int8Array, uint8: Uint8Array, int32: Int32Array, int64: BigInt64Array };

  /* An array from {dtype, shape, base64}. */
  function decode(tensor) {
    var text = atob(tensor.base64), bytes = new Uint8Array(text.length);
    for (var i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return { values: new TYPES[tensor.dtype](bytes.buffer), shape: tensor.shape };
  }

  /* The view of a master code with d bits dropped. */
  function switchCode(q, d, isSigned, isFloor) {
    if (d === 0) return q;
    var highest = (isSigned ? 127 : 255) >> d;
    return isFloor ? q >> d : Math.min((q + (1 << (d - 1))) >> d, highest);
  }

  /* With floor an input counts master steps and a weight half of them: the middle of its bin. */
  function inputFactor(q, d, isSigned, isFloor) {
    var view = switchCode(q, d, isSigned, isFloor);
    return isFloor ? view * (1 << d) : view;
  }
  function weightFactor(q, d, isFloor) {
    var view = switchCode(q, d, true, isFloor);
    return isFloor ? 2 * view * (1 << d) + (1 << d) - 1 : view;
  }

  /* Tables of a term, with offsets split in two. */
  function prepareTerm(term) {
    var offset = decode(term.offset), multiplier = decode(term.multiplier);
    var hi = new Float64Array(offset.values.length), lo = new Float64Array(offset.values.length);
    offset.values.forEach(function (b, i) { hi[i] = Number(b >> 16n); lo[i] = Number(b & 65535n); });
    return { x: term.x, layer: term.layer, m: multiplier, hi: hi, lo: lo, offsetShape: offset.shape };
  }

  function prepare(op) {
    var ready = Object.assign({}, op);
    if (op.kind === "Lookup") ready.table = decode(op.table);
    if (op.kind === "Conv") {
      ready.weight = decode(op.weight);
      ready.views = {};
    }
    if (op.kind === "Requantize") ready.terms = op.terms.map(prepareTerm);
    if (op.kind === "Scale") ready.term = prepareTerm(op.term);
    return ready;
  }

  function Runner(data) {
    this.data = data;
    this.isFloor = data.rounding === "floor";
    this.ops = data.ops.map(prepare);
  }

  /* Logits (BigInt), widths and their choices for one image of bytes; `widths` has a number for each layer, or a
     pair of weight and input bits. 0, or no widths at all, leaves a layer to the controller. */
  Runner.prototype.run = function (image, widths) {
    var data = this.data, self = this;
    var choices = data.layers.map(function (_, i) { return widths ? self.choiceOf(widths[i]) : -1; });
    var undecided = choices.indexOf(-1) >= 0, values = {}, last;
    var decision = data.ops.find(function (op) { return op.kind === "Choose"; });
    if (undecided && !decision) {
      throw new RangeError("this program has no controller: give every layer a width");
    }
    (decision && decision.before || []).forEach(function (choice, layer) {
      if (choices[layer] < 0) choices[layer] = choice;
    });
    values.image = { shape: data.imageShape, values: image, isSigned: false };
    this.ops.forEach(function (op) {
      if (op.controller && !undecided) return;
      if (op.kind === "Choose") {
        decide(values[op.x].values, choices, data.choices.length, choices.length - op.layers);
        return;
      }
      last = values[op.out] = self[op.kind](op, values, choices);
    });
    return {
      logits: last.values,
      choices: choices,
      widths: choices.map(function (k) { return data.choices[k]; })
    };
  };

  /* Looks at one width after the other, until the largest logit is ahead by a step's threshold: all passes. */
  Runner.prototype.cascade = function (image, steps, thresholds) {
    var passes = [];
    do {
      var width = steps[passes.length];
      passes.push(this.run(image, this.data.layers.map(function () { return width; })));
    } while (passes.length < steps.length && margin(passes[passes.length - 1].logits) < thresholds[passes.length - 1]);
    return passes;
  };

  Runner.prototype.choiceOf = function (width) {
    var pair = Array.isArray(width) ? width : [width, width];
    if (pair[0] === 0 && pair[1] === 0) return -1;
    var k = this.data.choices.findIndex(function (c) { return c[0] === pair[0] && c[1] === pair[1]; });
    if (k < 0) throw new RangeError("width " + width + " is not in this program");
    return k;
  };

  /* The first of the largest scores, for those of its layers that are left to the controller. */
  function decide(scores, choices, count, first) {
    for (var layer = 0; layer < choices.length - first; layer++) {
      var best = 0;
      for (var k = 1; k < count; k++) {
        if (scores[layer * count + k] > scores[layer * count + best]) best = k;
      }
      if (choices[first + layer] < 0) choices[first + layer] = best;
    }
  }

  function codes(shape, isSigned) {
    return { shape: shape, values: new Int16Array(shape[0] * shape[1] * shape[2]), isSigned: isSigned };
  }

  Runner.prototype.Lookup = function (op, values) {
    var x = values[op.x], table = op.table.values, rows = op.table.shape[0];
    var out = codes(x.shape, table instanceof Int8Array);
    for (var i = 0; i < out.values.length; i++) {
      out.values[i] = table[256 * (i % rows) + (x.values[i] & 255)];
    }
    return out;
  };

  /* Filters at a width, by groups; each group is filled up with zeros to whole blocks. */
  Runner.prototype.filters = function (op, bits) {
    if (!op.views[bits]) {
      var shape = op.weight.shape, size = shape[1] * shape[2] * shape[3], perGroup = shape[0] / op.groups;
      var padded = BLOCK * Math.ceil(perGroup / BLOCK), view = new Int16Array(op.groups * padded * size);
      for (var i = 0; i < op.weight.values.length; i++) {
        var output = Math.floor(i / size), group = Math.floor(output / perGroup);
        var at = (group * padded + output % perGroup) * size + i % size;
        view[at] = weightFactor(op.weight.values[i], MASTER - bits, this.isFloor);
      }
      op.views[bits] = view;
    }
    return op.views[bits];
  };

  /* Switched codes with zeros around. */
  Runner.prototype.padded = function (x, padding, bits) {
    var height = x.shape[0], width = x.shape[1], depth = x.shape[2], row = (width + 2 * padding) * depth;
    var out = new Int16Array((height + 2 * padding) * row);
    for (var i = 0; i < height; i++) {
      var from = i * width * depth, to = (i + padding) * row + padding * depth;
      for (var j = 0; j < width * depth; j++) {
        out[to + j] = inputFactor(x.values[from + j], MASTER - bits, x.isSigned, this.isFloor);
      }
    }
    return out;
  };

  Runner.prototype.Conv = function (op, values, choices) {
    var bits = op.layer === null ? [MASTER, MASTER] : this.data.choices[choices[op.layer]];
    var x = values[op.x], w = this.filters(op, bits[0]), source = this.padded(x, op.padding, bits[1]);
    var shape = op.weight.shape, kernelHeight = shape[1], kernelWidth = shape[2], inputs = shape[3];
    var size = kernelHeight * kernelWidth * inputs, perGroup = shape[0] / op.groups;
    var blocks = Math.ceil(perGroup / BLOCK), depth = x.shape[2], row = (x.shape[1] + 2 * op.padding) * depth;
    var height = Math.floor((x.shape[0] + 2 * op.padding - kernelHeight) / op.stride) + 1;
    var width = Math.floor((x.shape[1] + 2 * op.padding - kernelWidth) / op.stride) + 1;
    /* Without groups the pixels of a window's row follow each other. */
    var runs = op.groups === 1 ? 1 : kernelWidth, run = op.groups === 1 ? kernelWidth * inputs : inputs;
    var out = new Int32Array(height * width * shape[0]), sums = new Int32Array(BLOCK), at = 0;
    for (var i = 0; i < height; i++) {
      for (var j = 0; j < width; j++) {
        for (var group = 0; group < op.groups; group++) {
          var corner = i * op.stride * row + j * op.stride * depth + group * inputs;
          for (var block = 0; block < blocks; block++) {
            dot(source, corner, row, depth, w, (group * blocks + block) * BLOCK * size, size, kernelHeight, runs, run, sums);
            var count = Math.min(BLOCK, perGroup - block * BLOCK);
            for (var o = 0; o < count; o++) out[at++] = sums[o];
          }
        }
      }
    }
    return { shape: [height, width, shape[0]], values: out };
  };

  /* Four accumulators of one window. */
  function dot(x, corner, row, depth, w, start, size, rows, runs, run, sums) {
    var a = 0, b = 0, c = 0, d = 0, at = start;
    for (var k = 0; k < rows; k++) {
      for (var l = 0; l < runs; l++) {
        var from = corner + k * row + l * depth;
        for (var i = 0; i < run; i++, at++) {
          var code = x[from + i];
          a = (a + code * w[at]) | 0;
          b = (b + code * w[at + size]) | 0;
          c = (c + code * w[at + 2 * size]) | 0;
          d = (d + code * w[at + 3 * size]) | 0;
        }
      }
    }
    sums[0] = a; sums[1] = b; sums[2] = c; sums[3] = d;
  }

  Runner.prototype.MaxPool = function (op, values) {
    var x = values[op.x], height = x.shape[0], width = x.shape[1], depth = x.shape[2];
    function count(n) {
      var whole = Math.floor((n + 2 * op.padding - op.kernel) / op.stride) + 1;
      var isMore = op.ceil && (whole - 1) * op.stride + op.kernel < n + 2 * op.padding;
      return whole + (isMore && whole * op.stride < n + op.padding ? 1 : 0);
    }
    var out = codes([count(height), count(width), depth], x.isSigned);
    for (var at = 0; at < out.values.length; at++) {
      var c = at % depth, j = Math.floor(at / depth) % out.shape[1], i = Math.floor(at / depth / out.shape[1]);
      var top = i * op.stride - op.padding, left = j * op.stride - op.padding, largest = -129;
      for (var k = Math.max(top, 0); k < Math.min(top + op.kernel, height); k++) {
        for (var l = Math.max(left, 0); l < Math.min(left + op.kernel, width); l++) {
          largest = Math.max(largest, x.values[(k * width + l) * depth + c]);
        }
      }
      out.values[at] = largest;
    }
    return out;
  };

  Runner.prototype.SumPool = function (op, values) {
    var x = values[op.x], depth = x.shape[2], out = new Int32Array(depth);
    for (var i = 0; i < x.values.length; i++) out[i % depth] += x.values[i];
    return { shape: [1, 1, depth], values: out };
  };

  Runner.prototype.Concat = function (op, values) {
    var parts = op.parts.map(function (name) { return values[name]; }), first = parts[0], start = 0;
    var depth = parts.reduce(function (sum, part) { return sum + part.shape[2]; }, 0);
    var out = codes([first.shape[0], first.shape[1], depth], first.isSigned);
    parts.forEach(function (part) {
      var own = part.shape[2];
      for (var i = 0; i < part.values.length; i++) {
        out.values[Math.floor(i / own) * depth + start + i % own] = part.values[i];
      }
      start += own;
    });
    return out;
  };

  Runner.prototype.Product = function (op, values) {
    var x = values[op.x], y = values[op.y].values, out = new Int32Array(x.values.length);
    /* One pixel multiplies all, or each its own. */
    for (var i = 0; i < out.length; i++) out[i] = x.values[i] * y[i % y.length];
    return { shape: x.shape, values: out };
  };

  /* Rows and shift of a term at the choice of its layer. */
  Runner.prototype.read = function (term, values, choices, isScale) {
    var choice = term.layer === null || isScale ? 0 : choices[term.layer], bits = this.data.choices[choice];
    var shifts = term.layer !== null && !isScale && !this.isFloor;
    function table(shape) { return { start: shape[0] > 1 ? choice * shape[1] : 0, one: shape[1] === 1 }; }
    var m = table(term.m.shape), b = table(term.offsetShape);
    return {
      a: values[term.x].values, m: term.m.values, hi: term.hi, lo: term.lo,
      mStart: m.start, mOne: m.one, bStart: b.start, bOne: b.one,
      power: shifts ? Math.pow(2, 2 * MASTER - bits[0] - bits[1]) : 1
    };
  };

  Runner.prototype.Requantize = function (op, values, choices) {
    var self = this, shape = values[op.terms[0].x].shape, depth = shape[2], out = codes(shape, op.lo < 0);
    var terms = op.terms.map(function (term) { return self.read(term, values, choices, false); });
    var half = Math.pow(2, op.r - 1), halfHi = Math.floor(half / SPLIT), halfLo = half - halfHi * SPLIT;
    var down = Math.pow(2, op.r - 16), unit = Math.pow(2, op.r);
    for (var at = 0; at < out.values.length; at++) {
      var hi = halfHi, lo = halfLo, c = at % depth;
      for (var k = 0; k < terms.length; k++) {
        var t = terms[k], m = t.m[t.mStart + (t.mOne ? 0 : c)], b = t.bStart + (t.bOne ? 0 : c);
        var a = t.a[at] * t.power;
        hi += a * (m >> 16) + t.hi[b];
        lo += a * (m & 65535) + t.lo[b];
      }
      var carry = Math.floor(lo / SPLIT);
      hi += carry;
      lo -= carry * SPLIT;
      /* The 16 low bits cannot change a floor that drops them all. */
      var y = op.r >= 16 ? Math.floor(hi / down) : hi / down + Math.floor(lo / unit);
      out.values[at] = y < op.lo ? op.lo : y > op.hi ? op.hi : y;
    }
    return out;
  };

  /* Logits need all their 62 bits. */
  Runner.prototype.Scale = function (op, values, choices) {
    var x = values[op.term.x], depth = x.shape[2], t = this.read(op.term, values, choices, true);
    var out = Array.prototype.map.call(x.values, function (a, at) {
      var m = t.m[t.mOne ? 0 : at % depth], b = t.bOne ? 0 : at % depth;
      return BigInt(a) * BigInt(m) + BigInt(t.hi[b]) * 65536n + BigInt(t.lo[b]);
    });
    return { shape: x.shape, values: out };
  };

  /* The class of the largest logit, the first of equal ones. */
  function classOf(logits) {
    return logits.reduce(function (best, value, i) { return value > logits[best] ? i : best; }, 0);
  }

  /* The largest logit minus the second largest. */
  function margin(logits) {
    var best = classOf(logits);
    return logits.reduce(function (least, value, i) {
      var behind = logits[best] - value;
      return i !== best && (least === null || behind < least) ? behind : least;
    }, null);
  }

  /* BitOPs of one image: MACs * width * width, with fixed layers at 8 bits and the controller where it ran. */
  function bitops(data, widths, withController) {
    var fixed = data.fixedMacs + (withController ? data.controllerMacs : 0);
    return widths.reduce(function (sum, pair, i) {
      return sum + data.macs[i] * pair[0] * pair[1];
    }, fixed * MASTER * MASTER);
  }

  /* Pictures of the embedded digits: 8x8 bytes of grey as 32x32 of some channels. */
  function asImage(grey, channels) {
    var image = new Uint8Array(32 * 32 * channels);
    for (var i = 0; i < image.length; i++) {
      var pixel = Math.floor(i / channels);
      image[i] = grey[8 * (Math.floor(pixel / 32) >> 2) + ((pixel % 32) >> 2)];
    }
    return image;
  }

  /* sha256 of logits as little-endian int64, in hexadecimal: what Result.digest is. */
  function digest(logits) {
    var bytes = new Uint8Array(new BigInt64Array(logits).buffer);
    return sha256(bytes);
  }

  var PRIMES = [];
  for (var n = 2; PRIMES.length < 64; n++) {
    if (PRIMES.every(function (p) { return n % p; })) PRIMES.push(n);
  }
  /* The first 32 bits of the fractional part of a root, by integers: FIPS 180-4's constants. */
  function rootBits(prime, power) {
    var target = BigInt(prime) << BigInt(32 * power), root = 0n;
    for (var bit = 1n << 36n; bit; bit >>= 1n) {
      if ((root + bit) ** BigInt(power) <= target) root += bit;
    }
    return Number(root & 0xffffffffn) | 0;
  }

  function sha256(bytes) {
    var k = PRIMES.map(function (p) { return rootBits(p, 3); });
    var state = PRIMES.slice(0, 8).map(function (p) { return rootBits(p, 2); });
    var blocks = Math.ceil((bytes.length + 9) / 64), padded = new DataView(new ArrayBuffer(64 * blocks));
    bytes.forEach(function (byte, i) { padded.setUint8(i, byte); });
    padded.setUint8(bytes.length, 128);
    padded.setBigUint64(64 * blocks - 8, BigInt(8 * bytes.length));
    function turn(x, by) { return (x >>> by) | (x << (32 - by)); }
    var w = new Int32Array(64);
    for (var block = 0; block < blocks; block++) {
      var v = state.slice();
      for (var i = 0; i < 64; i++) {
        var a = w[i - 15], b = w[i - 2];
        w[i] = i < 16 ? padded.getInt32(64 * block + 4 * i) :
          w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
        var one = v[7] + (turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
        var two = (turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        v = [(one + two) | 0, v[0], v[1], v[2], (v[3] + one) | 0, v[4], v[5], v[6]];
      }
      state = state.map(function (s, i) { return (s + v[i]) | 0; });
    }
    return state.map(function (s) { return (s >>> 0).toString(16).padStart(8, "0"); }).join("");
  }

  var all = {
    Runner: Runner, asImage: asImage, bitops: bitops, classOf: classOf, decode: decode, digest: digest, margin: margin,
    sha256: sha256
  };
  if (typeof module !== "undefined" && module.exports) module.exports = all;
  else window.programRunner = all;
})();

// Pixels: how the bands of a cutout, whole numbers of steps from its sky, become pictures.
const DATA = JSON.parse(document.getElementById("data").textContent);
const GAP = -32768, MID_LEVEL = 128;
const NOISE = 2;        // steps in one standard deviation of the noise of a band
const SOFTENING = 8;    // Q of Lupton et al. (2004), as in the mosaic
const SLOPE = 0.1 / Math.asinh(0.1 * SOFTENING);
const KEPT = 400;       // cutouts whose pixels are in memory, the last that were looked at
const inMemory = new Map();

// Values above the sky are in units of `white`, where the brightest is 1 and `grain` the noise.
// The sky is shown two standard deviations above black.
const CURVES = {
  asinh: (value, grain) => Math.asinh((value + 2 * grain) / (3 * grain))
    / Math.asinh((1 + 2 * grain) / (3 * grain)),
  sqrt: (value, grain) => Math.sqrt(Math.max(value + 2 * grain, 0) / (1 + 2 * grain)),
  linear: (value, grain) => (value + 2 * grain) / (1 + 2 * grain),
};
// Of a finished picture, levels from 0 to 1, which were stretched before.
const AS_GIVEN = "as given";
const OF_PICTURES = {
  asinh: value => Math.asinh(10 * value) / Math.asinh(10),
  sqrt: Math.sqrt,
  [AS_GIVEN]: value => value,
};
const STRETCHES = ["Lupton", "asinh", "sqrt", "linear"];

function stretchesOf(pixels) {
  return pixels.levels ? Object.keys(OF_PICTURES).reverse() : STRETCHES;
}

// The steps of all bands, one band after the other, of a candidate by its number; GAP where masked.
function stepsOf(number) {
  let steps = inMemory.get(number);
  inMemory.delete(number);
  steps ??= inflated(DATA.candidates[number].pixels);
  inMemory.set(number, steps);
  if (inMemory.size > KEPT) inMemory.delete(inMemory.keys().next().value);
  return steps;
}

async function inflated({data, size: [width, height]}) {
  const letters = atob(data), packed = new Uint8Array(letters.length);
  for (let k = 0; k < packed.length; k++) packed[k] = letters.charCodeAt(k);
  const stream = new DecompressionStream("deflate"), writer = stream.writable.getWriter();
  writer.write(packed);  // a stream of a Blob would take ten times as long
  writer.close();
  const bytes = new Uint8Array(await new Response(stream.readable).arrayBuffer());
  const count = bytes.length / 2, steps = new Int16Array(count);
  for (let k = 0; k < count; k++) {
    const counted = bytes[k] | bytes[count + k] << 8;
    const left = k % width ? steps[k - 1] : 0, above = Math.floor(k / width) % height ? steps[k - width] : 0;
    steps[k] = (counted >>> 1 ^ -(counted & 1)) + (above + left >> 1);
  }
  return steps;
}

// Draws a candidate on a canvas: in colour, or one band of it where that is a number.
async function draw(canvas, number, stretch, band = null) {
  const {pixels} = DATA.candidates[number];
  canvas.dataset.of = number;
  if (!pixels) return cannotBeRead(canvas);
  const steps = await stepsOf(number);
  if (canvas.dataset.of !== String(number)) return;  // another was asked for since
  const [width, height] = pixels.size, image = new ImageData(width, height);
  (band === null ? inColour : inGrey)(image.data, steps, pixels, stretch, band);
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.dataset.drawn = stretch;
}

function inColour(out, steps, pixels, stretch) {
  const planes = pixels.mix.map(shares => mixed(steps, shares, pixels.levels)), [red, green, blue] = planes;
  const {levels, grain, white} = pixels;
  if (!levels && !(stretch in CURVES)) {  // Lupton
    for (let k = 0; k < red.length; k++) {
      const mean = (red[k] + green[k] + blue[k]) / 3;
      const factor = mean > 0 ? SLOPE * Math.asinh(SOFTENING * mean) / mean : 0;
      const most = Math.max(factor * Math.max(red[k], green[k], blue[k]), 1);
      for (let c = 0; c < 3; c++) out[4 * k + c] = 255 * factor * planes[c][k] / most;
      out[4 * k + 3] = 255;
    }
    return;
  }
  const curve = levels ? OF_PICTURES[stretch] ?? OF_PICTURES[AS_GIVEN] : CURVES[stretch];
  const top = levels ? 255 : Math.max(white, 3 * grain);
  out.fill(255);
  for (let c = 0; c < 3; c++)
    for (let k = 0; k < red.length; k++) out[4 * k + c] = 255 * curve(planes[c][k] / top, grain / top);
}

// One of red, green and blue: the sum of the bands by their shares, of a masked pixel the sky's.
function mixed(steps, shares, levels) {
  const count = steps.length / shares.length, plane = new Float32Array(count);
  shares.forEach((share, band) => {
    const first = band * count, zero = levels ? MID_LEVEL : 0;
    if (share) for (let k = 0; k < count; k++)
      if (steps[first + k] !== GAP) plane[k] += share * (steps[first + k] + zero);
  });
  return plane;
}

function inGrey(out, steps, pixels, stretch, band) {
  const count = out.length / 4, {levels} = pixels;
  const curve = (levels ? OF_PICTURES : CURVES)[stretch] ?? (levels ? OF_PICTURES[AS_GIVEN] : CURVES.asinh);
  const top = levels ? 255 : Math.max(pixels.peaks[band], 3 * NOISE);
  for (let k = 0; k < count; k++) {
    const value = steps[band * count + k];
    const above = value === GAP ? 0 : value + (levels ? MID_LEVEL : 0);
    out.fill(255 * curve(above / top, NOISE / top), 4 * k, 4 * k + 3);
    out[4 * k + 3] = 255;
  }
}

function cannotBeRead(canvas) {
  canvas.width = canvas.height = 176;
  const context = canvas.getContext("2d");
  Object.assign(context, {fillStyle: "#8b93a7", font: "15px sans-serif", textAlign: "center"});
  context.fillText("cannot be read", 88, 84);
  context.fillText("any more", 88, 104);
  canvas.dataset.drawn = "";
}

// The bar below a picture: a round number of arcsec, or of pixels, and its share of the width.
function scaleBar(pixels) {
  const across = pixels.size[0] * (pixels.scale ?? pixels.averaged);
  const most = across / 3, power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find(times => times * power <= most);
  return {share: length / across, text: pixels.scale ? `${+length.toPrecision(2)}″` : `${length} px`};
}

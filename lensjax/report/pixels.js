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
const OF_PICTURES = {
  asinh: value => Math.asinh(10 * value) / Math.asinh(10),
  sqrt: Math.sqrt,
  linear: value => value,
};
const STRETCHES = ["Lupton", "asinh", "sqrt", "linear"];

function stretchesOf(pixels) {
  return pixels.levels ? ["linear", "asinh", "sqrt"] : STRETCHES;
}

// The steps of all bands, one band after the other, of a candidate by its number; GAP where masked.
function stepsOf(number) {
  let steps = inMemory.get(number);
  inMemory.delete(number);
  steps ??= inflated(DATA.candidates[number].pixels.data);
  inMemory.set(number, steps);
  if (inMemory.size > KEPT) inMemory.delete(inMemory.keys().next().value);
  return steps;
}

async function inflated(text) {
  const packed = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / 2, steps = new Int16Array(count);
  for (let k = 0; k < count; k++) {
    const counted = bytes[k] | bytes[count + k] << 8;
    steps[k] = counted >>> 1 ^ -(counted & 1);
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
  const {mix, levels, grain, white} = pixels, count = out.length / 4, rgb = [0, 0, 0];
  const lupton = !levels && stretch === "Lupton";
  const curve = levels ? OF_PICTURES[stretch] ?? OF_PICTURES.linear : CURVES[stretch];
  const top = Math.max(white, 3 * grain);
  for (let k = 0; k < count; k++) {
    rgb.fill(0);
    for (let band = 0; band < mix[0].length; band++) {
      let value = steps[band * count + k];
      if (value === GAP) continue;
      if (levels) value = (value + MID_LEVEL) / 255;
      for (let c = 0; c < 3; c++) rgb[c] += mix[c][band] * value;
    }
    if (lupton) {
      const mean = (rgb[0] + rgb[1] + rgb[2]) / 3;
      const factor = mean > 0 ? SLOPE * Math.asinh(SOFTENING * mean) / mean : 0;
      const most = Math.max(factor * Math.max(rgb[0], rgb[1], rgb[2]), 1);
      for (let c = 0; c < 3; c++) out[4 * k + c] = 255 * factor * rgb[c] / most;
    } else {
      for (let c = 0; c < 3; c++)
        out[4 * k + c] = 255 * (levels ? curve(rgb[c]) : curve(rgb[c] / top, grain / top));
    }
    out[4 * k + 3] = 255;
  }
}

function inGrey(out, steps, pixels, stretch, band) {
  const count = out.length / 4, {levels} = pixels;
  const curve = (levels ? OF_PICTURES : CURVES)[stretch] ?? (levels ? OF_PICTURES.linear : CURVES.asinh);
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

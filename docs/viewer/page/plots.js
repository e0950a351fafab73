/** The histogram (SVG) and the heat map (canvas) of a tensor. */

import { count, element, figure, svg } from "./dom.js";

export function histogramPlot({ histogram, moments }) {
  const [width, height] = [600, 130];
  const most = Math.max(...histogram, 1);
  const step = width / histogram.length;
  const bars = Array.from(histogram, (number, i) => {
    if (!number) return null;
    const high = Math.max(1.5, (number / most) * (height - 4));
    const bar = svg("rect", { x: i * step + 0.5, y: height - high, width: step - 1, height: high, rx: 1 });
    const at = (k) => figure(moments.min + ((moments.max - moments.min) * k) / histogram.length);
    const title = svg("title");
    title.textContent = `${at(i)} to ${at(i + 1)}: ${count(number)}`;
    bar.append(title);
    return bar;
  }).filter(Boolean);
  const words = `Histogram from ${figure(moments.min)} to ${figure(moments.max)}`;
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img", "aria-label": words, preserveAspectRatio: "none" }, ...bars);
  const zero = moments.min < 0 && moments.max > 0 ? ((0 - moments.min) / (moments.max - moments.min)) * width : null;
  if (zero !== null) plot.prepend(svg("line", { x1: zero, x2: zero, y1: 0, y2: height, class: "zero" }));
  const ends = element("div", { class: "ends" }, element("span", {}, figure(moments.min)), zero === null ? null : element("span", {}, "0"), element("span", {}, figure(moments.max)));
  if (zero !== null) {
    // Zero is where it is in the plot, unless it would meet an end.
    const share = zero / width;
    ends.children[1].style.left = `${100 * share}%`;
    if (share < 0.12 || share > 0.88) ends.children[1].remove();
  }
  return element("figure", {}, plot, ends);
}

const mix = (from, to, share) => from.map((value, i) => Math.round(value + (to[i] - value) * share));

/** Negative means in orange, positive ones in blue, the largest of both at full colour; NaN and Inf in magenta. */
export function paintHeat(canvas, { rows, columns, means }) {
  const style = getComputedStyle(document.documentElement); // the canvas may not be in the page yet
  const colour = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
  const [zero, negative, positive, broken] = ["--heat-zero", "--heat-negative", "--heat-positive", "--heat-broken"].map(colour);
  let most = 0;
  for (const mean of means) if (Math.abs(mean) > most) most = Math.abs(mean);
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  means.forEach((mean, i) => {
    const share = most ? Math.sqrt(Math.abs(mean) / most) : 0;
    const [r, g, b] = Number.isNaN(mean) ? broken : mix(zero, mean < 0 ? negative : positive, share);
    image.data.set([r, g, b, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return most;
}

export function heatPlot(heat, grid) {
  const canvas = element("canvas", { class: "heat", role: "img", "aria-label": "Heat map of the values" });
  const most = paintHeat(canvas, heat);
  canvas.repaint = () => paintHeat(canvas, heat);
  // Thin tensors stay visible: no more than 1 to 6.
  const ratio = Math.min(Math.max(heat.columns / Math.max(heat.rows, 1), 0.75), 6);
  canvas.style.aspectRatio = String(ratio);
  const exact = heat.rows === grid.rows && heat.columns === grid.columns;
  const scale = element("span", { class: "scale" }, element("span", {}, figure(-most)), element("i", {}), element("span", {}, figure(most)));
  const words = `${count(grid.rows)} × ${count(grid.columns)}${exact ? "" : ", each cell the mean of several"}`;
  return element("figure", {}, canvas, element("figcaption", {}, element("span", {}, words), scale));
}

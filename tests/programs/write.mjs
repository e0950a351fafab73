// Lets programs in JavaScript write the files of files/, and says which tensors are in each.
// See write.py.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import brain from "brain.js";
import convnetjs from "convnetjs";

const folder = process.argv[2];

function numbers(values, shape) {
  const data = Object.keys(values).map((key) => values[key]);
  return { dtype: "float32", shape: shape ?? [data.length], data };
}

function write(name, document, expected) {
  writeFileSync(join(folder, name), JSON.stringify(document));
  writeFileSync(join(folder, name + ".expected"), JSON.stringify(expected) + "\n");
}

function typedArrays() {
  const w = Float32Array.from([0.5, -1.25, 3, 0.001]);
  const b = Float32Array.from([0.25, -0.125]);
  write("typed_arrays.json", { weights: { "dense.weight": w, "dense.bias": b }, epochs: 3 }, {
    "/weights/dense.weight": numbers(w),
    "/weights/dense.bias": numbers(b),
  });
}

function brainNetwork() {
  const net = new brain.NeuralNetwork({ hiddenLayers: [3] });
  net.train([{ input: [0, 0], output: [0] }, { input: [0, 1], output: [1] }], { iterations: 20 });
  const expected = {};
  const document = net.toJSON();
  for (const layer of [1, 2]) {
    net.weights[layer].forEach((row, node) => {
      expected[`/layers/${layer}/${node}/weights`] = numbers(row);
      expected[`/layers/${layer}/${node}/bias`] = numbers([net.biases[layer][node]], []);
    });
  }
  write("brain_network.json", document, expected);
}

function brainLstm() {
  const net = new brain.recurrent.LSTM({ hiddenLayers: [2] });
  net.train(["ab", "ba"], { iterations: 3 });
  const document = net.toJSON();
  const expected = {};
  const add = (name, matrix) => {
    expected[name] = numbers(matrix.weights, [matrix.rows, matrix.columns]);
  };
  add("/input", document.input);
  document.hiddenLayers.forEach((layer, index) => {
    for (const name of Object.keys(layer)) add(`/hiddenLayers/${index}/${name}`, layer[name]);
  });
  add("/outputConnector", document.outputConnector);
  add("/output", document.output);
  write("brain_lstm.json", document, expected);
}

function convnet() {
  const net = new convnetjs.Net();
  net.makeLayers([
    { type: "input", out_sx: 1, out_sy: 1, out_depth: 2 },
    { type: "fc", num_neurons: 3, activation: "tanh" },
    { type: "softmax", num_classes: 2 },
  ]);
  const expected = {};
  const vol = (name, volume) => {
    expected[name] = numbers(volume.w, [volume.sy, volume.sx, volume.depth]);
  };
  net.layers.forEach((layer, index) => {
    (layer.filters ?? []).forEach((filter, row) => vol(`/layers/${index}/filters/${row}`, filter));
    if (layer.biases) vol(`/layers/${index}/biases`, layer.biases);
  });
  write("convnetjs.json", net.toJSON(), expected);
}

typedArrays();
brainNetwork();
brainLstm();
convnet();

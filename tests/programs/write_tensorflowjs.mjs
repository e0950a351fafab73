// Writes small models with TensorFlow.js, and the weights as TensorFlow.js itself reads them.
//
//   node write_tensorflowjs.mjs OUTPUT             models in all forms, and OUTPUT/expected.json
//   node write_tensorflowjs.mjs OUTPUT --float16   one weight with every float16, and OUTPUT/expected.json
import * as fs from 'node:fs';
import * as path from 'node:path';
import * as tf from '@tensorflow/tfjs';

const output = process.argv[2];
const expected = {};

/** Splits the bytes into files, so that weights lie in two of them. */
function writeShards(directory, bytes, size, group = 1) {
  const count = Math.max(1, Math.ceil(bytes.length / size));
  const names = [];
  for (let i = 0; i < count; i++) {
    const name = `group${group}-shard${i + 1}of${count}.bin`;
    fs.writeFileSync(path.join(directory, name), bytes.subarray(i * size, (i + 1) * size));
    names.push(name);
  }
  return names;
}

/** What TensorFlow.js makes of the bytes. */
async function record(name, data, specs) {
  const tensors = tf.io.decodeWeights(data, specs);
  const found = {};
  for (const [key, tensor] of Object.entries(tensors)) {
    let values = await tensor.data();
    if (tensor.dtype === 'bool') values = Array.from(values, Boolean);
    found[key] = {dtype: tensor.dtype, shape: tensor.shape, values: Array.from(values)};
  }
  expected[name] = found;
}

async function artifactsOf(model, config = {}) {
  let artifacts;
  await model.save(tf.io.withSaveHandler(async (found) => {
    artifacts = found;
    return {modelArtifactsInfo: {dateSaved: new Date(), modelTopologyType: 'JSON'}};
  }), config);
  return artifacts;
}

/** model.json with its shards beside it, as model.save('file://…') writes it. */
async function asFiles(name, artifacts, size) {
  const directory = path.join(output, name);
  fs.mkdirSync(directory, {recursive: true});
  const bytes = new Uint8Array(tf.io.CompositeArrayBuffer.join([artifacts.weightData].flat()));
  const paths = writeShards(directory, bytes, size);
  const {weightSpecs, weightData, ...json} = artifacts;
  json.weightsManifest = [{paths, weights: weightSpecs}];
  fs.writeFileSync(path.join(directory, 'model.json'), JSON.stringify(json));
  await record(`${name}/model.json`, bytes.buffer, artifacts.weightSpecs);
}

/** The artifacts as one JSON text, with the weights as base64. */
async function asText(name, artifacts) {
  const data = tf.io.CompositeArrayBuffer.join([artifacts.weightData].flat());
  const text = {...artifacts, weightData: Buffer.from(data).toString('base64')};
  fs.writeFileSync(path.join(output, name), JSON.stringify(text));
  await record(name, data, artifacts.weightSpecs);
}

/** The older manifest: a list of groups. Stored integers and strings are made here. */
async function asManifest(name, groups, size = 64) {
  const directory = path.join(output, name);
  fs.mkdirSync(directory, {recursive: true});
  const manifest = [];
  const all = [];
  for (const [number, entries] of groups.entries()) {
    const parts = entries.map(
        ([, values]) => Buffer.from(values.buffer, values.byteOffset, values.byteLength));
    const bytes = new Uint8Array(Buffer.concat(parts));
    const weights = entries.map(([spec]) => spec);
    manifest.push({paths: writeShards(directory, bytes, size, number + 1), weights});
    all.push([bytes.buffer, weights]);
  }
  fs.writeFileSync(path.join(directory, 'weights_manifest.json'), JSON.stringify(manifest));
  const parts = {};
  for (const [data, weights] of all) {
    await record(name, data, weights);
    Object.assign(parts, expected[name]);
  }
  delete expected[name];
  expected[`${name}/weights_manifest.json`] = parts;
}

function text(strings) {
  const parts = [];
  for (const string of strings) {
    const bytes = Buffer.from(string, 'utf8');
    parts.push(Buffer.from(new Uint32Array([bytes.length]).buffer), bytes);
  }
  return Buffer.concat(parts);
}

async function models() {
  const net = tf.sequential({layers: [
    tf.layers.conv2d({inputShape: [5, 5, 1], filters: 2, kernelSize: 3, activation: 'relu'}),
    tf.layers.batchNormalization(),
    tf.layers.flatten(),
    tf.layers.dense({units: 4, activation: 'softmax'}),
  ]});
  net.compile({optimizer: tf.train.adam(0.01), loss: 'categoricalCrossentropy'});
  await net.fit(tf.randomNormal([4, 5, 5, 1], 0, 1, 'float32', 7), tf.oneHot([0, 1, 2, 3], 4),
                {epochs: 1, verbose: 0});
  await asFiles('layers', await artifactsOf(net), 150);
  await asFiles('with_optimizer', await artifactsOf(net, {includeOptimizer: true}), 1 << 20);
  const words = tf.sequential({layers: [
    tf.layers.embedding({inputDim: 11, outputDim: 3, inputLength: 5}),
    tf.layers.lstm({units: 2}),
    tf.layers.dense({units: 1}),
  ]});
  await asText('artifacts.json', await artifactsOf(words));
  await asManifest('manifest', [
    [
      [{name: 'dense/kernel', shape: [3, 5], dtype: 'float32', quantization:
        {dtype: 'uint8', scale: 0.007843137718737125, min: -1.0000001192092896,
         original_dtype: 'float32'}},
       Uint8Array.from({length: 15}, (_, i) => i * 17)],
      [{name: 'dense/bias', shape: [5], dtype: 'float32', quantization:
        {dtype: 'uint16', scale: 3.051804378628731e-05, min: -1.0, original_dtype: 'float32'}},
       Uint16Array.from([0, 1, 32767, 32768, 65535])],
      [{name: 'steps', shape: [2, 2], dtype: 'int32', quantization:
        {dtype: 'uint8', scale: 0.5, min: -3.0, original_dtype: 'int32'}},
       Uint8Array.from([0, 1, 2, 255])],
    ],
    [
      [{name: 'half', shape: [8], dtype: 'float32', quantization:
        {dtype: 'float16', original_dtype: 'float32'}},
       Uint16Array.from([0, 1, 0x3ff, 0x400, 0x3c00, 0x7bff, 0x8001, 0xfbff])],
      [{name: 'mask', shape: [3], dtype: 'bool'}, Uint8Array.from([1, 0, 1])],
      [{name: 'labels', shape: [2, 2], dtype: 'string'}, text(['cat', '', 'größe', '猫'])],
      [{name: 'empty', shape: [0, 4], dtype: 'float32'}, new Float32Array(0)],
      [{name: 'one', shape: [], dtype: 'int32'}, Int32Array.from([-7])],
    ],
    [[{name: 'wave', shape: [2], dtype: 'complex64'}, Float32Array.from([1, -2, 0.5, 3])]],
  ]);
}

async function everyHalf() {
  // No NaN: JavaScript need not keep its bits.
  const halves = Uint16Array.from({length: 65536}, (_, i) => i).filter(
      (bits) => (bits & 0x7c00) !== 0x7c00);
  await asManifest('halves', [[
    [{name: 'half', shape: [halves.length], dtype: 'float32', quantization: {dtype: 'float16'}},
     halves],
  ]], 1 << 16);
}

await tf.setBackend('cpu');
fs.mkdirSync(output, {recursive: true});
await (process.argv.includes('--float16') ? everyHalf() : models());
fs.writeFileSync(path.join(output, 'expected.json'), JSON.stringify(expected));

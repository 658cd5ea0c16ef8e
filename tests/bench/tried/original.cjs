// Scores of nsfwjs's MobileNetV2 by TensorFlow.js, for models of one package folder.
//
//     node original.cjs TFJS MODEL < request.json > rows.json
//
// TFJS: a folder with @tensorflow/tfjs and @tensorflow/tfjs-backend-wasm installed. MODEL: dist/models/mobilenet_v2 of nsfwjs. The request lists files of raw
// RGB bytes: {"files": [{"path", "width", "height"}]}. Each row has the five probabilities. A file of another size than the
// model's is resized as nsfwjs does it.
"use strict";
const { createRequire } = require("node:module");
const fs = require("node:fs");
const path = require("node:path");

const [, , tfjs, model] = process.argv;
const load = createRequire(path.join(path.resolve(tfjs), "index.js"));
const tf = load("@tensorflow/tfjs");
const wasm = load("@tensorflow/tfjs-backend-wasm");
wasm.setWasmPaths(path.join(path.resolve(tfjs), "node_modules/@tensorflow/tfjs-backend-wasm/dist/"));
const SIZE = 224;

async function main() {
  await tf.setBackend("wasm");
  const { modelTopology, weightsManifest } = require(path.join(path.resolve(model), "model.min.js"));
  const bytes = Buffer.from(require(path.join(path.resolve(model), "group1-shard1of1.min.js")), "base64");
  const weightData = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  const artifacts = { modelTopology, weightSpecs: weightsManifest[0].weights, weightData };
  const network = await tf.loadLayersModel(tf.io.fromMemory(artifacts));
  const rows = [];
  for (const { path: file, width, height } of JSON.parse(fs.readFileSync(0, "utf8")).files) {
    const row = tf.tidy(() => {
      const image = tf.tensor3d(Float32Array.from(fs.readFileSync(file)), [height, width, 3]).div(255);
      const same = width === SIZE && height === SIZE;
      const sized = same ? image : tf.image.resizeBilinear(image, [SIZE, SIZE], true);
      return network.predict(sized.reshape([1, SIZE, SIZE, 3]));
    });
    rows.push(Array.from(await row.data()));
    row.dispose();
  }
  process.stdout.write(JSON.stringify(rows));
}

main();

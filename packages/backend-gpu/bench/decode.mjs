/**
 * Times prefill and decoding of a model of random weights on the GPU through
 * the built packages, and prints a line of JSON for each depth.
 *
 *   node packages/backend-gpu/bench/decode.mjs [CONFIG.JSON]
 *     --layers 8          layers; the configuration's when left out
 *     --depths 0,2048,8192   tokens before those that are timed
 *     --tokens 200        generated tokens
 *     --temperature 0     0 takes the best token
 *     --sessions 1        sessions in one batch
 *
 * The prompt's time is that until the first token. Shapes are compiled and
 * buffers made by one round before.
 */
import { readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { openWebGpu } from '@asa/backend-gpu';
import {
  Engine,
  initialParameters,
  Model,
  parseConfig,
  Random,
} from '@asa/core';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    layers: { type: 'string' },
    depths: { type: 'string', default: '0,2048,8192' },
    tokens: { type: 'string', default: '200' },
    temperature: { type: 'string', default: '0' },
    sessions: { type: 'string', default: '1' },
  },
});
const small = {
  vocabularySize: 4096,
  hiddenSize: 256,
  intermediateSize: 640,
  layers: 8,
  pattern: 'GL',
  attention: {
    G: {
      kind: 'gla',
      heads: 8,
      contentWidth: 32,
      valueWidth: 32,
      ropeWidth: 16,
      latentWidth: 24,
      groups: 2,
      compression: {
        kind: 'mean',
        length: 16,
        stride: 16,
        rope: 'rotated-mean',
      },
      selection: { blockSize: 16, count: 16, initial: 1, local: 2, sharing: 4 },
      gateBias: true,
    },
    L: {
      kind: 'mla',
      heads: 8,
      contentWidth: 32,
      valueWidth: 32,
      ropeWidth: 16,
      latentWidth: 48,
      window: 128,
    },
  },
  rope: { theta: 10000, style: 'half' },
  tieEmbeddings: true,
};
const given = positionals[0]
  ? JSON.parse(await readFile(positionals[0], 'utf8'))
  : small;
const depths = flags.depths.split(',').map(Number);
const config = parseConfig({
  ...given,
  ...(flags.layers && { layers: Number(flags.layers) }),
  context: 2 * Math.max(2048, ...depths),
});
const backend = await openWebGpu();
const parameters = await initialParameters(backend, config, {
  seed: 1,
  dtype: 'f32',
});
const model = new Model(backend, config, parameters);
const engine = Engine.from(model);
const random = Random.fromSeed(2);
const prompt = (length) =>
  Int32Array.from({ length }, () =>
    Math.floor(random.uniform() * config.vocabularySize),
  );

async function round(depth, maxTokens) {
  const sessions = engine.sessions(Number(flags.sessions));
  const start = performance.now();
  const times = [];
  const options = sessions.map(() => ({
    prompt: prompt(Math.max(1, depth)),
    maxTokens,
    temperature: Number(flags.temperature),
    eos: [],
    seed: 7,
  }));
  for await (const { index } of engine.generateBatch(sessions, options)) {
    if (index === 0) times.push(performance.now());
  }
  for (const session of sessions) session.free();
  const first = (times[0] ?? 0) - start;
  const each = times.slice(1, -1).map((time, i) => time - (times[i] ?? 0));
  const sum = each.reduce((a, b) => a + b, 0);
  return {
    device: backend.description,
    depth,
    sessions: sessions.length,
    tokensPerSecond: Math.round((1000 * each.length) / sum),
    medianMs: Number(
      each.toSorted((a, b) => a - b)[each.length >> 1].toFixed(3),
    ),
    firstTokenMs: Number(first.toFixed(1)),
    buffersCreated: backend.buffersCreated,
  };
}

for (const depth of depths) {
  await round(depth, 40);
  console.log(JSON.stringify(await round(depth, Number(flags.tokens))));
}
engine.free();
model.free();
await backend.destroy();

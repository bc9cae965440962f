// Generates again and again, and opens a device again and again, and fails
// where memory grows. From a build:
//   node scripts/soak.mjs --backend webgpu --calls 10000 --cycles 1000
// 0 leaves a part out.
import { parseArgs } from 'node:util';
import { openCpu } from '@asa/backend-cpu';
import { openWebGpu } from '@asa/backend-gpu/webgpu';
import { Engine, initialParameters, Model, parseConfig } from '@asa/core';

/** What a process may keep, whatever the number of calls: the heap's own play. */
const ALLOWED_BYTES = 24 * 2 ** 20;

const latent = {
  heads: 2,
  contentWidth: 8,
  valueWidth: 8,
  ropeWidth: 4,
  latentWidth: 8,
};
const config = parseConfig({
  vocabularySize: 64,
  hiddenSize: 16,
  intermediateSize: 32,
  layers: 2,
  pattern: 'GL',
  context: 64,
  attention: {
    G: {
      ...latent,
      kind: 'gla',
      groups: 1,
      compression: { kind: 'mean', length: 4, stride: 4 },
      selection: { blockSize: 4, sharing: 4, count: 4 },
    },
    L: { ...latent, kind: 'mla', window: 8 },
  },
});

/** Calls that a tenth of the run, at least 20, needs to have met everything. */
const warmUp = (count) => Math.max(20, Math.floor(count / 10));

/**
 * Runs `once` until warm and then `count` times. `growth` compares the least
 * memory that the process had in the middle third with that in the last one.
 */
async function repeat(count, once) {
  for (let i = 0; i < warmUp(count); i++) await once(i);
  const began = performance.now();
  const lowest = [Infinity, Infinity, Infinity];
  for (let i = 0; i < count; i++) {
    await once(i);
    const third = Math.floor((3 * i) / count);
    lowest[third] = Math.min(lowest[third], process.memoryUsage.rss());
  }
  return {
    count,
    milliseconds: Math.round(performance.now() - began),
    growth: lowest[2] - lowest[1],
    bytes: lowest[2],
  };
}

async function generateOnce(engine, i) {
  const prompt = Array.from({ length: 3 + 5 * (i % 4) }, (_, at) => at % 64);
  const session = engine.session();
  const options = { prompt, maxTokens: 8, temperature: 1, seed: i };
  let tokens = 0;
  for await (const event of engine.generate(session, options)) {
    if ('token' in event) tokens += 1;
  }
  session.free();
  if (tokens !== 8) throw new Error(`${tokens} tokens came instead of 8`);
}

/** Many texts from one engine: buffers come back, and none are made. */
async function soakCalls(open, calls) {
  const backend = await open();
  const empty = backend.memory().bytesInUse;
  const parameters = await initialParameters(backend, config, {
    seed: 1,
    dtype: 'f32',
  });
  const model = new Model(backend, config, parameters);
  const engine = Engine.from(model);
  for (let i = 0; i < warmUp(calls); i++) await generateOnce(engine, i);
  // A model makes what it keeps when it first runs.
  const loaded = backend.memory().bytesInUse;
  const before = backend.buffersCreated ?? 0;
  const result = await repeat(calls, (i) => generateOnce(engine, i));
  const buffers = (backend.buffersCreated ?? 0) - before;
  const deviceGrowth = backend.memory().bytesInUse - loaded;
  engine.free();
  model.free();
  const left = backend.memory().bytesInUse - empty;
  await backend.destroy();
  return {
    part: 'generate',
    ...result,
    deviceGrowth: deviceGrowth + left,
    buffers,
  };
}

/** Many devices, each of which computes something. */
async function soakCycles(open, cycles) {
  const result = await repeat(cycles, async () => {
    const backend = await open();
    const storage = backend.allocate(1000, 'f32');
    backend.write(storage, new Float32Array(1000).fill(2));
    const [first] = await backend.read(storage);
    if (first !== 2) throw new Error(`read ${first}, wrote 2`);
    await backend.destroy();
  });
  return { part: 'open and destroy', ...result, deviceGrowth: 0, buffers: 0 };
}

const { values } = parseArgs({
  options: {
    backend: { type: 'string', default: 'webgpu' },
    calls: { type: 'string', default: '10000' },
    cycles: { type: 'string', default: '1000' },
  },
});
const open = values.backend === 'cpu' ? openCpu : openWebGpu;
const parts = [
  [soakCalls, Number(values.calls)],
  [soakCycles, Number(values.cycles)],
];
for (const [part, count] of parts) {
  if (count === 0) continue;
  const result = await part(open, count);
  const passed =
    result.growth <= ALLOWED_BYTES &&
    result.deviceGrowth === 0 &&
    result.buffers === 0;
  console.log(JSON.stringify({ ...result, passed }));
  if (!passed) process.exitCode = 1;
}

import { openCpu } from '@asa/backend-cpu';
import {
  type AttentionConfig,
  type Backend,
  initialParameters,
  Model,
  type ModelConfigInput,
  parseConfig,
  Random,
  type Tensor,
} from '@asa/core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  backpropagate,
  countedTargets,
  type Example,
  freeAll,
  losses,
} from '../../packages/core/src/train';

const latent = {
  heads: 4,
  contentWidth: 4,
  valueWidth: 3,
  ropeWidth: 4,
  queryLatentWidth: 5,
};

type Input = ModelConfigInput['attention'][string];
type Compression = Extract<AttentionConfig, { kind: 'gla' }>['compression'];

const local: Input = { ...latent, kind: 'mla', latentWidth: 6, window: 5 };

const global = (
  kind: Compression['kind'],
  rope: Compression['rope'],
  sharing: number,
): Input => ({
  ...latent,
  kind: 'gla',
  groups: 2,
  latentWidth: 5,
  compression: { kind, rope, length: 4, stride: 2 },
  selection: { blockSize: 4, count: 3, local: 1, sharing },
});

const nsa = (keyValues: 'shared' | 'independent', sharing: number): Input => ({
  kind: 'nsa',
  heads: 4,
  keyValueHeads: 2,
  headWidth: 4,
  valueWidth: 3,
  window: 5,
  compression: { kind: 'mlp', rope: 'block-start', length: 4, stride: 2 },
  selection: { blockSize: 4, count: 3, local: 1, sharing },
  keyValues,
  gateBias: true,
});

const linear: Input = {
  kind: 'linear',
  heads: 2,
  keyWidth: 4,
  valueWidth: 3,
  chunk: 4,
  temperature: 4,
};

const asa = (...how: Parameters<typeof global>) => ({
  pattern: 'GL',
  attention: { G: global(...how), L: local },
});

const cases: [string, Pick<ModelConfigInput, 'pattern' | 'attention'>][] = [
  ['ASA, mean, r = 1', asa('mean', 'rotated-mean', 1)],
  ['ASA, mean, r = 2', asa('mean', 'block-start', 2)],
  ['ASA, weighted, r = 1', asa('weighted', 'block-start', 1)],
  ['ASA, weighted, r = 2', asa('weighted', 'rotated-mean', 2)],
  ['ASA, linear, r = 1', asa('linear', 'rotated-mean', 1)],
  ['ASA, linear, r = 2', asa('linear', 'none', 2)],
  ['ASA, mlp, r = 1', asa('mlp', 'none', 1)],
  ['ASA, mlp, r = 2', asa('mlp', 'rotated-mean', 2)],
  ['NSA, shared', { pattern: 'N', attention: { N: nsa('shared', 1) } }],
  ['NSA, its own', { pattern: 'N', attention: { N: nsa('independent', 2) } }],
  [
    'ASA with linear attention',
    { pattern: 'GR', attention: { G: global('mean', 'none', 2), R: linear } },
  ],
];

let backend: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
});
afterAll(() => backend.destroy());

/** Packed documents: longer and shorter than blocks and windows, one token. */
const examples: Example[] = [19, 1, 3, 7, 10].map((length, document) => {
  const ids = Array.from(
    { length: length + 1 },
    (_, i) => (3 * i * i + 5 * document + i) % 11,
  );
  const targets = ids.slice(1).map((id, i) => (i % 5 === 2 ? -1 : id));
  return { tokens: ids.slice(0, -1), targets };
});

async function openModel(
  change: Pick<ModelConfigInput, 'pattern' | 'attention'>,
  tieEmbeddings: boolean,
): Promise<Model> {
  const config = parseConfig({
    vocabularySize: 11,
    hiddenSize: 8,
    intermediateSize: 10,
    layers: 2,
    context: 32,
    tieEmbeddings,
    ...change,
  });
  const how = { seed: 17, dtype: 'f64' } as const;
  const parameters = await initialParameters(backend, config, how);
  const random = Random.fromSeed(18);
  // Far from the start of training, so that no gradient is small or special.
  for (const { storage } of parameters.values()) {
    const data = Float64Array.from(await backend.read(storage));
    const spread = data.length > 16 ? 0.4 : 0.2;
    backend.write(
      storage,
      data.map((x) => x + spread * random.normal()),
    );
  }
  return new Model(backend, config, parameters);
}

async function meanLoss(model: Model): Promise<number> {
  const nats = await losses(model, examples);
  return nats.reduce((sum, x) => sum + x, 0) / countedTargets(examples);
}

/** Slope of the loss along `direction`, by a central difference of 4th order. */
async function slope(model: Model, tensor: Tensor, direction: Float64Array) {
  const start = Float64Array.from(await backend.read(tensor.storage));
  const at = async (step: number) => {
    backend.write(
      tensor.storage,
      start.map((x, i) => x + step * direction[i]!),
    );
    return meanLoss(model);
  };
  const h = 1e-4;
  const near = (await at(h)) - (await at(-h));
  const far = (await at(2 * h)) - (await at(-2 * h));
  backend.write(tensor.storage, start);
  return (8 * near - far) / (12 * h);
}

/** A difference of losses near 1 over 1e-4 is exact to about 1e-11. */
const resolved = 1e-5;

/**
 * A direction with a part of every element: a gradient that is wrong in one of
 * them has another slope along it.
 */
function directionOf(size: number, random: Random): Float64Array {
  const direction = Float64Array.from({ length: size }, () => random.normal());
  const length = Math.hypot(...direction);
  return direction.map((x) => x / length);
}

test.each(
  cases.flatMap(([name, change], i) => [[name, change, i % 2 === 0] as const]),
)(
  '%s: the gradient of every parameter is the slope of the loss',
  async (_, change, tieEmbeddings) => {
    const model = await openModel(change, tieEmbeddings);
    const share = 1 / countedTargets(examples);
    const { loss, gradients } = backpropagate(model, examples, share);
    const random = Random.fromSeed(19);
    const wrong: object[] = [];
    const flat: string[] = [];
    expect([...gradients.keys()]).toEqual([...model.parameters.keys()]);
    for (const [name, tensor] of model.parameters) {
      const gradient = await backend.read(gradients.get(name)!.storage);
      const norm = Math.hypot(...gradient);
      const typical = norm / Math.sqrt(tensor.size);
      if (typical < resolved) flat.push(name);
      for (let i = 0; i < 2; i++) {
        const direction = directionOf(tensor.size, random);
        const got = direction.reduce((sum, d, j) => sum + d * gradient[j]!, 0);
        const want = await slope(model, tensor, direction);
        // Relative to what a random direction meets, not to a chance near-zero.
        const scale = Math.max(Math.abs(want), typical, resolved);
        const error = Math.abs(got - want) / scale;
        if (!(error < 1e-6)) wrong.push({ name, got, want, error });
      }
    }
    loss.free();
    freeAll(gradients);
    model.free();
    expect(wrong).toEqual([]);
    // All blocks' keys move by one bias alike, and softmax does not see that.
    const unseen = /compress_rope.bias/;
    expect(flat.filter((name) => !unseen.test(name))).toEqual([]);
  },
  30_000,
);

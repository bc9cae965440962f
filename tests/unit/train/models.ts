import type { Backend, Tensor } from '@asa/core';
import {
  initialParameters,
  Model,
  type ModelConfig,
  type ModelConfigInput,
  parseConfig,
} from '@asa/core';
import {
  Documents,
  type TrainConfigInput,
  Trainer,
} from '../../../packages/core/src/train';

const latent = { heads: 2, contentWidth: 4, valueWidth: 3, ropeWidth: 2 };

/** ASA with one global and one local layer. */
export const tiny = (change: Partial<ModelConfigInput> = {}): ModelConfig =>
  parseConfig({
    vocabularySize: 13,
    hiddenSize: 8,
    intermediateSize: 12,
    layers: 2,
    pattern: 'GL',
    attention: {
      G: {
        ...latent,
        kind: 'gla',
        groups: 1,
        latentWidth: 5,
        compression: { kind: 'weighted', length: 2, stride: 1 },
        selection: { blockSize: 2, count: 3, local: 1, sharing: 2 },
      },
      L: { ...latent, kind: 'mla', latentWidth: 6, window: 3 },
    },
    context: 16,
    ...change,
  });

export async function newModel(
  backend: Backend,
  config = tiny(),
  dtype: 'f32' | 'f64' | 'f16' | 'bf16' = 'f32',
): Promise<Model> {
  const parameters = await initialParameters(backend, config, {
    seed: 3,
    dtype,
  });
  return new Model(backend, config, parameters);
}

/** Documents of these lengths; every token from 0 to 12 comes. */
export const documentsOf = (...lengths: number[]): Documents =>
  Documents.of(
    lengths.map((length, d) =>
      Array.from({ length }, (_, i) => (i * i + 3 * d + (i >> 1)) % 13),
    ),
  );

/** What all steps of a run leave, and what their events say but for speed. */
export async function trained(
  [backend, ...replicas]: readonly [Backend, ...Backend[]],
  documents: Documents,
  config: TrainConfigInput,
  dtype: 'f32' | 'f16' | 'bf16' = 'f32',
  shape?: ModelConfig,
) {
  const model = await newModel(backend, shape, dtype);
  const trainer = new Trainer(model, documents, config, { replicas });
  const events = [];
  for (let i = 0; i < config.steps; i++) {
    const { tokensPerSecond: _, ...event } = await trainer.step();
    events.push(event);
  }
  const weights = await bitsOf(model.parameters);
  trainer.free();
  model.free();
  return { events, weights };
}

/** Bits of every tensor, so that equal means equal. */
export async function bitsOf(
  tensors: ReadonlyMap<string, Tensor>,
): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const [name, { backend, storage }] of tensors) {
    const data = await backend.read(storage);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    found[name] = Buffer.from(bytes).toString('hex');
  }
  return found;
}

import { openCpu } from '@asa/backend-cpu';
import {
  type AttentionConfig,
  type Backend,
  type FloatType,
  Model,
  type ModelConfig,
  type ModelConfigInput,
  modelParameters,
  type OperatorName,
  parseConfig,
  Random,
  type Sequences,
  sizeOf,
  type Tensor,
  uploadParameters,
} from '@asa/core';

type AttentionInput = ModelConfigInput['attention'][string];
type Compression = Extract<AttentionInput, { kind: 'gla' }>['compression'];

export const vocabularySize = 19;

/** A config around some layers, `G` and `L` as a rule. */
export function tinyConfig(
  pattern: string,
  attention: Record<string, AttentionInput>,
  rest: Partial<ModelConfigInput> = {},
): ModelConfig {
  return parseConfig({
    vocabularySize,
    hiddenSize: 8,
    intermediateSize: 12,
    layers: 2,
    pattern,
    attention,
    context: 160,
    ...rest,
  });
}

/** `(l, d, l')`, `r` and what else a global layer has. */
export interface GlobalShape {
  readonly blocks: readonly [l: number, d: number, selection: number];
  readonly sharing: number;
  readonly kind?: Compression['kind'];
  readonly rope?: Compression['rope'];
  readonly count?: number;
}

function blocking({ blocks, sharing, kind, rope, count = 4 }: GlobalShape) {
  const [length, stride, blockSize] = blocks;
  return {
    compression: { length, stride, kind, rope },
    selection: { blockSize, sharing, count },
  };
}

export function gla(shape: GlobalShape): AttentionInput {
  return {
    kind: 'gla',
    heads: 4,
    groups: 2,
    contentWidth: 4,
    valueWidth: 4,
    ropeWidth: 2,
    latentWidth: 6,
    ...blocking(shape),
  };
}

export function nsa(
  shape: GlobalShape,
  window: number,
  keyValues: 'shared' | 'independent',
): AttentionInput {
  return {
    kind: 'nsa',
    heads: 4,
    keyValueHeads: 2,
    headWidth: 4,
    valueWidth: 6,
    window,
    keyValues,
    ...blocking(shape),
  };
}

export function mla(window?: number): AttentionInput {
  return {
    kind: 'mla',
    heads: 2,
    contentWidth: 4,
    valueWidth: 4,
    ropeWidth: 2,
    latentWidth: 6,
    queryLatentWidth: 6,
    window,
  };
}

export function gqa(window?: number): AttentionInput {
  return { kind: 'gqa', heads: 4, keyValueHeads: 2, headWidth: 4, window };
}

export const linear: AttentionInput = {
  kind: 'linear',
  heads: 2,
  keyWidth: 4,
  valueWidth: 6,
  chunk: 4,
};

/** Weights large enough that attention is far from uniform. */
export async function tinyModel(
  backend: Backend,
  config: ModelConfig,
  dtype: FloatType = 'f32',
  seed = 1,
): Promise<Model> {
  const random = Random.fromSeed(seed);
  const parameters = await uploadParameters(
    backend,
    dtype,
    modelParameters(config),
    async ({ shape, init }) => {
      const deviation =
        'constant' in init ? 0.3 : 1.5 / Math.sqrt(shape.at(-1) ?? 1);
      const mean = 'constant' in init ? init.constant : 0;
      return new Float64Array(sizeOf(shape)).map(
        () => mean + deviation * random.normal(),
      );
    },
  );
  return new Model(backend, config, parameters);
}

export function randomTokens(count: number, seed: number): number[] {
  const random = Random.fromSeed(seed);
  return Array.from({ length: count }, () => random.below(vocabularySize));
}

/** `rms(got - want) / rms(want)`; NaN where one of them is NaN. */
export function rmsRatio(got: Float32Array, want: Float32Array): number {
  if (got.length !== want.length) return Number.NaN;
  let error = 0;
  let norm = 0;
  want.forEach((value, i) => {
    error += (got[i]! - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(error / norm);
}

/** The oracle with poisoned memory. `onCall` sees each operator's results. */
export async function openPoisoned(
  onCall?: (
    operator: OperatorName,
    outputs: Readonly<Record<string, Tensor>>,
    attributes: unknown,
    inputs: Readonly<Record<string, Tensor>>,
  ) => void,
): Promise<Backend> {
  const backend = await openCpu({ poison: true });
  if (!onCall) return backend;
  const kernels = Object.fromEntries(
    Object.entries(backend.kernels).map(([name, kernel]) => [
      name,
      (inputs: never, outputs: never, attributes: never) => {
        kernel(inputs, outputs, attributes);
        onCall(name as OperatorName, outputs, attributes, inputs);
      },
    ]),
  );
  return Object.create(backend, { kernels: { value: kernels } });
}

interface Lists {
  readonly sequences: Sequences;
  readonly sharing: number;
}

/**
 * Collects every block list that a model chooses, by layer and leader, and
 * counts writes of several rows to one, whose order a GPU does not keep.
 */
export class ListRecorder {
  doubleWrites = 0;
  private readonly reads: Promise<void>[] = [];
  private lists = new Map<string, string>();
  private calls = 0;
  private globalLayers = 1;

  async open(config: ModelConfig): Promise<Backend> {
    const letters = [...config.pattern];
    const hasLists = (attention: AttentionConfig | undefined) =>
      attention !== undefined && 'selection' in attention;
    this.globalLayers = Array.from({ length: config.layers }).filter((_, i) =>
      hasLists(config.attention[letters[i % letters.length]!]),
    ).length;
    return openPoisoned((operator, outputs, attributes, inputs) => {
      if (operator === 'scatterRows') this.checkDistinct(inputs.rows!);
      if (operator !== 'selectBlocks') return;
      this.record(outputs.indices!, attributes as Lists);
    });
  }

  /** The lists of one sequence since the last call, `layer/leader` to indices. */
  async take(): Promise<Map<string, string>> {
    await Promise.all(this.reads.splice(0));
    const { lists } = this;
    this.lists = new Map();
    return lists;
  }

  private checkDistinct(rows: Tensor): void {
    const read = rows.backend.read(rows.storage).then((values) => {
      if (new Set(values).size < values.length) this.doubleWrites += 1;
    });
    this.reads.push(read);
  }

  private record(indices: Tensor, attributes: Lists): void {
    const layer = this.calls++ % this.globalLayers;
    const { lists } = this;
    const [sequence] = attributes.sequences.list;
    const { keyCount, queryCount } = sequence!;
    const first = Math.floor((keyCount - queryCount) / attributes.sharing);
    const width = sizeOf(indices.shape.slice(1));
    // The oracle copies before it returns its promise.
    const read = indices.backend.read(indices.storage).then((values) => {
      for (let row = 0; row < indices.shape[0]!; row++) {
        const list = values.slice(row * width, (row + 1) * width).join();
        lists.set(`${layer}/${first + row}`, list);
      }
    });
    this.reads.push(read);
  }
}

import {
  type Backend,
  bytesPerElement,
  Cache,
  type DType,
  type FloatType,
  type ModelConfig,
  parseConfig,
} from '@asa/core';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';

/** A backend that counts what is allocated and holds nothing. */
function countingBackend(): { backend: Backend; bytes: () => number } {
  let total = 0;
  const backend = {
    name: 'counting',
    allocate(elements: number, dtype: DType) {
      total += elements * bytesPerElement[dtype];
      return {};
    },
    free() {},
  } as unknown as Backend;
  return { backend, bytes: () => total };
}

interface Measured {
  /** Token and block rows, states: what maths.md §5 counts. */
  readonly rows: number;
  readonly leaders: number;
}

function measure(
  config: ModelConfig,
  tokens: number,
  dtype: FloatType,
  ring: boolean,
  slots = 1,
): Measured {
  const { backend, bytes } = countingBackend();
  const cache = new Cache(backend, config, {
    capacity: tokens,
    dtype,
    ring,
    slots,
  });
  const { tokens: rows, blocks, leaders, states } = cache.bytes;
  expect(rows + blocks + leaders + states).toBe(bytes());
  return { rows: rows + blocks + states, leaders };
}

const blocks = (n: number, l: number, d: number) =>
  Math.max(0, Math.floor((n - l) / d) + 1);

/** Whole numbers that every case draws from. */
const shape = fc.record({
  tokens: fc.integer({ min: 1, max: 40_000 }),
  layers: fc.integer({ min: 1, max: 9 }),
  dtype: fc.constantFrom<FloatType>('f64', 'f32', 'f16', 'bf16'),
  ring: fc.boolean(),
  keyValueHeads: fc.integer({ min: 1, max: 5 }),
  width: fc.integer({ min: 1, max: 40 }).map((half) => 2 * half),
  valueWidth: fc.integer({ min: 1, max: 80 }),
  latentWidth: fc.integer({ min: 1, max: 90 }),
  ropeWidth: fc.integer({ min: 1, max: 20 }).map((half) => 2 * half),
  window: fc.integer({ min: 1, max: 1000 }),
  stride: fc.integer({ min: 1, max: 32 }),
  blocksPerLength: fc.integer({ min: 1, max: 4 }),
  selected: fc.integer({ min: 3, max: 20 }),
});
type Numbers = typeof shape extends fc.Arbitrary<infer T> ? T : never;

function configOf(
  n: Numbers,
  pattern: string,
  attention: Record<string, unknown>,
): ModelConfig {
  return parseConfig({
    vocabularySize: 8,
    hiddenSize: 8,
    intermediateSize: 8,
    layers: n.layers,
    pattern,
    attention,
    context: 64,
  });
}

const sparse = (n: Numbers, rope = 'rotated-mean') => ({
  compression: { length: n.stride * n.blocksPerLength, stride: n.stride, rope },
  selection: { blockSize: n.stride, count: n.selected },
});
const globalLayer = (n: Numbers, rope?: string) => ({
  kind: 'gla',
  heads: n.keyValueHeads,
  groups: n.keyValueHeads,
  contentWidth: 4,
  valueWidth: 4,
  ropeWidth: n.ropeWidth,
  latentWidth: n.latentWidth,
  ...sparse(n, rope),
});
const nsaLayer = (n: Numbers, keyValues: string) => ({
  kind: 'nsa',
  heads: n.keyValueHeads,
  keyValueHeads: n.keyValueHeads,
  headWidth: n.width,
  valueWidth: n.valueWidth,
  window: n.window,
  keyValues,
  ...sparse(n),
});
const localLayer = (n: Numbers, window?: number) => ({
  kind: 'mla',
  heads: 1,
  contentWidth: 4,
  valueWidth: 4,
  ropeWidth: n.ropeWidth,
  latentWidth: n.latentWidth,
  window,
});

/** Nc and the rows of a window. */
const counts = (n: Numbers) => ({
  Nc: blocks(n.tokens, n.stride * n.blocksPerLength, n.stride),
  inWindow: n.ring ? Math.min(n.tokens, n.window) : n.tokens,
  e: bytesPerElement[n.dtype],
  lists: n.keyValueHeads * n.selected * 4,
});

const holds = (check: (numbers: Numbers) => void) =>
  fc.assert(fc.property(shape, check), { numRuns: 300 });

describe('the bytes of a cache are those of maths.md §5', () => {
  const got = (n: Numbers, config: ModelConfig) =>
    measure(config, n.tokens, n.dtype, n.ring);

  it('GQA: L n_kv (dk + dv) e N', () => {
    holds((n) => {
      const { e } = counts(n);
      const config = configOf(n, 'A', {
        A: {
          kind: 'gqa',
          heads: n.keyValueHeads,
          keyValueHeads: n.keyValueHeads,
          headWidth: n.width,
        },
      });
      expect(got(n, config)).toEqual({
        rows: n.layers * n.keyValueHeads * 2 * n.width * e * n.tokens,
        leaders: 0,
      });
    });
  });

  it('NSA shared: L n_kv (dk + dv) e (N + Nc), and the lists', () => {
    holds((n) => {
      const { e, Nc, lists } = counts(n);
      const row = n.keyValueHeads * (n.width + n.valueWidth) * e;
      const config = configOf(n, 'A', { A: nsaLayer(n, 'shared') });
      expect(got(n, config)).toEqual({
        rows: n.layers * row * (n.tokens + Nc),
        leaders: n.layers * lists,
      });
    });
  });

  it('NSA independent: N + min(N, w) + Nc rows, and l that wait for a block', () => {
    holds((n) => {
      const { e, Nc, inWindow, lists } = counts(n);
      const row = n.keyValueHeads * (n.width + n.valueWidth) * e;
      const waiting = Math.min(n.tokens, n.stride * n.blocksPerLength);
      const config = configOf(n, 'A', { A: nsaLayer(n, 'independent') });
      expect(got(n, config)).toEqual({
        rows: n.layers * row * (n.tokens + inWindow + Nc + waiting),
        leaders: n.layers * lists,
      });
    });
  });

  it('ASA: Lg (G dg + dR) e (N + Nc) + Ll (dc + dR) e C(N)', () => {
    holds((n) => {
      const { e, Nc, inWindow, lists } = counts(n);
      const globals = Math.ceil(n.layers / 2);
      const locals = n.layers - globals;
      const globalRow = n.keyValueHeads * n.latentWidth + n.ropeWidth;
      const localRow = n.latentWidth + n.ropeWidth;
      const attention = { G: globalLayer(n), L: localLayer(n, n.window) };
      expect(got(n, configOf(n, 'GL', attention))).toEqual({
        rows:
          globals * globalRow * e * (n.tokens + Nc) +
          locals * localRow * e * inWindow,
        leaders: globals * lists,
      });
    });
  });

  it('ASA without compressed rotary keys keeps none', () => {
    holds((n) => {
      const { e, Nc } = counts(n);
      const latents = n.keyValueHeads * n.latentWidth;
      const config = configOf(n, 'G', { G: globalLayer(n, 'none') });
      expect(got(n, config).rows).toBe(
        n.layers * e * ((latents + n.ropeWidth) * n.tokens + latents * Nc),
      );
    });
  });

  it('full MLA keeps each row, linear attention one state', () => {
    holds((n) => {
      const { e } = counts(n);
      const row = n.latentWidth + n.ropeWidth;
      const full = configOf(n, 'L', { L: localLayer(n) });
      expect(got(n, full).rows).toBe(n.layers * row * e * n.tokens);
      const heads = n.keyValueHeads;
      const linear = configOf(n, 'L', {
        L: {
          kind: 'linear',
          heads,
          keyWidth: n.width,
          valueWidth: n.valueWidth,
        },
      });
      const state = heads * n.width * n.valueWidth;
      const stateBytes = n.dtype === 'f64' ? 8 : 4;
      expect(got(n, linear).rows).toBe(n.layers * state * stateBytes);
    });
  });

  it('slots multiply everything', () => {
    holds((n) => {
      const config = configOf(n, 'GL', {
        G: globalLayer(n),
        L: localLayer(n, n.window),
      });
      const one = measure(config, n.tokens, n.dtype, n.ring);
      const five = measure(config, n.tokens, n.dtype, n.ring, 5);
      expect(five).toEqual({ rows: 5 * one.rows, leaders: 5 * one.leaders });
    });
  });
});

describe('ASA beside NSA', () => {
  // NSA: 4 KV heads of 64. ASA: G dg + dR = dc + dR = 4 * 64.
  const n: Numbers = {
    tokens: 32_768,
    layers: 24,
    dtype: 'bf16',
    ring: true,
    keyValueHeads: 4,
    width: 64,
    valueWidth: 64,
    latentWidth: 56,
    ropeWidth: 32,
    window: 512,
    stride: 16,
    blocksPerLength: 2,
    selected: 16,
  };
  const local = { ...localLayer(n, n.window), latentWidth: 224 };
  const nsa = measure(
    configOf(n, 'A', { A: nsaLayer(n, 'shared') }),
    n.tokens,
    n.dtype,
    n.ring,
  );

  it('latent rows are exactly half', () => {
    const latent = configOf(n, 'G', { G: globalLayer(n) });
    const asa = measure(latent, n.tokens, n.dtype, n.ring);
    expect(2 * asa.rows).toBe(nsa.rows);
  });

  it('with the ring at most 27 % at 32k tokens', () => {
    const config = configOf(n, 'GL', { G: globalLayer(n), L: local });
    const asa = measure(config, n.tokens, n.dtype, n.ring);
    const share = (asa.rows + asa.leaders) / (nsa.rows + nsa.leaders);
    expect(share).toBeGreaterThan(0.25);
    expect(share).toBeLessThan(0.27);
  });
});

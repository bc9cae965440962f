import { openCpu } from '@asa/backend-cpu';
import {
  ArgumentError,
  type Backend,
  DTypeError,
  operators,
  Scope,
  Sequences,
  ShapeError,
} from '@asa/core';
import { beforeEach, describe, expect, it } from 'vitest';

let backend: Backend;
let scope: Scope;
beforeEach(async () => {
  backend = await openCpu({ poison: true });
  scope = new Scope(backend);
});

const f32 = (...shape: number[]) =>
  scope.tensor(
    Float32Array.from(
      { length: shape.reduce((n, extent) => n * extent, 1) },
      (_, i) => Math.sin(i + 1),
    ),
    shape,
    'f32',
  );
const blocks = { length: 4, stride: 4 };

/** Each bad call, the error it must give and words of its message. */
describe('operators refuse', () => {
  const one = Sequences.uniform(1, 8);
  const cases: [string, () => unknown, unknown, RegExp][] = [
    [
      'inner extents that differ',
      () => scope.run(operators.matmul, { a: f32(2, 3), b: f32(4, 2) }, {}),
      ShapeError,
      /matmul: the inner extents must agree, got a \[2, 3\] and b \[4, 2\]/,
    ],
    [
      'a matmul without axes',
      () => scope.run(operators.matmul, { a: f32(), b: f32(1, 1) }, {}),
      ShapeError,
      /matmul: a must have at least one axis/,
    ],
    [
      'groups that do not divide heads',
      () =>
        scope.run(
          operators.headMatmul,
          { x: f32(2, 2, 3), w: f32(3, 4, 3) },
          {},
        ),
      ShapeError,
      /headMatmul: groups must divide heads, got 2 and 3/,
    ],
    [
      'a norm weight of another width',
      () =>
        scope.run(
          operators.rmsNorm,
          { x: f32(2, 3), weight: f32(2) },
          { eps: 0 },
        ),
      ShapeError,
      /rmsNorm: weight must have the last axes of x, got \[2\]/,
    ],
    [
      'rope on an odd width',
      () =>
        scope.run(
          operators.rope,
          {
            x: f32(1, 1, 3),
            positions: scope.indices([0]),
            frequencies: f32(1),
          },
          { style: 'half' },
        ),
      ShapeError,
      /rope: the width must be even, got 3/,
    ],
    [
      'real positions',
      () =>
        scope.run(
          operators.rope,
          { x: f32(1, 1, 2), positions: f32(1), frequencies: f32(1) },
          { style: 'half' },
        ),
      DTypeError,
      /rope: positions must be i32, got f32/,
    ],
    [
      'an unknown rope style',
      () =>
        scope.run(
          operators.rope,
          {
            x: f32(1, 1, 2),
            positions: scope.indices([0]),
            frequencies: f32(1),
          },
          { style: 'sideways' as 'half' },
        ),
      ArgumentError,
      /rope: style must be half or interleaved, got sideways/,
    ],
    [
      'fewer rows than the sequences need',
      () =>
        scope.run(
          operators.attention,
          { q: f32(7, 1, 4), k: f32(8, 1, 4), v: f32(8, 1, 4) },
          { sequences: one, scale: 1 },
        ),
      ShapeError,
      /attention: q must have at least 8 rows for these sequences, got 7/,
    ],
    [
      'a window of 0',
      () =>
        scope.run(
          operators.attention,
          { q: f32(8, 1, 4), k: f32(8, 1, 4), v: f32(8, 1, 4) },
          { sequences: one, scale: 1, window: 0 },
        ),
      ArgumentError,
      /attention: window must be an integer of at least 1, got 0/,
    ],
    [
      'a scale of 0',
      () =>
        scope.run(
          operators.attention,
          { q: f32(8, 1, 4), k: f32(8, 1, 4), v: f32(8, 1, 4) },
          { sequences: one, scale: 0 },
        ),
      ArgumentError,
      /attention: scale must be positive, got 0/,
    ],
    [
      'a scale that is no number',
      () =>
        scope.run(
          operators.attention,
          { q: f32(8, 1, 4), k: f32(8, 1, 4), v: f32(8, 1, 4) },
          { sequences: one, scale: Number.NaN },
        ),
      ArgumentError,
      /attention: scale must be finite, got NaN/,
    ],
    [
      'a rotary query without its key',
      () =>
        scope.run(
          operators.attention,
          {
            q: f32(8, 1, 4),
            k: f32(8, 1, 4),
            v: f32(8, 1, 4),
            qRope: f32(8, 1, 2),
          },
          { sequences: one, scale: 1 },
        ),
      ArgumentError,
      /attention: kRope must be given with the other rotary operand/,
    ],
    [
      'a stride that does not divide the block',
      () =>
        scope.run(
          operators.compress,
          { x: f32(8, 1, 2) },
          { sequences: one, length: 4, stride: 3 },
        ),
      ShapeError,
      /compress: stride must divide length, got 3 and 4/,
    ],
    [
      'a block size that the sharing does not divide',
      () =>
        scope.run(
          operators.selectedAttention,
          {
            q: f32(8, 1, 4),
            k: f32(8, 1, 4),
            v: f32(8, 1, 4),
            indices: scope.tensor(new Int32Array(8), [8, 1, 1], 'i32'),
          },
          { sequences: one, scale: 1, blockSize: 4, sharing: 3 },
        ),
      ShapeError,
      /sharing must divide blockSize, got 3 and 4/,
    ],
    [
      'a list shorter than the forced blocks',
      () =>
        scope.run(
          operators.selectBlocks,
          { q: f32(8, 1, 4), k: f32(2, 1, 4), lse: f32(8, 1) },
          {
            sequences: one,
            ...blocks,
            scale: 1,
            groups: 1,
            blockSize: 4,
            sharing: 1,
            count: 2,
            initial: 1,
            local: 2,
          },
        ),
      ArgumentError,
      /count must hold the forced blocks, initial \+ local = 3, got 2/,
    ],
    [
      'a first query that is no leader without its list',
      () =>
        scope.run(
          operators.selectBlocks,
          { q: f32(3, 1, 4), k: f32(2, 1, 4), lse: f32(3, 1) },
          {
            sequences: Sequences.uniform(1, 3, 8),
            ...blocks,
            scale: 1,
            groups: 1,
            blockSize: 4,
            sharing: 4,
            count: 3,
            initial: 1,
            local: 2,
          },
        ),
      ArgumentError,
      /previous must be given with a first query that is no leader/,
    ],
    [
      'a gradient with more keys than queries',
      () => {
        const q = f32(2, 1, 4);
        const k = f32(4, 1, 4);
        const sequences = Sequences.uniform(1, 2, 4);
        return scope.run(
          operators.attentionBackward,
          { q, k, v: k, o: q, lse: f32(2, 1), dO: q },
          { sequences, scale: 1 },
        );
      },
      ArgumentError,
      /attention: the gradient needs Tq = Tk in every sequence/,
    ],
    [
      'another shape of what is added to a gradient of q',
      () => {
        const q = f32(2, 1, 4);
        return scope.run(
          operators.attentionBackward,
          { q, k: q, v: q, o: q, lse: f32(2, 1), dO: q, plus: f32(2, 2, 2) },
          { sequences: Sequences.uniform(1, 2), scale: 1 },
        );
      },
      ShapeError,
      /attention: plus must be \[2, 1, 4\], got \[2, 2, 2\]/,
    ],
    [
      'another type of what is added to a gradient of q',
      () => {
        const q = f32(2, 1, 4);
        const plus = scope.tensor(new Float64Array(8), [2, 1, 4], 'f64');
        return scope.run(
          operators.attentionBackward,
          { q, k: q, v: q, o: q, lse: f32(2, 1), dO: q, plus },
          { sequences: Sequences.uniform(1, 2), scale: 1 },
        );
      },
      DTypeError,
      /attention: plus must be f32 as q is, got f64/,
    ],
    [
      'another shape of what is known of a gradient of o',
      () => {
        const q = f32(2, 1, 4);
        return scope.run(
          operators.attentionBackward,
          { q, k: q, v: q, o: q, lse: f32(2, 1), dO: q, delta: f32(1, 2) },
          { sequences: Sequences.uniform(1, 2), scale: 1 },
        );
      },
      ShapeError,
      /attention: delta must be \[2, 1\], got \[1, 2\]/,
    ],
    [
      'another type of what is known of a gradient of o',
      () => {
        const q = f32(2, 1, 4);
        const delta = scope.tensor(new Float64Array(2), [2, 1], 'f64');
        return scope.run(
          operators.attentionBackward,
          { q, k: q, v: q, o: q, lse: f32(2, 1), dO: q, delta },
          { sequences: Sequences.uniform(1, 2), scale: 1 },
        );
      },
      DTypeError,
      /attention: delta must be f32, got f64/,
    ],
    [
      'targets of another length',
      () =>
        scope.run(
          operators.crossEntropy,
          { logits: f32(2, 3), targets: scope.indices([0]) },
          {},
        ),
      ShapeError,
      /crossEntropy: targets must be \[2\], got \[1\]/,
    ],
    [
      'clipping without a norm',
      () =>
        scope.run(
          operators.adamw,
          { parameter: f32(2), gradient: f32(2), m: f32(2), v: f32(2) },
          {
            learningRate: 1,
            beta1: 0,
            beta2: 0,
            eps: 1,
            weightDecay: 0,
            step: 1,
            clip: 1,
          },
        ),
      ArgumentError,
      /adamw: squaredNorm must be given with clip/,
    ],
    [
      'step 0',
      () =>
        scope.run(
          operators.adamw,
          { parameter: f32(2), gradient: f32(2), m: f32(2), v: f32(2) },
          {
            learningRate: 1,
            beta1: 0,
            beta2: 0,
            eps: 1,
            weightDecay: 0,
            step: 0,
          },
        ),
      ArgumentError,
      /adamw: step must be an integer of at least 1, got 0/,
    ],
    [
      'gates of another number of branches',
      () =>
        scope.run(
          operators.gatedSum,
          {
            gates: f32(2, 1, 3),
            compressed: f32(2, 1, 4),
            selected: f32(2, 1, 4),
          },
          {},
        ),
      ShapeError,
      /gatedSum: gates must be \[2, 1, 2\], got \[2, 1, 3\]/,
    ],
    [
      'rows of another width',
      () =>
        scope.run(
          operators.scatterRows,
          { target: f32(4, 2), x: f32(1, 3), rows: scope.indices([0]) },
          {},
        ),
      ShapeError,
      /scatterRows: x must be \[1, 2\], got \[1, 3\]/,
    ],
  ];
  it.each(cases)('%s', (_, call, type, message) => {
    expect(call).toThrow(type as never);
    expect(call).toThrow(message);
  });
});

describe('a backend', () => {
  it('opens and closes a thousand times', async () => {
    for (let i = 0; i < 1000; i++) {
      const each = await openCpu();
      const inner = new Scope(each);
      const x = inner.tensor(Float32Array.of(i), [1], 'f32');
      const { y } = inner.run(operators.add, { a: x, b: x }, {});
      expect((await inner.read(y))[0]).toBe(2 * i);
      inner.free();
      expect(each.memory().bytesInUse).toBe(0);
      await each.destroy();
    }
  });
});

describe('operators take', () => {
  it('no rows at all', async () => {
    const none = Sequences.uniform(0, 0);
    const empty = { q: f32(0, 2, 4), k: f32(0, 1, 4), v: f32(0, 1, 3) };
    const { o, lse } = scope.run(operators.attention, empty, {
      sequences: none,
      scale: 1,
    });
    expect([o.shape, lse.shape]).toEqual([
      [0, 2, 3],
      [0, 2],
    ]);
    expect(await scope.read(o)).toHaveLength(0);
    const { y } = scope.run(
      operators.matmul,
      { a: f32(0, 3), b: f32(3, 2) },
      {},
    );
    expect(y.shape).toEqual([0, 2]);
    const whole = Sequences.uniform(1, 3);
    const pooled = scope.run(
      operators.compress,
      { x: f32(3, 1, 2) },
      { sequences: whole, ...blocks },
    );
    expect(pooled.y.shape).toEqual([0, 1, 2]);
  });

  it('more than 65,535 rows', async () => {
    const rows = 65_537;
    const x = scope.tensor(
      Float32Array.from({ length: rows * 3 }, (_, i) => 1 + (i % 7)),
      [rows, 3],
      'f32',
    );
    const { y } = scope.run(
      operators.rmsNorm,
      { x, weight: scope.tensor(Float32Array.of(1, 2, 3), [3], 'f32') },
      { eps: 0 },
    );
    const values = (await scope.read(y)) as Float32Array;
    const last = [0, 1, 2].map((c) => 1 + (((rows - 1) * 3 + c) % 7));
    const rms = Math.hypot(...last) / Math.sqrt(3);
    last.forEach((v, c) => {
      expect(values[(rows - 1) * 3 + c]).toBeCloseTo(((c + 1) * v) / rms, 5);
    });
  });

  it('not-a-number and infinity, and show them', async () => {
    const a = scope.tensor(Float32Array.of(Number.NaN, 1), [1, 2], 'f32');
    const { y } = scope.run(operators.matmul, { a, b: f32(2, 1) }, {});
    expect(await scope.read(y)).toEqual(Float32Array.of(Number.NaN));
  });

  it('values that overflow f16, as infinity', async () => {
    const { y } = scope.run(
      operators.cast,
      { x: scope.tensor(Float32Array.of(70_000, -70_000, 1), [3], 'f32') },
      { dtype: 'f16' },
    );
    expect(await scope.read(y)).toEqual(Uint16Array.of(0x7c00, 0xfc00, 0x3c00));
  });
});

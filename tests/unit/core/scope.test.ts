import { openCpu } from '@asa/backend-cpu';
import {
  ArgumentError,
  type Backend,
  DTypeError,
  operators,
  Scope,
  Sequences,
  ShapeError,
  Tape,
  type Tensor,
  TensorStateError,
  UnsupportedError,
} from '@asa/core';
import { beforeEach, describe, expect, it } from 'vitest';

let backend: Backend;
let scope: Scope;
beforeEach(async () => {
  backend = await openCpu({ poison: true });
  scope = new Scope(backend);
});

const vector = (...values: number[]) =>
  scope.tensor(Float32Array.from(values), [values.length], 'f32');

const { add, adamw, gatherRows, matmul, rmsNorm, scatterRows, swiglu } =
  operators;

describe('Scope', () => {
  it('gives back exactly what was written', async () => {
    expect(await scope.read(vector(1, -2, 3))).toEqual(
      Float32Array.of(1, -2, 3),
    );
  });

  it('refuses data of another length', () => {
    expect(() => scope.tensor(new Float32Array(3), [2, 2], 'f32')).toThrow(
      new ShapeError('tensor: [2, 2] has 4 elements, got 3'),
    );
  });

  it('frees all it owns, and nothing that was kept', () => {
    const before = backend.memory().bytesInUse;
    const kept = scope.keep(vector(1, 2));
    scope.run(add, { a: kept, b: vector(3, 4) }, {});
    scope.free();
    expect(backend.memory().bytesInUse).toBe(before + 8);
    kept.free();
    kept.free();
    expect(backend.memory().bytesInUse).toBe(before);
  });

  it('keeps a tensor whose view was kept', async () => {
    const view = vector(1, 2, 3, 4).reshape([2, 2]);
    scope.keep(view);
    scope.free();
    expect(await backend.read(view.storage)).toHaveLength(4);
    view.free();
  });

  it('moves the result of an inner scope out and frees the rest', async () => {
    const x = vector(1, 2);
    const before = backend.memory().bytesInUse;
    const y = scope.within((inner) => {
      const { y: twice } = inner.run(add, { a: x, b: x }, {});
      return inner.run(add, { a: twice, b: x }, {}).y;
    });
    expect(await scope.read(y)).toEqual(Float32Array.of(3, 6));
    expect(backend.memory().bytesInUse).toBe(before + 8);
    scope.free();
    expect(backend.memory().bytesInUse).toBe(0);
  });

  it('leaves a tensor alone that an inner scope only passes through', () => {
    const x = vector(1, 2);
    expect(scope.within(() => x)).toBe(x);
    expect(x.allocation.freed).toBe(false);
  });

  it('frees an inner scope whose body throws', () => {
    const before = backend.memory().bytesInUse;
    expect(() =>
      scope.within((inner) => {
        inner.empty([1000], 'f32');
        throw new Error('stop');
      }),
    ).toThrow('stop');
    expect(backend.memory().bytesInUse).toBe(before);
  });

  it('refuses freed tensors', () => {
    const x = vector(1);
    x.free();
    expect(() => scope.run(add, { a: x, b: vector(2) }, {})).toThrow(
      new TensorStateError('add: a was freed already'),
    );
    expect(() => x.storage).toThrow(TensorStateError);
  });

  it('refuses tensors of another backend', async () => {
    const other = new Scope(await openCpu());
    const foreign = other.tensor(Float32Array.of(1), [1], 'f32');
    expect(() => scope.run(add, { a: vector(2), b: foreign }, {})).toThrow(
      TensorStateError,
    );
  });

  it('refuses to write in place over an operand', () => {
    const x = vector(1, 2, 3);
    const state = { m: vector(0, 0, 0), v: vector(0, 0, 0) };
    const attributes = {
      learningRate: 0.1,
      beta1: 0.9,
      beta2: 0.9,
      eps: 1e-8,
      weightDecay: 0,
      step: 1,
    };
    expect(() =>
      scope.run(
        adamw,
        { parameter: x, gradient: x.reshape([3]), ...state },
        attributes,
      ),
    ).toThrow(/parameter is written in place and must not share memory/);
    expect(() =>
      scope.run(
        scatterRows,
        { target: x, x, rows: scope.indices([0, 1, 2]) },
        {},
      ),
    ).toThrow(ArgumentError);
  });

  it('lets an operator read one tensor twice', async () => {
    const x = vector(1, 2);
    expect(await scope.read(scope.run(add, { a: x, b: x }, {}).y)).toEqual(
      Float32Array.of(2, 4),
    );
  });

  it('says which operator a backend lacks and why', () => {
    const { add: _, ...kernels } = backend.kernels;
    const poor = Object.create(backend, {
      kernels: { value: kernels },
      supports: { value: () => 'its kernels are not written' },
    }) as Backend;
    const other = new Scope(poor);
    const x = other.tensor(Float32Array.of(1), [1], 'f32');
    expect(() => other.run(add, { a: x, b: x }, {})).toThrow(
      new UnsupportedError('add', 'cpu', 'its kernels are not written'),
    );
  });

  it('refuses a reshape to another size', () => {
    expect(() => vector(1, 2, 3).reshape([2, 2])).toThrow(
      new ShapeError('reshape: sizes must agree, got [3] to [2, 2]'),
    );
  });

  it('names operator, rule and value when types differ', () => {
    const f64 = scope.tensor(Float64Array.of(1), [1], 'f64');
    expect(() => scope.run(add, { a: vector(1), b: f64 }, {})).toThrow(
      new DTypeError('add: b must be f32 as a is, got f64'),
    );
    expect(() =>
      scope.run(add, { a: scope.indices([1]), b: vector(1) }, {}),
    ).toThrow(new DTypeError('add: a must be a real type, got i32'));
  });
});

describe('Tape', () => {
  const ones = (tensor: Tensor) =>
    scope.tensor(
      new Float32Array(tensor.size).fill(1),
      tensor.shape,
      tensor.dtype,
    );
  const recording = () => {
    const tape = new Tape();
    return { tape, taped: new Scope(backend, tape) };
  };

  it('adds up the gradients of a tensor that is used twice', async () => {
    const { tape, taped } = recording();
    const x = vector(1, 2);
    tape.watch(x);
    const { y: twice } = taped.run(add, { a: x, b: x }, {});
    const { y } = taped.run(add, { a: twice, b: x }, {});
    const gradients = tape.backward(y, ones(y), [x]);
    expect(await scope.read(gradients.get(x) as Tensor)).toEqual(
      Float32Array.of(3, 3),
    );
  });

  it('follows a tensor through reshapes', async () => {
    const { tape, taped } = recording();
    const x = vector(1, 2, 3, 4);
    tape.watch(x);
    const a = x.reshape([2, 2]);
    const { y } = taped.run(matmul, { a, b: a }, {});
    const gradients = tape.backward(y, ones(y), [x]);
    // d/dX of the sum of X X: row sums and column sums of X.
    expect(await scope.read(gradients.get(x) as Tensor)).toEqual(
      Float32Array.of(3 + 4, 7 + 4, 3 + 6, 7 + 6),
    );
  });

  it('adds to what other uses gave, once for each side of a product', async () => {
    const { tape, taped } = recording();
    const x = vector(1, 2, 3, 4).reshape([2, 2]);
    tape.watch(x);
    const { y: product } = taped.run(matmul, { a: x, b: x, plus: x }, {});
    const { y } = taped.run(add, { a: product, b: x }, {});
    const gradients = tape.backward(y, ones(y), [x]);
    // As above, and 1 for each sum.
    expect(await scope.read(gradients.get(x) as Tensor)).toEqual(
      Float32Array.of(3 + 4 + 2, 7 + 4 + 2, 3 + 6 + 2, 7 + 6 + 2),
    );
  });

  it('leaves a gradient alone that others share', async () => {
    const { tape, taped } = recording();
    const [x, w] = [vector(1, 2).reshape([1, 2]), vector(3, 4)];
    tape.watch(x);
    const { y: normed } = taped.run(rmsNorm, { x, weight: w }, { eps: 0 });
    const { y } = taped.run(add, { a: x, b: normed }, {});
    const { y: twice } = taped.run(add, { a: y, b: x }, {});
    const seed = ones(twice);
    const gradient = tape.backward(twice, seed, [x]).get(x) as Tensor;
    expect(await scope.read(seed)).toEqual(Float32Array.of(1, 1));
    // r (w - x r^2 mean(w x)) and 1 for each sum, r^2 = 1 / 2.5.
    const r = 1 / Math.sqrt(2.5);
    const want = [3, 4].map((w, i) => 2 + r * (w - ((i + 1) / 2.5) * 5.5));
    const got = await scope.read(gradient);
    want.forEach((value, i) => {
      expect(got[i]).toBeCloseTo(value, 5);
    });
  });

  it('gives nothing for a tensor that the output does not depend on', () => {
    const { tape, taped } = recording();
    const [x, unused] = [vector(1), vector(2)];
    tape.watch(x, unused);
    const { y } = taped.run(add, { a: x, b: x }, {});
    const gradients = tape.backward(y, ones(y), [x, unused]);
    expect([...gradients.keys()]).toEqual([x]);
  });

  it('leaves the seed alone and leaks nothing', async () => {
    const { tape, taped } = recording();
    const x = vector(0.5, -0.5);
    tape.watch(x);
    const { y } = taped.run(swiglu, { gate: x, up: x }, {});
    const seed = ones(y);
    const before = backend.memory().bytesInUse;
    const gradient = tape.backward(y, seed, [x]).get(x) as Tensor;
    expect(backend.memory().bytesInUse).toBe(before + 8);
    gradient.free();
    expect(await scope.read(seed)).toEqual(Float32Array.of(1, 1));
  });

  it('refuses a seed of another shape and operators that write in place', () => {
    const { tape, taped } = recording();
    const x = vector(1, 2);
    tape.watch(x);
    const { y } = taped.run(add, { a: x, b: x }, {});
    expect(() => tape.backward(y, vector(1), [x])).toThrow(ArgumentError);
    const rows = taped.indices([0]);
    const table = scope.tensor(new Float32Array(2), [1, 2], 'f32');
    expect(() =>
      taped.run(scatterRows, { target: table, x: x.reshape([1, 2]), rows }, {}),
    ).toThrow(/scatterRows: it writes in place and has no gradient/);
  });

  it('names an operator without a gradient', () => {
    const { tape, taped } = recording();
    const x = scope.tensor(Float32Array.of(1, 2), [1, 2], 'f32');
    tape.watch(x);
    const gathered = taped.run(gatherRows, { x, rows: taped.indices([0]) }, {});
    const { y } = taped.run(
      { ...operators.add, gradient: undefined as never },
      { a: gathered.y, b: gathered.y },
      {},
    );
    expect(() => tape.backward(y, ones(y), [x])).toThrow(
      'add: it has no gradient',
    );
  });
});

describe('Sequences', () => {
  it('lays a batch out on every axis', () => {
    const s = Sequences.uniform(2, 3, 5, { length: 2, stride: 1, sharing: 2 });
    expect(s.list).toEqual([
      {
        queryStart: 0,
        queryCount: 3,
        keyStart: 0,
        keyCount: 5,
        blockStart: 0,
        leaderStart: 0,
      },
      {
        queryStart: 3,
        queryCount: 3,
        keyStart: 5,
        keyCount: 5,
        blockStart: 4,
        // Positions 2, 3, 4 have the leaders 2 and 4.
        leaderStart: 2,
      },
    ]);
    expect(s.queryRows).toBe(6);
    expect(s.keyRows).toBe(10);
    expect(s.blockRows({ length: 2, stride: 1 })).toBe(8);
    expect(s.leaderRows(2)).toBe(4);
  });

  it('counts a leader before the first query', () => {
    const s = Sequences.packed([{ queries: 2, keys: 5 }], {
      length: 1,
      stride: 1,
      sharing: 4,
    });
    // Positions 3 and 4 follow the leaders 0 and 4.
    expect(s.leaderRows(4)).toBe(2);
  });

  it.each([
    [{ queryCount: 2, keyCount: 1 }, /queryCount <= keyCount, got 2 and 1/],
    [{ keyStart: -1 }, /keyStart of sequence 0 must be an integer/],
    [{ blockStart: 0.5 }, /blockStart of sequence 0/],
    [{ leaderStart: Number.NaN }, /leaderStart of sequence 0/],
    [{ queryStart: 2 ** 31 }, /from 0 to 2147483647/],
  ])('refuses %o', (change, message) => {
    const good = {
      queryStart: 0,
      queryCount: 1,
      keyStart: 0,
      keyCount: 1,
      blockStart: 0,
      leaderStart: 0,
    };
    expect(() => new Sequences([{ ...good, ...change }])).toThrow(message);
  });

  it('is copied to a device once', async () => {
    const s = Sequences.uniform(1, 2);
    const copy = s.on(backend);
    expect(s.on(backend)).toBe(copy);
    expect(await backend.read(copy.storage)).toEqual(
      Int32Array.of(0, 2, 0, 2, 0, 0),
    );
    s.free();
    expect(backend.memory().bytesInUse).toBe(0);
  });
});

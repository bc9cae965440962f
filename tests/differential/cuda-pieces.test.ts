/**
 * Operators that move memory, at widths of whole 16-byte pieces and others, with
 * more rows than threads keep at a time.
 */
import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  type OperatorName,
  operators,
  Random,
  Scope,
  Sequences,
  type Tensor,
} from '@asa/core';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { KernelContext } from '../../packages/backend-gpu/src/cuda/kernels';
import { judgeCall } from '../../packages/core/src/verify/differential';
import {
  referenceOn,
  type ValuesByName,
} from '../../packages/core/src/verify/run-operator';
import { type Values, valuesOf } from '../../packages/core/src/verify/values';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import { encode } from '../unit/backend-cpu/helpers';

const dtypes = ['f32', 'f16', 'bf16'] as const;
type Dtype = (typeof dtypes)[number];

interface Call {
  readonly operator: OperatorName;
  readonly name: string;
  readonly attributes?: object;
  inputs(dtype: Dtype): ValuesByName;
}

const random = Random.fromSeed(3);
const data = (dtype: Dtype, ...shape: number[]): Values => {
  const size = shape.reduce((n, d) => n * d, 1);
  const values = new Float64Array(size).map(() => random.normal());
  return valuesOf(shape, values, dtype);
};
const whole = (count: number, below: number, least = 0): Values => ({
  shape: [count],
  dtype: 'i32',
  data: Int32Array.from(
    { length: count },
    () => least + random.below(below - least),
  ),
});

/** More than a block of threads, and an end that no piece has. */
const flat = [8, 4099, 6144];
/** `[rows, norms, width]` */
const normed = [
  [37, 1, 1024],
  [19, 4, 56],
  [70, 3, 8],
  [9, 1, 1000],
  [41, 1, 2048],
  [3, 1, 4104],
  [21, 2, 20],
] as const;
/** `[rows, heads, width]` */
const gated = [
  [67, 16, 56],
  [9, 3, 64],
  [11, 2, 264],
  [13, 5, 20],
] as const;
/** `[tokens, heads, width]` */
const turned = [
  [9, 5, 32],
  [31, 16, 64],
  [3, 1, 16],
  [4, 6, 20],
] as const;
const vocabularies = [1, 4099, 4104];
/** `[table's rows, rows, width]` */
const gathered = [
  [70, 2500, 64],
  [5, 1025, 1096],
  [40, 77, 20],
] as const;

const calls: readonly Call[] = [
  ...flat.flatMap((size): Call[] => [
    {
      operator: 'add',
      name: `${size}`,
      inputs: (t) => ({ a: data(t, size), b: data(t, size) }),
    },
    {
      operator: 'swiglu',
      name: `${size}`,
      inputs: (t) => ({ gate: data(t, size), up: data(t, size) }),
    },
    {
      operator: 'swigluBackward',
      name: `${size}`,
      inputs: (t) => ({
        gate: data(t, size),
        up: data(t, size),
        dy: data(t, size),
      }),
    },
    {
      operator: 'squaredNorm',
      name: `${3 * size}`,
      inputs: (t) => ({ x: data(t, 3 * size), total: data('f32', 1) }),
    },
    {
      operator: 'adamw',
      name: `masters ${size}`,
      attributes: {
        ...{ learningRate: 0.1, weightDecay: 0.1, step: 3, clip: 0.5 },
        ...{ beta1: 0.9, beta2: 0.95, eps: 1e-8 },
      },
      inputs: (t) => ({
        parameter: data('f32', size),
        gradient: data(t, size),
        m: data('f32', size),
        v: valuesOf([size], new Float64Array(size).fill(0.3), 'f32'),
        squaredNorm: valuesOf([1], Float64Array.of(7), 'f32'),
        rounded: data(t, size),
      }),
    },
    {
      operator: 'cast',
      name: `${size}`,
      attributes: { dtype: 'bf16' },
      inputs: (t) => ({ x: data(t, size) }),
    },
  ]),
  ...normed.flatMap(([rows, norms, width]): Call[] => {
    const shape = norms > 1 ? [norms, width] : [width];
    const name = `${rows} x ${shape.join(' x ')}`;
    const attributes = { eps: 1e-5 };
    const inputs = (t: Dtype) => ({
      x: data(t, rows, ...shape),
      weight: data(t, ...shape),
    });
    return [
      { operator: 'rmsNorm', name, attributes, inputs },
      {
        operator: 'rmsNormBackward',
        name,
        attributes,
        inputs: (t) => ({ ...inputs(t), dy: data(t, rows, ...shape) }),
      },
      {
        operator: 'rmsNormBackward',
        name: `${name}, a sum`,
        attributes,
        inputs: (t) => ({
          ...inputs(t),
          dy: data(t, rows, ...shape),
          plus: data(t, rows, ...shape),
        }),
      },
    ];
  }),
  ...gated.flatMap(([rows, heads, width]): Call[] =>
    [2, 3].flatMap((branches): Call[] => {
      const name = `${branches} branches of ${rows} x ${heads} x ${width}`;
      const inputs = (t: Dtype) => ({
        gates: data(t, rows, heads, branches),
        bias: data(t, heads, branches),
        compressed: data(t, rows, heads, width),
        selected: data(t, rows, heads, width),
        ...(branches === 3 && { window: data(t, rows, heads, width) }),
      });
      return [
        { operator: 'gatedSum', name, inputs },
        {
          operator: 'gatedSumBackward',
          name,
          inputs: (t) => ({ ...inputs(t), dY: data(t, rows, heads, width) }),
        },
      ];
    }),
  ),
  ...turned.flatMap(([tokens, heads, width]): Call[] =>
    (['half', 'interleaved'] as const).map((style) => ({
      operator: 'rope',
      name: `${tokens} x ${heads} x ${width}, ${style}`,
      attributes: { style, inverse: heads % 2 > 0 },
      inputs: (t) => ({
        x: data(t, tokens, heads, width),
        positions: whole(tokens, 100_000),
        frequencies: data('f32', width / 2),
      }),
    })),
  ),
  ...vocabularies.map(
    (size): Call => ({
      operator: 'crossEntropy',
      name: `${size} logits`,
      inputs: (t) => ({
        logits: data(t, 7, size),
        targets: whole(7, size, -1),
      }),
    }),
  ),
  ...gathered.flatMap(([extent, rows, width]): Call[] => [
    {
      operator: 'gatherRows',
      name: `${rows} of ${extent} x ${width}`,
      inputs: (t) => ({
        x: data(t, extent, width),
        rows: whole(rows, extent),
      }),
    },
    {
      operator: 'gatherRowsBackward',
      name: `${rows} of ${extent} x ${width}`,
      attributes: { extent },
      inputs: (t) => ({
        dy: data(t, rows, width),
        // Some rows have none.
        rows: whole(rows, extent, 2),
      }),
    },
  ]),
];

const reason = whyNoEmulator();

describe.skipIf(reason)(`pieces on emulated CUDA ${reason ?? ''}`, () => {
  let backend: Backend;
  let reference: Backend;

  beforeAll(async () => {
    backend = await openEmulated();
    reference = await openCpu({ poison: true });
  }, 120_000);
  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  async function judge(call: Call, inputs: ValuesByName, dtype: Dtype) {
    const { operator, attributes = {} } = call;
    const judged = await judgeCall(
      { backend, reference },
      { operator, attributes },
      inputs,
      dtype,
    );
    expect(judged).toMatchObject({ percent: expect.any(Number) });
    expect(judged).not.toHaveProperty('detail');
  }

  describe.each(dtypes)('%s', (dtype) => {
    test.each(calls.map((call) => [call.operator, call.name, call] as const))(
      '%s of %s',
      (_operator, _name, call) => judge(call, call.inputs(dtype), dtype),
    );

    test.each([56, 64, 128, 20])(
      'dO . o of the gates is that of attention to the bit: %i columns',
      async (width) => {
        const scope = new Scope(backend);
        const upload = (...shape: number[]) => {
          const { data: values } = data(dtype, ...shape);
          const elements = encode(values as Float64Array, dtype);
          return scope.tensor(elements, shape, dtype);
        };
        const [q, k, v, selected, dY] = Array.from({ length: 5 }, () =>
          upload(41, 4, width),
        ) as [Tensor, Tensor, Tensor, Tensor, Tensor];
        const attributes = { sequences: Sequences.uniform(1, 41), scale: 0.2 };
        const found = scope.run(operators.attention, { q, k, v }, attributes);
        const { dCompressed: dO, deltaCompressed: delta } = scope.run(
          operators.gatedSumBackward,
          { gates: upload(41, 4, 2), compressed: found.o, selected, dY },
          {},
        );
        const operands = { q, k, v, ...found, dO };
        const run = (more: { delta?: Tensor }) =>
          scope.run(
            operators.attentionBackward,
            { ...operands, ...more },
            attributes,
          );
        const launched = vi.spyOn(backend as unknown as KernelContext, 'run');
        const [told, own] = [run({ delta }), run({})];
        const entries = launched.mock.calls.map(([{ entry }]) => entry);
        launched.mockRestore();
        const counts = ['packStatistics', 'rowStatistics'].map(
          (name) => entries.filter((entry) => entry === name).length,
        );
        expect(counts).toEqual([1, 1]);
        for (const name of ['dQ', 'dK', 'dV'] as const) {
          const got = await scope.read(told[name]);
          expect(got, name).toEqual(await scope.read(own[name]));
        }
        const other = scope.run(operators.add, { a: delta, b: delta }, {}).y;
        const wrong = await scope.read(run({ delta: other }).dQ);
        expect(wrong).not.toEqual(await scope.read(own.dQ));
        attributes.sequences.free();
        scope.free();
      },
    );

    test.each(vocabularies)(
      'crossEntropyBackward of %i logits',
      async (size) => {
        const inputs = {
          logits: data(dtype, 7, size),
          targets: whole(7, size, -1),
        };
        const { lse } = await referenceOn(reference)(
          'crossEntropy',
          inputs,
          {},
        );
        const statistic = (values: Float64Array) =>
          valuesOf([7], values, 'f32');
        const all = {
          ...inputs,
          lse: statistic(lse?.data as Float64Array),
          dLoss: statistic(
            Float64Array.from({ length: 7 }, () => random.normal()),
          ),
        };
        const operator = 'crossEntropyBackward';
        const call = { operator, name: '', inputs: () => all } as const;
        await judge(call, all, dtype);
      },
    );
  });

  describe('many calls at once', () => {
    // More than a launch has room for, more than a block of threads has, none.
    const sizes = [
      ...Array.from({ length: 140 }, (_, i) => 1 + ((37 * i) % 97)),
      ...[0, 8192, 8193, 40_001, 3],
    ];
    const normal = (scope: Scope, size: number, dtype: Dtype) =>
      scope.tensor(
        encode(
          Float64Array.from({ length: size }, () => random.normal()),
          dtype,
        ),
        [size],
        dtype,
      );

    test.each(dtypes)('sum the squares of %s', async (dtype) => {
      const scope = new Scope(backend);
      const [one, all] = [0, 1].map(() =>
        scope.tensor(Float32Array.of(2), [1], 'f32'),
      ) as [Tensor, Tensor];
      const list = sizes.map((size) => normal(scope, size, dtype));
      for (const x of list) {
        scope.run(operators.squaredNorm, { x, total: one }, {});
      }
      scope.runMany(
        operators.squaredNorm,
        list.map((x) => ({ inputs: { x, total: all }, attributes: {} })),
      );
      const [want = 0] = await scope.read(one);
      const [got = 0] = await scope.read(all);
      expect(Math.abs(got / want - 1)).toBeLessThan(1e-5);
      scope.free();
    });

    test('update parameters as one after another, to the bit', async () => {
      const scope = new Scope(backend);
      const squaredNorm = scope.tensor(Float32Array.of(9), [1], 'f32');
      const numbers = { beta1: 0.9, beta2: 0.95, eps: 1e-8, step: 2, clip: 1 };
      const draws = sizes.map((size, i) => {
        const dtype = i % 50 < 45 ? 'bf16' : 'f16';
        const tensors = [
          normal(scope, size, 'f32'),
          normal(scope, size, 'f32'),
          scope.tensor(new Float32Array(size).fill(0.3), [size], 'f32'),
          normal(scope, size, dtype),
          normal(scope, size, dtype),
        ];
        const weightDecay = i % 3 === 0 ? 0.1 : 0;
        const learningRate = i < 100 ? 1e-2 : 1e-3;
        return {
          tensors,
          attributes: { ...numbers, weightDecay, learningRate },
        };
      });
      const copies = () =>
        draws.map(({ tensors, attributes }) => {
          const own = tensors.map((tensor) => {
            const copy = scope.empty(tensor.shape, tensor.dtype);
            const { storage, size } = copy;
            backend.copy(tensor.storage, 0, storage, 0, size);
            return copy;
          });
          const [parameter, m, v, gradient, rounded] = own as [
            ...[Tensor, Tensor, Tensor, Tensor, Tensor],
          ];
          return {
            inputs: { parameter, m, v, gradient, rounded, squaredNorm },
            attributes,
          };
        });
      const [single, many] = [copies(), copies()];
      for (const { inputs, attributes } of single) {
        scope.run(operators.adamw, inputs, attributes);
      }
      scope.runMany(operators.adamw, many);
      for (const [i, { inputs }] of many.entries()) {
        for (const name of ['parameter', 'm', 'v', 'rounded'] as const) {
          const want = single[i]?.inputs[name] as Tensor;
          expect(await scope.read(inputs[name]), `${name} ${i}`).toEqual(
            await scope.read(want),
          );
        }
      }
      scope.free();
    });

    /** What a call launches: entries, and the types they are compiled for. */
    function launchesOf(call: () => void): string[] {
      const launched = vi.spyOn(backend as unknown as KernelContext, 'run');
      call();
      const launches = launched.mock.calls.map(
        ([{ entry, defines }]) => `${entry} ${defines.T}`,
      );
      launched.mockRestore();
      return launches;
    }

    test('turn tensors as one after another, to the bit', async () => {
      const scope = new Scope(backend);
      const call = (
        [tokens = 0, heads = 0, width = 0]: readonly number[],
        dtype: Dtype,
        attributes: { style: 'half' | 'interleaved'; inverse?: boolean },
      ) => {
        const x = normal(scope, tokens * heads * width, dtype);
        const positions = Array.from({ length: tokens }, () =>
          random.below(100_000),
        );
        const frequencies = normal(scope, width / 2, 'f32');
        return {
          inputs: {
            x: x.reshape([tokens, heads, width]),
            positions: scope.indices(positions),
            frequencies,
          },
          attributes,
        };
      };
      const half = { style: 'half' } as const;
      const neighbours = { style: 'interleaved' } as const;
      const list = [
        // A launch's four, one of which has many blocks, and none between.
        call([11, 16, 64], 'bf16', half),
        call([0, 16, 64], 'bf16', half),
        call([11, 1, 64], 'bf16', half),
        call([401, 5, 32], 'bf16', half),
        call([12, 6, 16], 'bf16', { ...half, inverse: false }),
        // More than it has room for; other kinds.
        call([9, 5, 32], 'bf16', half),
        call([10, 3, 128], 'bf16', half),
        call([10, 3, 128], 'bf16', { ...half, inverse: true }),
        call([10, 3, 128], 'f16', { ...half, inverse: true }),
        call([10, 3, 20], 'f16', { ...half, inverse: true }),
        call([70, 6, 8], 'f16', { ...half, inverse: true }),
        call([10, 3, 20], 'f32', neighbours),
        call([40, 5, 12], 'f32', neighbours),
        call([40, 5, 16], 'f32', neighbours),
        call([10, 9, 64], 'f32', neighbours),
        // Of few tokens a thread has a pair.
        call([8, 9, 64], 'f32', neighbours),
        call([1, 1, 64], 'f32', neighbours),
      ];
      const want = list.map(
        ({ inputs, attributes }) =>
          scope.run(operators.rope, inputs, attributes).y,
      );
      let got: Tensor[] = [];
      const launches = launchesOf(() => {
        got = scope.runMany(operators.rope, list).map(({ y }) => y);
      });
      expect(launches).toEqual([
        ...['ropePieces bf16', 'ropePieces bf16', 'ropePieces bf16'],
        ...['ropePieces f16', 'rope f16', 'rope f32', 'ropePieces f32'],
        'rope f32',
      ]);
      expect(got).toHaveLength(list.length);
      for (const [i, y] of got.entries()) {
        expect(await scope.read(y), `${i}`).toEqual(
          await scope.read(want[i] as Tensor),
        );
      }
      scope.free();
    });

    test('turn a token alone as among many, to the bit', async () => {
      const scope = new Scope(backend);
      const x = normal(scope, 12 * 3 * 32, 'bf16').reshape([12, 3, 32]);
      const frequencies = normal(scope, 16, 'f32');
      const positions = Array.from({ length: 12 }, () => random.below(100_000));
      const turn = (tensor: Tensor, at: number[]) =>
        scope.run(
          operators.rope,
          { x: tensor, positions: scope.indices(at), frequencies },
          { style: 'half' },
        ).y;
      const all = await scope.read(turn(x, positions));
      const data = await scope.read(x);
      for (const [i, position] of positions.entries()) {
        const own = data.slice(96 * i, 96 * i + 96);
        const alone = turn(scope.tensor(own, [1, 3, 32], 'bf16'), [position]);
        const want = all.slice(96 * i, 96 * i + 96);
        expect(await scope.read(alone), `${i}`).toEqual(want);
      }
      scope.free();
    });

    test('move rows as one after another, to the bit', async () => {
      const scope = new Scope(backend);
      const extent = 70;
      const draws = (
        [
          // A launch's four, one of which has many blocks, and none between.
          [3, 'bf16', 64],
          [0, 'bf16', 64],
          [65, 'bf16', 1096],
          // Pieces of 16 bytes, whatever the elements are.
          [9, 'f32', 4],
          [70, 'f16', 8],
          // More than it has room for; elements of 16 bits, and of 32.
          [1, 'bf16', 2048],
          [2, 'bf16', 12],
          [40, 'f16', 20],
          [40, 'f32', 3],
          [7, 'f32', 1],
          [7, 'bf16', 1],
        ] as const
      ).map(([count, dtype, width]) => {
        const table = normal(scope, extent * width, dtype);
        const x = normal(scope, count * width, dtype);
        // Distinct rows, in no order.
        const first = random.below(extent);
        return {
          table: table.reshape([extent, width]),
          x: x.reshape([count, width]),
          rows: scope.indices(
            Array.from({ length: count }, (_, i) => (first + 27 * i) % extent),
          ),
        };
      });
      const types = ['bits128', 'bits128', 'bits16', 'bits32', 'bits16'];

      const reads = draws.map(({ table, rows }) => ({
        inputs: { x: table, rows },
        attributes: {},
      }));
      const read = reads.map(
        ({ inputs }) => scope.run(operators.gatherRows, inputs, {}).y,
      );
      let found: Tensor[] = [];
      const gathers = launchesOf(() => {
        found = scope.runMany(operators.gatherRows, reads).map(({ y }) => y);
      });
      expect(gathers).toEqual(types.map((type) => `gatherRows ${type}`));

      const writes = () =>
        draws.map(({ table, x, rows }) => ({
          inputs: { target: scope.copyOf(table), x, rows },
          attributes: {},
        }));
      const [single, many] = [writes(), writes()];
      for (const { inputs } of single) {
        scope.run(operators.scatterRows, inputs, {});
      }
      const scatters = launchesOf(() => {
        scope.runMany(operators.scatterRows, many);
      });
      expect(scatters).toEqual(types.map((type) => `scatterRows ${type}`));

      for (const i of draws.keys()) {
        expect(await scope.read(found[i] as Tensor), `read ${i}`).toEqual(
          await scope.read(read[i] as Tensor),
        );
        const [got, want] = [many[i]?.inputs.target, single[i]?.inputs.target];
        expect(await scope.read(got as Tensor), `written ${i}`).toEqual(
          await scope.read(want as Tensor),
        );
      }
      scope.free();
    });

    test('write different rows of one tensor', async () => {
      const scope = new Scope(backend);
      const target = scope.tensor(new Float32Array(5), [5, 1], 'f32');
      const write = (values: number[], rows: number[]) => ({
        inputs: {
          target,
          x: scope.tensor(Float32Array.from(values), [values.length, 1], 'f32'),
          rows: scope.indices(rows),
        },
        attributes: {},
      });
      scope.runMany(operators.scatterRows, [
        write([1, 2], [4, 0]),
        write([3], [2]),
      ]);
      expect(await scope.read(target)).toEqual(Float32Array.of(2, 0, 3, 0, 1));
      scope.free();
    });
  });
});

/** Products of few rows by `[out, in]` weights, as decoding has them. */
import { openCpu } from '@asa/backend-cpu';
import { type Backend, operators, Random, Scope, type Tensor } from '@asa/core';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { CudaBackend } from '../../packages/backend-gpu/src/cuda/cuda-backend';
import { judgeCall } from '../../packages/core/src/verify/differential';
import { valuesOf } from '../../packages/core/src/verify/values';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import { encode } from '../unit/backend-cpu/helpers';

type Dtype = 'f32' | 'f16' | 'bf16';

const random = Random.fromSeed(17);
const normal = (size: number) =>
  Float64Array.from({ length: size }, () => random.normal());
const values = (dtype: Dtype, ...shape: [number, number]) =>
  valuesOf(shape, normal(shape[0] * shape[1]), dtype);

const attributes = { transposeB: true };
const allRows = [1, 2, 3, 4, 5];
/** Fewer than a warp's lanes, pieces of each lane, a ragged end. */
const inners = [8, 64, 1024, 2632];
const allColumns = [1, 31, 33, 270];

const reason = whyNoEmulator();

describe.skipIf(reason)(`few rows on emulated CUDA ${reason ?? ''}`, () => {
  let backend: CudaBackend;
  /** So small that a warp has two columns. */
  let small: CudaBackend;
  let reference: Backend;

  beforeAll(async () => {
    backend = await openEmulated();
    small = await openEmulated({ multiprocessors: 1 });
    reference = await openCpu({ poison: true });
  }, 120_000);
  afterAll(async () => {
    await backend.destroy();
    await small.destroy();
    await reference.destroy();
  });

  const upload = (scope: Scope, dtype: Dtype, rows: number, columns: number) =>
    scope.tensor(encode(normal(rows * columns), dtype), [rows, columns], dtype);

  /** The same operands on another backend, some rows of `a` and `plus`. */
  async function copied(
    scope: Scope,
    call: { a: Tensor; b: Tensor; plus: Tensor },
    first: number,
    rows: number,
  ) {
    const part = async ({ storage, shape, dtype }: Tensor) => {
      const columns = shape[1] ?? 0;
      const data = await call.a.backend.read(storage);
      const own = data.slice(first * columns, (first + rows) * columns);
      return scope.tensor(own, [rows, columns], dtype);
    };
    const { b } = call;
    return {
      a: await part(call.a),
      b: scope.tensor(await b.backend.read(b.storage), b.shape, b.dtype),
      plus: await part(call.plus),
    };
  }

  describe.each(['f16', 'bf16'] as const)('%s', (dtype) => {
    test.each(
      allRows.flatMap((rows) => inners.map((inner) => [rows, inner] as const)),
    )('%i rows of %i terms', async (rows, inner) => {
      const launched = vi.spyOn(backend, 'run');
      for (const columns of allColumns) {
        for (const hasPlus of [false, true]) {
          const judged = await judgeCall(
            { backend, reference },
            { operator: 'matmul', attributes },
            {
              a: values(dtype, rows, inner),
              b: values(dtype, columns, inner),
              ...(hasPlus && { plus: values(dtype, rows, columns) }),
            },
            dtype,
          );
          expect(judged).toMatchObject({ percent: expect.any(Number) });
          expect(judged).not.toHaveProperty('detail');
        }
      }
      const count = rows === 5 ? 0 : 2 * allColumns.length;
      expect(launched).toHaveBeenCalledTimes(count);
      launched.mockRestore();
    });

    test.each([72, 1032, 2632])(
      'a row of %i terms has the same bits in every batch',
      async (inner) => {
        const scope = new Scope(backend);
        const columns = 71;
        const call = {
          a: upload(scope, dtype, 4, inner),
          b: upload(scope, dtype, columns, inner),
          plus: upload(scope, dtype, 4, columns),
        };
        const run = async (on: CudaBackend, first: number, rows: number) => {
          const own = new Scope(on);
          const inputs = await copied(own, call, first, rows);
          const { y } = own.run(operators.matmul, inputs, attributes);
          const result = [...(await own.read(y))];
          own.free();
          return result;
        };
        const alone: number[][] = [];
        for (let row = 0; row < 4; row++) {
          alone.push(await run(backend, row, 1));
        }
        for (const on of [backend, small]) {
          for (const rows of [1, 2, 3, 4]) {
            const got = await run(on, 4 - rows, rows);
            expect(got, `${rows} rows`).toEqual(alone.slice(4 - rows).flat());
          }
        }
        scope.free();
      },
    );
  });

  const heads = [
    // Heads, terms, columns of a head; heads that share a group.
    [16, 56, 64, 1],
    [4, 224, 64, 1],
    [8, 64, 9, 4],
    // A warp of two columns would have two heads.
    [8, 64, 9, 1],
    [6, 128, 8, 3],
  ] as const;
  test.each(
    heads.flatMap((head) => [1, 3].map((rows) => [rows, ...head] as const)),
  )(
    '%i rows of %i heads, %i terms by %i columns, %i a group',
    async (...shape) => {
      const [rows, count, inner, columns, share] = shape;
      const groups = count / share;
      for (const on of [backend, small]) {
        const launched = vi.spyOn(on, 'run');
        const judged = await judgeCall(
          { backend: on, reference },
          { operator: 'headMatmul', attributes: {} },
          {
            x: valuesOf(
              [rows, groups, inner],
              normal(rows * groups * inner),
              'bf16',
            ),
            w: valuesOf(
              [count, columns, inner],
              normal(count * columns * inner),
              'bf16',
            ),
          },
          'bf16',
        );
        expect(judged).not.toHaveProperty('detail');
        expect(launched.mock.calls.map(([{ entry }]) => entry)).toEqual([
          'fewRows',
        ]);
        launched.mockRestore();
      }
    },
  );

  test('many calls share launches and have the bits of single ones', async () => {
    const scope = new Scope(backend);
    const of = (
      dtype: Dtype,
      a: Tensor,
      columns: number,
      hasPlus = false,
      transposeB = true,
    ) => {
      const [rows = 0, inner = 0] = a.shape;
      const b = transposeB
        ? upload(scope, dtype, columns, inner)
        : upload(scope, dtype, inner, columns);
      const plus = hasPlus ? upload(scope, dtype, rows, columns) : undefined;
      return { inputs: { a, b, plus }, attributes: { transposeB } };
    };
    const wide = upload(scope, 'bf16', 1, 1024);
    const other = upload(scope, 'bf16', 1, 1024);
    const long = upload(scope, 'bf16', 1, 2632);
    const two = upload(scope, 'bf16', 2, 2632);
    const half = upload(scope, 'f16', 2, 2632);
    const float = upload(scope, 'f32', 2, 2632);
    const odd = upload(scope, 'bf16', 2, 20);
    const empty = upload(scope, 'bf16', 2, 0);
    const calls = [
      // Ten that are alike, one of no columns: two launches.
      ...[100, 57, 0, 32, 1, 9, 8, 7].map((n) => of('bf16', wide, n, n > 50)),
      ...[64, 3].map((n) => of('bf16', other, n, n < 50)),
      // One each: other terms, rows, types.
      ...[of('bf16', long, 5), of('bf16', two, 9), of('f16', half, 9, true)],
      // None: no whole pieces, f32, weights `[in, out]`, no terms.
      ...[of('bf16', odd, 5), of('f32', float, 6)],
      ...[of('bf16', two, 6, true, false), of('bf16', empty, 4)],
      of('bf16', two, 9),
    ];
    const launched = vi.spyOn(backend, 'run');
    const many = scope.runMany(operators.matmul, calls);
    const launches = launched.mock.calls.map(([{ file, grid }]) => [
      file,
      ...grid,
    ]);
    launched.mockRestore();
    expect(launches).toEqual([
      ['few-rows', 13 + 8 + 4 + 1 + 2 + 1 + 1 + 8],
      ...[1, 1, 2, 2, 2].map((blocks) => ['few-rows', blocks]),
    ]);
    for (const [i, { inputs, attributes }] of calls.entries()) {
      const { y } = scope.run(operators.matmul, inputs, attributes);
      const got = await scope.read((many[i] as { y: Tensor }).y);
      expect(got, `call ${i}`).toEqual(await scope.read(y));
    }
    scope.free();
  });
});

/** Which blocks a list gets, on emulated CUDA; importance is the same in all. */
import { openCpu } from '@asa/backend-cpu';
import { type Backend, operators, Random, Scope, Sequences } from '@asa/core';
import { describe, expect, test } from 'vitest';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';

const [queries, heads, width, groups] = [3, 2, 16, 1];

/** Lists of one block a key; every `period`th key is the same. */
async function choose(
  backend: Backend,
  keys: number,
  count: number,
  period: number,
): Promise<readonly number[]> {
  const random = Random.fromSeed(keys);
  const normal = (rows: number) =>
    Float32Array.from({ length: rows * width }, () => random.normal());
  const q = normal(queries * heads);
  const some = normal(period);
  const k = Float32Array.from(
    { length: keys * width },
    (_, i) => some[i % some.length] ?? 0,
  );
  const blocking = { length: 1, stride: 1, sharing: 1 };
  const sequences = Sequences.uniform(1, queries, keys, blocking);
  const scope = new Scope(backend);
  const operands = {
    q: scope.tensor(q, [queries, heads, width], 'f32'),
    k: scope.tensor(k, [keys, groups, width], 'f32'),
  };
  const attributes = { sequences, length: 1, stride: 1, scale: 0.3 };
  const { lse } = scope.run(
    operators.compressedAttention,
    { ...operands, v: operands.k },
    attributes,
  );
  const { indices } = scope.run(
    operators.selectBlocks,
    { ...operands, lse },
    {
      ...{ ...attributes, groups, blockSize: 1, sharing: 1 },
      ...{ count, initial: 1, local: 2 },
    },
  );
  const lists = [...(await scope.read(indices))];
  scope.free();
  sequences.free();
  return lists;
}

const reason = whyNoEmulator();

describe.skipIf(reason)(`selection on emulated CUDA ${reason ?? ''}`, () => {
  // Few, one register a lane, several, more than registers hold; two ranks a
  // lane and more; ties of two keys and of hundreds.
  for (const keys of [20, 300, 1500, 4200])
    for (const count of [3, 16, 40, 67, 100])
      for (const period of [keys, keys >> 1, 2]) {
        test(`${count} of ${keys} blocks, ${period} unlike`, async () => {
          const [cuda, cpu] = [await openEmulated(), await openCpu()];
          expect(await choose(cuda, keys, count, period)).toEqual(
            await choose(cpu, keys, count, period),
          );
          await cuda.destroy();
          await cpu.destroy();
        });
      }
});

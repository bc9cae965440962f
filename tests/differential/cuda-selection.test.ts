/** Which blocks a list gets, on emulated CUDA; importance is the same in all. */
import { openCpu } from '@asa/backend-cpu';
import { describe, expect, test } from 'vitest';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import { choose } from './selection';

const reason = whyNoEmulator();
const shape = { queries: 3, heads: 2, groups: 1, width: 16, scale: 0.3 };

describe.skipIf(reason)(`selection on emulated CUDA ${reason ?? ''}`, () => {
  // Few, one register a lane, several, more than registers hold; two ranks a
  // lane and more; ties of two keys and of hundreds.
  for (const keys of [20, 300, 1500, 4200])
    for (const count of [3, 16, 40, 67, 100])
      for (const period of [keys, keys >> 1, 2]) {
        test(`${count} of ${keys} blocks, ${period} unlike`, async () => {
          const choice = { ...shape, keys, count, period };
          const [cuda, cpu] = [await openEmulated(), await openCpu()];
          expect(await choose(cuda, choice)).toEqual(await choose(cpu, choice));
          await cuda.destroy();
          await cpu.destroy();
        });
      }

  // As a card makes them: the largest one.
  test.for([300, 4200])('the first of %d blocks that are NaN', async (keys) => {
    const cuda = await openEmulated();
    const lseBits = 0x7fff_ffff;
    const choice = { ...shape, keys, count: 16, period: keys, lseBits };
    const first = Array.from({ length: 14 }, (_, block) => block);
    expect(await choose(cuda, choice)).toEqual(
      [keys - 3, keys - 2, keys - 1].flatMap((own) => [...first, own - 1, own]),
    );
    await cuda.destroy();
  });
});

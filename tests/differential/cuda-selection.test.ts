/** Which blocks a list gets, on emulated CUDA; importance is the same in all. */
import { openCpu } from '@asa/backend-cpu';
import { describe, expect, test, vi } from 'vitest';
import { whyNoEmulator } from '../cuda-emulator/build.mjs';
import { openEmulated } from '../cuda-emulator/open';
import { choose } from './selection';

const reason = whyNoEmulator();
const shape = { queries: 3, heads: 2, groups: 1, width: 16, scale: 0.3 };

/** A list a block of threads where multiprocessors are many, else a warp. */
const ways = [
  ['chooseFew', 132],
  ['selectBlocks', 1],
] as const;

// Few, one register a lane, several, more than registers hold; two ranks a
// lane and more; ties of two keys and of hundreds; ends of warps and of rows.
const choices = [20, 300, 1500, 4200]
  .flatMap((keys) =>
    [3, 16, 40, 67, 100].flatMap((count) =>
      [keys, keys >> 1, 2].map((period) => [keys, count, period] as const),
    ),
  )
  .concat(
    [3, 64, 65, 66, 67, 513, 514, 4095, 4096, 4097, 4098].flatMap((keys) =>
      [keys, 3].map((period) => [keys, 64, period] as const),
    ),
    // More than the lanes of a block of threads hold.
    [[16_390, 64, 16_390] as const, [16_390, 64, 3] as const],
  );

describe.skipIf(reason)(`selection on emulated CUDA ${reason ?? ''}`, () => {
  describe.each(ways)('%s', (entry, multiprocessors) => {
    const open = () => openEmulated({ multiprocessors });

    test.each(choices)(
      'of %d blocks %d, %d unlike',
      async (keys, count, period) => {
        const choice = { ...shape, keys, count, period };
        const [cuda, cpu] = [await open(), await openCpu()];
        const launched = vi.spyOn(cuda, 'run');
        expect(await choose(cuda, choice)).toEqual(await choose(cpu, choice));
        const entries = launched.mock.calls.map(([launch]) => launch.entry);
        expect(entries.at(-1)).toBe(entry);
        await cuda.destroy();
        await cpu.destroy();
      },
    );

    // As a card makes them: the largest one.
    test.for([300, 4200])(
      'the first of %d blocks that are NaN',
      async (keys) => {
        const cuda = await open();
        const lseBits = 0x7fff_ffff;
        const choice = { ...shape, keys, count: 16, period: keys, lseBits };
        const first = Array.from({ length: 14 }, (_, block) => block);
        expect(await choose(cuda, choice)).toEqual(
          [keys - 3, keys - 2, keys - 1].flatMap((own) => [
            ...first,
            own - 1,
            own,
          ]),
        );
        await cuda.destroy();
      },
    );
  });
});

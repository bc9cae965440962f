import { existsSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { type Backend, openSafetensors } from '@asa/core';
import { openFolder } from '@asa/core/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { withFile } from '../../packages/core/src/io/files';
import {
  agree,
  compareGoldenOperator,
  type GoldenFile,
  readGoldenFile,
} from '../../packages/core/src/verify/golden-operators';

const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);
const files = existsSync(shared)
  ? readdirSync(shared).filter((name) => name.endsWith('.safetensors'))
  : [];

async function goldenFile(name: string): Promise<GoldenFile> {
  const folder = await openFolder(shared);
  return withFile(folder, name, async (file) =>
    readGoldenFile(await openSafetensors(file)),
  );
}

let backend: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
});
afterAll(() => backend.destroy());

/** What each kind of file holds must all be compared. */
const results: Readonly<Record<string, readonly string[]>> = {
  compressed_attention: ['o', 'lse', 'dq', 'dk_cmp', 'dv_cmp'],
  select_blocks: ['block_indices'],
  selected_attention: ['o', 'dq', 'dk', 'dv'],
  overlapping_compression: ['k_cmp', 'v_cmp', 'o', 'block_indices'],
};

describe.skipIf(files.length === 0)(
  'operators of other implementations, where ../shared/golden is there',
  () => {
    test.each(files)('%s', async (name) => {
      const rows = await compareGoldenOperator(backend, await goldenFile(name));
      const kind = name.replace(/_\d+\.safetensors$/, '');
      expect(rows.map((row) => row.name)).toEqual(results[kind]);
      expect(
        rows.filter(({ error, allowance }) => !(error <= allowance)),
      ).toEqual([]);
      expect(backend.memory().bytesInUse).toBe(0);
    });

    test.each(files)('%s: a result that is wrong is found', async (name) => {
      const file = await goldenFile(name);
      const kind = name.replace(/_\d+\.safetensors$/, '');
      for (const result of results[kind] ?? []) {
        const { shape, dtype, data } = file.tensors.get(result)!;
        const last = data.length - 1;
        const changed = data.slice();
        // A list's last block, the own one; or a value off by 1 % of the size.
        changed[last] =
          dtype === 'i32' ? -1 : changed[last]! + 0.01 * Math.sqrt(last);
        const tensors = new Map(file.tensors);
        tensors.set(result, { shape, dtype, data: changed });
        const rows = await compareGoldenOperator(backend, {
          ...file,
          tensors,
        });
        const row = rows.find((r) => r.name === result)!;
        expect(row.error, result).toBeGreaterThan(row.allowance);
      }
    });
  },
);

describe('lists agree', () => {
  const importance = [5, 3, 2, 2 - 1e-6, 1, 0, 0];

  test('in any order', () => {
    expect(agree([0, 1, 2], [2, 0, 1], [0], importance)).toBe(true);
  });

  test('with another block of nearly the same importance', () => {
    expect(agree([0, 1, 2], [0, 1, 3], [0], importance)).toBe(true);
    expect(agree([0, 1, 2], [0, 1, 4], [0], importance)).toBe(false);
    expect(agree([0, 2, 4], [0, 3, 4], [0], importance)).toBe(true);
  });

  test('only when both hold the forced blocks', () => {
    expect(agree([0, 1, 2], [0, 1, 3], [2], importance)).toBe(false);
    expect(agree([0, 1, 2], [0, 1, 3], [3], importance)).toBe(false);
  });

  test('when the reference alone is shorter, by a block of importance 0', () => {
    expect(agree([0, 1, 5], [0, 1], [0], importance)).toBe(true);
    expect(agree([0, 1, 4], [0, 1], [0], importance)).toBe(false);
    expect(agree([0, 1], [0, 1, 5], [0], importance)).toBe(false);
  });

  test('never with a block that does not exist', () => {
    expect(agree([0, 1, 7], [0, 1], [0], importance)).toBe(false);
  });
});

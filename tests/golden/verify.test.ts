import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { type Backend, MemoryFolder } from '@asa/core';
import { openFolder } from '@asa/core/node';
import { type Report, type VerifyOptions, verifyAll } from '@asa/core/verify';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);

let backend: Backend;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
});
afterAll(() => backend.destroy());

const run = (golden: VerifyOptions['golden'], require = false) =>
  verifyAll({
    backend,
    reference: backend,
    suites: ['golden'],
    golden,
    require,
  });

const statusOf = (report: Report, name: string) =>
  report.rows.filter((row) => row.name.startsWith(name));

describe.skipIf(!existsSync(shared))(
  'verify over ../shared/golden, where it is there',
  () => {
    test('compares every file and folder', async () => {
      const report = await run(await openFolder(shared));
      expect(report.rows.filter(({ status }) => status === 'mismatch')).toEqual(
        [],
      );
      for (const name of readdirSync(shared)) {
        const isGolden =
          name.endsWith('.safetensors') ||
          statSync(join(shared, name)).isDirectory();
        const statuses = statusOf(report, name).map(({ status }) => status);
        expect(new Set(statuses), name).toEqual(
          new Set(isGolden ? ['ok'] : []),
        );
      }
      // Operators, logits, losses, gradients, greedy tokens, training.
      expect(report.counts.ok).toBeGreaterThan(100);
      expect(backend.memory().bytesInUse).toBe(0);
    }, 60_000);

    test('says of what it skips why, and compares the rest', async () => {
      const name = 'selected_attention_0.safetensors';
      const bytes = readFileSync(join(shared, name));
      const folder = new MemoryFolder('golden');
      folder.set('broken.safetensors', bytes.subarray(0, 1000));
      folder.set('README.md', new TextEncoder().encode('hello'));
      folder.set('notes.npz', new TextEncoder().encode('hello'));
      folder.set(name, bytes);
      await folder.subfolder('nothing');
      const report = await run(folder);
      expect(report).toMatchObject({
        passed: true,
        counts: { ok: 4, skipped: 3, mismatch: 0 },
      });
      expect(statusOf(report, 'broken')[0]?.detail).toMatch(
        /must fill the file/,
      );
      expect(statusOf(report, 'notes.npz')[0]?.detail).toMatch(/neither/);
      expect((await run(folder, true)).passed).toBe(false);
    });

    test('finds a reference that disagrees', async () => {
      const name = 'compressed_attention_0.safetensors';
      const bytes = Uint8Array.from(readFileSync(join(shared, name)));
      // The last tensor's middle: the sign and exponent of some values.
      const at = bytes.length - 4 * 400;
      for (let i = 0; i < 100; i++) bytes[at + 4 * i + 3]! ^= 0x80;
      const folder = new MemoryFolder('golden');
      folder.set(name, bytes);
      const report = await run(folder);
      expect(report.passed).toBe(false);
      expect(report.counts.mismatch).toBeGreaterThan(0);
    });
  },
);

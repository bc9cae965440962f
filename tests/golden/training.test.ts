import { existsSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { openFolder } from '@asa/core/node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Backend } from '../../packages/core/src/backend';
import { compareGoldenModel } from '../../packages/core/src/verify/golden-models';

const shared = fileURLToPath(
  new URL('../../../shared/golden', import.meta.url),
);
const folders = existsSync(shared)
  ? readdirSync(shared).filter((name) =>
      existsSync(`${shared}/${name}/expected.safetensors`),
    )
  : [];

describe.skipIf(folders.length === 0)(
  'models of other implementations, where ../shared/golden is there',
  () => {
    let backend: Backend;
    beforeAll(async () => {
      backend = await openCpu({ poison: true });
    });
    afterAll(() => backend.destroy());

    test.each(folders)('%s', { timeout: 60_000 }, async (name) => {
      const folder = await openFolder(`${shared}/${name}`);
      const rows = await compareGoldenModel(backend, folder);
      expect(rows.length).toBeGreaterThan(0);
      expect(
        rows.filter(({ error, allowance }) => !(error <= allowance)),
      ).toEqual([]);
      expect(backend.memory().bytesInUse).toBe(0);
    });

    test('every kind of result is compared in one of them', async () => {
      const folder = await openFolder(`${shared}/llama_tiny`);
      const names = (await compareGoldenModel(backend, folder)).map(
        (r) => r.name,
      );
      expect(names).toEqual(
        expect.arrayContaining([
          'logits',
          'loss',
          'grad.model.norm.weight',
          'greedy 0',
          'adamw loss 4',
        ]),
      );
    });
  },
);

import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { withFile } from '../../../packages/core/src/io/files';
import {
  type NamedTensor,
  openSafetensors,
} from '../../../packages/core/src/io/safetensors';
import { openFolder } from '../../../packages/core/src/node/files';
import { written } from './bytes';

const shared = fileURLToPath(
  new URL('../../../../shared/golden', import.meta.url),
);

const files = existsSync(shared)
  ? (readdirSync(shared, { recursive: true }) as string[]).filter((name) =>
      name.endsWith('.safetensors'),
    )
  : [];

test('reference files are there', ({ skip }) => {
  skip(!existsSync(shared), 'the reference files are not beside the checkout');
  expect(files.length).toBeGreaterThan(10);
});

/** The other implementation's bytes are the proof of both directions. */
test.each(files)(
  '%s is read, and written again byte for byte',
  async (name) => {
    const path = join(shared, name);
    const folder = await openFolder(dirname(path));
    await withFile(folder, basename(path), async (file) => {
      const opened = await openSafetensors(file);
      const tensors: NamedTensor[] = [];
      for (const name of opened.tensors.keys()) {
        const tensor = await opened.read(name);
        expect(tensor.data.some((value) => !Number.isNaN(value))).toBe(true);
        tensors.push({ name, ...tensor });
      }
      expect(tensors.length).toBeGreaterThan(0);
      const bytes = await written(tensors, Object.fromEntries(opened.metadata));
      expect(bytes.length).toBe(statSync(path).size);
      expect(Buffer.compare(bytes, await file.read(0, file.size))).toBe(0);
    });
  },
);
